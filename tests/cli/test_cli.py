"""The operator's command: what it prints, what it refuses, and that it keeps secrets to where they were asked for."""

import asyncio
import json
import os
import sys
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest
from standardwebhooks import Webhook

from app.blockchain.wallet import account_xpub
from app.core.config import Settings
from app.services.wallet import configured_mnemonic, deposit_xpub, new_wallet
from demo.gateway import Gateway
from devnet.ports import free_port
from tests.support.anvil import Anvil
from tests.support.forks import Answer, python
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


async def paywatch(folder: Path, *arguments: str, given: str = "", **variables: str) -> Answer:
    """Run the command in `folder`, with no setting but `variables` and what the folder holds."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PAYWATCH_")}
    return await python("-m", "app.cli", *arguments, cwd=folder, env=inherited | variables, given=given)


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


async def test_a_wallet_comes_back_from_its_words(tmp_path: Path) -> None:
    made = json.loads((await paywatch(tmp_path, "keys", "init", "--json")).out)
    init = ("keys", "init", "--words", "--keystore", "wallet.json")
    password = {"PAYWATCH_KEYSTORE_PASSWORD": "correct horse battery"}
    answer = await paywatch(tmp_path, *init, given=f"{made['mnemonic'].upper()}\n", **password)
    assert answer.code == 0
    assert made["xpub"] in answer.out
    shown_again = set(made["mnemonic"].split()) & set(answer.out.split())  # some stand in any text, such as "public"
    assert len(shown_again) < 12  # whoever has them need not see them
    shown = await paywatch(tmp_path, "keys", "words", PAYWATCH_KEYSTORE_FILE="wallet.json", **password)
    assert [word for word in shown.out.split() if word.isalpha()] == made["mnemonic"].split()
    refused = await paywatch(tmp_path, *init, given="twelve words that are none", **password)
    assert (refused.code, refused.out) == (1, "")
    assert "mnemonic" in refused.error
    assert "twelve" not in refused.error


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


async def test_a_keystore_opens_where_the_words_would(tmp_path: Path) -> None:
    password = "correct horse battery"
    made = await paywatch(
        tmp_path, "keys", "init", "--json", "--keystore", "wallet.json", PAYWATCH_KEYSTORE_PASSWORD=password
    )
    wallet = json.loads(made.out)
    path = tmp_path / "wallet.json"
    assert (made.code, made.error) == (0, "")
    assert path.stat().st_mode & 0o777 == 0o600
    settings = Settings(_env_file=None, keystore_file=path, keystore_password=password)
    words = configured_mnemonic(settings)
    assert words is not None
    assert words.get_secret_value() == wallet["mnemonic"]
    assert deposit_xpub(settings) == wallet["xpub"]


async def test_a_keystore_is_never_written_over_and_wants_a_password_worth_the_name(tmp_path: Path) -> None:
    (tmp_path / "wallet.json").write_text("another wallet")
    init = ("keys", "init", "--keystore", "wallet.json")
    for password, complaint in [
        ("correct horse battery", "exists already"),
        ("short", "12 characters or more"),
        ("", "PAYWATCH_KEYSTORE_PASSWORD is not set, and there is no terminal"),
    ]:
        answer = await paywatch(tmp_path, *init, PAYWATCH_KEYSTORE_PASSWORD=password)
        assert answer.code == 1
        assert complaint in answer.error
        assert answer.out == ""  # no words of a wallet that is not kept
    assert (tmp_path / "wallet.json").read_text() == "another wallet"


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
    assert found == {"payments": {"pending": 2}, "webhooks_due": 0, "pauses": []}


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


# --- a receiver for trying things out


async def test_listen_verifies_what_comes_and_prints_it(tmp_path: Path, anvil: Anvil) -> None:
    token = await anvil.deploy("TestToken", "USD Coin", "USDC", 6)
    async with Gateway(tmp_path, free_port(), anvil.url, token) as gateway:
        process = await listening(tmp_path)  # the secret is the installation's own
        assert process.stdout is not None
        try:
            url = (await process.stdout.readline()).decode().removeprefix("Listening on ").strip()
            async with httpx.AsyncClient(timeout=60.0) as stranger:
                forged = {"webhook-id": "evt_1", "webhook-timestamp": "1", "webhook-signature": "v1,AAAA"}
                assert (await stranger.post(url, content=b"{}", headers=forged)).status_code == 401
                assert (await stranger.post(url, content=b"{}")).status_code == 401
                assert (await stranger.get(url)).status_code == 501
            payment = {"chain": "devnet", "token": "ETH", "amount": "1", "webhook_url": url, "order_id": "A-1"}
            made = await gateway.post("/v1/payments", payment)
            printed = ""
            async with asyncio.timeout(60):
                while f'"id": "{made["id"]}"' not in printed:
                    printed += (await process.stdout.readline()).decode()
                while not (await gateway.get("/v1/webhook_deliveries?status=delivered"))["data"]:
                    await asyncio.sleep(0.05)
        finally:
            process.terminate()
            await process.communicate()
    assert printed.count("refused ") == 2
    assert f"payment.created  {made['id']}  status pending  version 1  order_id A-1" in printed
    assert printed.count("verified  evt_") == 1


async def listening(folder: Path, *arguments: str) -> asyncio.subprocess.Process:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PAYWATCH_")}
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "app.cli", "webhooks", "listen", "--port", "0", *arguments),
        cwd=folder,
        env=inherited | {"PYTHONPATH": str(Path(__file__).parents[2])},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )


async def test_listen_takes_an_endpoints_secret_and_needs_no_installation(tmp_path: Path) -> None:
    secret = "whsec_" + "QUFB" * 8
    process = await listening(tmp_path, "--secret", secret)
    assert process.stdout is not None
    try:
        url = (await process.stdout.readline()).decode().removeprefix("Listening on ").strip()
        now, body = datetime.now(UTC), '{"type": "webhook_endpoint.test", "data": {"id": "whe_1"}}'
        headers = {
            "webhook-id": "tst_1",
            "webhook-timestamp": str(int(now.timestamp())),
            "webhook-signature": Webhook(secret).sign("tst_1", now, body),
        }
        async with httpx.AsyncClient(timeout=60.0) as sender:
            assert (await sender.post(url, content=body, headers=headers)).status_code == 204
            assert (await sender.post(url, content=body + " ", headers=headers)).status_code == 401
        assert (await process.stdout.readline()).decode() == "verified  tst_1  webhook_endpoint.test  whe_1\n"
    finally:
        process.terminate()
        await process.communicate()
    assert names_in(tmp_path) == []


async def test_listen_says_what_is_wrong_with_its_secret_or_its_port(tmp_path: Path) -> None:
    answer = await paywatch(tmp_path, "webhooks", "listen", "--port", "0", "--secret", "whsec_é")
    assert (answer.code, "the secret must be whsec_" in answer.error) == (1, True)
    async with Receiver() as taken:
        port = taken.url.rpartition(":")[2].partition("/")[0]
        answer = await paywatch(tmp_path, "webhooks", "listen", "--port", port, "--secret", "whsec_" + "QUFB" * 8)
    assert (answer.code, "cannot listen there" in answer.error) == (1, True)


async def test_the_operator_makes_lists_and_revokes_keys_and_merchants(tmp_path: Path, anvil: Anvil) -> None:
    token = await anvil.deploy("TestToken", "USD Coin", "USDC", 6)
    async with Gateway(tmp_path, free_port(), anvil.url, token) as gateway:
        shop = ("keys", "create", "--merchant", "Mug shop", "--name", "till", "--scope", "payments:read")
        refused = await paywatch(tmp_path, *shop)
        assert (refused.code, refused.out) == (1, "")
        assert "--new-merchant" in refused.error
        made = await paywatch(tmp_path, *shop, "--scope", "payments:write", "--new-merchant")
        secrets = [await paywatch(tmp_path, "webhooks", "secret", *whose) for whose in ((), ("--merchant", "Mug shop"))]
        assert [secret.out[:6] for secret in secrets] == ["whsec_"] * 2
        assert secrets[0].out != secrets[1].out
        unknown = await paywatch(tmp_path, "webhooks", "secret", "--merchant", "Nobody")
        assert (unknown.code, "there is no merchant 'Nobody'" in unknown.error) == (1, True)
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

        secrets = {
            (await paywatch(tmp_path, "webhooks", "secret", *whose)).out for whose in ((), ("--merchant", "Mug shop"))
        }
        assert len(secrets) == 2
        async with httpx.AsyncClient(
            base_url=gateway.url, headers={"authorization": f"Bearer {key}"}, trust_env=False, timeout=60.0
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
