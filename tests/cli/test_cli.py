"""The operator's command: what it prints, what it refuses, and that it keeps secrets to where they were asked for."""

import asyncio
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from app.blockchain.wallet import account_xpub
from app.core.config import Settings
from app.services.operator import new_wallet
from demo.gateway import Gateway
from devnet.ports import free_port
from tests.support.anvil import Anvil
from tests.support.receiver import Receiver

CHAINS = """\
chains:
  - name: devnet
    chain_id: 31337
    rpc_url: "http://127.0.0.1:1"
    confirmations_required: 3
    finality: {depth: 64}
    native: {symbol: ETH, decimals: 18}
"""


@dataclass(frozen=True)
class Answer:
    code: int
    out: str
    error: str


async def paywatch(folder: Path, *arguments: str, **variables: str) -> Answer:
    """Run the command in `folder`, with no setting but `variables` and what the folder holds."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PAYWATCH_")}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "app.cli", *arguments),
        cwd=folder,
        env=inherited | {"PYTHONPATH": str(Path(__file__).parents[2])} | variables,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, error = await process.communicate()
    assert process.returncode is not None
    return Answer(process.returncode, out.decode(), error.decode())


def names_in(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


# --- keys


async def test_a_new_wallet_has_24_words_and_the_xpub_of_its_account(tmp_path: Path) -> None:
    answer = await paywatch(tmp_path, "keys", "init", "--json")
    wallet = json.loads(answer.out)
    assert (answer.code, answer.error) == (0, "")
    assert len(wallet["mnemonic"].split()) == 24
    assert wallet["xpub"] == account_xpub(wallet["mnemonic"])
    assert names_in(tmp_path) == []  # it is stored nowhere


async def test_the_words_are_shown_once_with_what_to_put_where(tmp_path: Path) -> None:
    answer = await paywatch(tmp_path, "keys", "init")
    words = [line.split()[1::2] for line in answer.out.splitlines() if line.strip()[:1].isdigit()]
    xpub = next(line.strip() for line in answer.out.splitlines() if line.strip().startswith("xpub"))
    assert account_xpub(" ".join(word for line in words for word in line)) == xpub
    assert "PAYWATCH_XPUB=" in answer.out
    assert "PAYWATCH_MNEMONIC=" in answer.out


def test_what_was_made_is_accepted_by_the_settings_and_every_wallet_is_another() -> None:
    one, other = new_wallet(), new_wallet()
    assert one.mnemonic != other.mnemonic
    assert Settings(_env_file=None, xpub=one.xpub, mnemonic=one.mnemonic).xpub == one.xpub
    assert one.mnemonic not in repr(one)


# --- what it says of a running installation


async def test_a_running_installation_is_shown_as_a_table_and_as_json(tmp_path: Path, anvil: Anvil) -> None:
    token = await anvil.deploy("TestToken", "USD Coin", "USDC", 6)
    async with Gateway(tmp_path, free_port(), anvil.url, token) as gateway:
        for _ in range(2):
            await gateway.post("/v1/payments", {"chain": "devnet", "token": "USDC", "amount": "1"})
        table = await paywatch(tmp_path, "status")
        found = json.loads((await paywatch(tmp_path, "status", "--json")).out)

    assert table.code == 0, table.error
    assert ["devnet", "ok", "1", "1", "0", "0.0"] in [line.split() for line in table.out.splitlines()]
    assert "Payments: 2 pending" in table.out
    assert "Webhooks due: 0" in table.out
    [chain] = found.pop("chains")
    assert (chain["name"], chain["state"], chain["cursor"], chain["lag_blocks"]) == ("devnet", "ok", 1, 0)
    assert found == {"payments": {"pending": 2}, "webhooks_due": 0}


async def test_the_first_merchants_secret_verifies_what_comes_to_a_payments_own_url(
    tmp_path: Path, anvil: Anvil, receiver: Receiver
) -> None:
    token = await anvil.deploy("TestToken", "USD Coin", "USDC", 6)
    async with Gateway(tmp_path, free_port(), anvil.url, token) as gateway:
        answer = await paywatch(tmp_path, "webhooks", "secret")
        assert answer.code == 0, answer.error
        receiver.secret = answer.out.strip()
        payment = {"chain": "devnet", "token": "ETH", "amount": "1", "webhook_url": receiver.url}
        await gateway.post("/v1/payments", payment)
        assert (await receiver.wait_for_type("payment.created")).verified


async def test_the_operator_makes_lists_and_revokes_keys_and_merchants(tmp_path: Path, anvil: Anvil) -> None:
    token = await anvil.deploy("TestToken", "USD Coin", "USDC", 6)
    async with Gateway(tmp_path, free_port(), anvil.url, token) as gateway:
        shop = ("keys", "create", "--merchant", "Mug shop", "--name", "till", "--scope", "payments:read")
        refused = await paywatch(tmp_path, *shop)
        assert (refused.code, refused.out) == (1, "")
        assert "--new-merchant" in refused.error
        made = await paywatch(tmp_path, *shop, "--scope", "payments:write", "--new-merchant")
        assert made.code == 0, made.error
        key = made.out.strip()
        listed = json.loads((await paywatch(tmp_path, "keys", "list", "--json")).out)
        assert [(each["merchant"], each["name"]) for each in listed] == [
            ("default", "PAYWATCH_API_KEY"),
            ("Mug shop", "till"),
        ]
        assert key not in json.dumps(listed)
        table = (await paywatch(tmp_path, "keys", "list")).out
        assert "Mug shop" in table
        assert listed[1]["id"] in table

        async with httpx.AsyncClient(
            base_url=gateway.url, headers={"authorization": f"Bearer {key}"}, trust_env=False
        ) as client:
            await gateway.post("/v1/payments", {"chain": "devnet", "token": "USDC", "amount": "1"})
            assert (await client.get("/v1/payments")).json()["data"] == []  # another merchant's
            revoked = await paywatch(tmp_path, "keys", "revoke", listed[1]["id"])
            assert revoked.code == 0, revoked.error
            assert (await client.get("/v1/payments")).status_code == 401
        assert (await paywatch(tmp_path, "keys", "revoke", "key_unknown")).code == 1


async def test_a_key_with_a_scope_that_does_not_exist_is_exit_code_2(tmp_path: Path) -> None:
    answer = await paywatch(tmp_path, "keys", "create", "--name", "x", "--scope", "payments:steal")
    assert answer.code == 2
    assert "payments:read" in answer.error


# --- what it refuses


@pytest.mark.parametrize("command", [("status",), ("webhooks", "secret")])
@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({}, "has no schema yet"),
        ({"PAYWATCH_PORT": "no"}, "PAYWATCH_PORT: "),
        ({"PAYWATCH_CHAINS_FILE": "missing.yaml"}, "missing.yaml: no such file"),
        ({"PAYWATCH_DATABASE_URL": "postgresql+asyncpg://u:hunter2@127.0.0.1:1/x"}, "PostgreSQL database x"),
    ],
)
async def test_what_an_operator_must_change_is_one_message_and_exit_code_1(
    tmp_path: Path, command: tuple[str, ...], variables: dict[str, str], said: str
) -> None:
    (tmp_path / "chains.yaml").write_text(CHAINS)
    answer = await paywatch(tmp_path, *command, **variables)
    assert (answer.code, answer.out) == (1, "")
    assert said in answer.error
    assert "Traceback" not in answer.error
    assert "hunter2" not in answer.error
    assert names_in(tmp_path) == ["chains.yaml"]  # and nothing was made


async def test_a_misspelled_command_is_exit_code_2(tmp_path: Path) -> None:
    answer = await paywatch(tmp_path, "kyes")
    assert answer.code == 2
    assert "No such command 'kyes'" in answer.error
