"""Goal: `paywatch doctor` says by its exit code whether all is well, and sends a real payment through a devnet."""

import json
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from demo.gateway import API_KEY, GAS_ACCOUNT, MNEMONIC, Gateway
from devnet.ports import free_port
from tests.cli.test_cli import CHAINS, names_in, paywatch
from tests.support.anvil import Anvil
from tests.support.forks import Answer

ETHER = 10**18
HEALTHY_S = 120.0


@dataclass
class Installation:
    """A running gateway that sweeps, and the settings that it has."""

    folder: Path
    anvil: Anvil
    variables: dict[str, str]

    async def doctor(self, *arguments: str, **changed: str) -> Answer:
        return await paywatch(self.folder, "doctor", *arguments, **self.variables | changed)

    async def healthy(self) -> dict[str, Any]:
        """The report, once the sweeper has had its first rounds, however many are asked for meanwhile."""
        deadline = time.monotonic() + HEALTHY_S
        while True:
            answer = await self.doctor("--json")
            found: dict[str, Any] = json.loads(answer.out)
            if answer.code == 0 and found["status"] == "ok":
                return found
            assert time.monotonic() < deadline, answer.out


@pytest.fixture
async def installation(tmp_path: Path) -> AsyncIterator[Installation]:
    async with Anvil() as anvil:
        token = await anvil.deploy("TestToken", "USD Coin", "USDC", 6)
        await anvil.set_balance(GAS_ACCOUNT, ETHER)
        port = free_port()
        variables = {
            "PAYWATCH_MNEMONIC": MNEMONIC,
            "PAYWATCH_PORT": str(port),
            "PAYWATCH_WEBHOOK_ALLOW_NETWORKS": "127.0.0.0/8",
        }
        async with Gateway(tmp_path, port, anvil.url, token):
            yield Installation(tmp_path, anvil, variables)


async def test_a_healthy_installation_exits_0_and_a_broken_one_1(installation: Installation) -> None:
    report = await installation.healthy()
    assert {each["result"] for each in report["findings"]} == {"ok"}
    checks = {each["check"] for each in report["findings"]}
    assert checks >= {"settings", "worker:sweeper", "process:server", "gas:devnet", "file:secret.key"}

    await installation.anvil.stop()
    answer = await installation.doctor()
    assert answer.code == 1
    [line] = [line for line in answer.out.splitlines() if line.startswith("rpc:devnet#0")]
    assert "failed" in line
    assert "start the node" in line
    assert answer.out.splitlines()[-1].endswith(" failed")
    assert MNEMONIC not in answer.out + answer.error


async def test_a_mock_payment_goes_all_the_way(installation: Installation) -> None:
    key = installation.folder / "api_key"
    key.write_text(API_KEY)
    answer = await installation.doctor("--mock-payment", "--json", PAYWATCH_API_KEY_FILE=str(key))
    assert answer.code == 0, answer.out
    steps = [(each["check"], each["result"]) for each in json.loads(answer.out)["findings"]]
    names = ("devnet", "created", "paid", "detected", "confirmed", "webhook", "settled")
    assert steps == [(name, "ok") for name in names]


async def test_a_mock_payment_says_where_it_stopped(installation: Installation) -> None:
    for said, arguments, changed in [
        ("none is given", (), {}),
        ("HTTP 401", ("--api-key", "nobody's"), {}),
        ("no enabled chain is named 'base'", ("--chain", "base", "--api-key", API_KEY), {}),
        ("ConnectError", ("--api-key", API_KEY), {"PAYWATCH_PORT": "1"}),
    ]:
        answer = await installation.doctor("--mock-payment", "--json", *arguments, **changed)
        [*_, last] = json.loads(answer.out)["findings"]
        assert (answer.code, last["result"]) == (1, "failed")
        assert said in last["found"]
        assert last["remedy"]
    (installation.folder / ".env").write_text("PAYWATCH_API_KEY=nobodys\n")
    answer = await installation.doctor("--mock-payment", "--json")
    assert "HTTP 401" in json.loads(answer.out)["findings"][-1]["found"]


async def test_a_mock_payment_is_for_devnets_alone(tmp_path: Path) -> None:
    (tmp_path / "chains.yaml").write_text(CHAINS.replace("31337", "1").replace("devnet", "ethereum"))
    for arguments in ((), ("--chain", "ethereum")):
        answer = await paywatch(tmp_path, "doctor", "--mock-payment", "--json", *arguments, PAYWATCH_API_KEY="k")
        [finding] = json.loads(answer.out)["findings"]
        assert (answer.code, finding["check"], finding["result"]) == (1, "devnet", "failed")
        assert "31337" in finding["found"]


async def test_where_nothing_was_ever_started_nothing_is_made(tmp_path: Path) -> None:
    (tmp_path / "chains.yaml").write_text(CHAINS)
    answer = await paywatch(tmp_path, "doctor")
    assert answer.code == 1
    assert answer.error == ""
    assert "Traceback" not in answer.out
    assert names_in(tmp_path) == ["chains.yaml"]


async def test_a_bundle_is_packed_beside_the_report(tmp_path: Path) -> None:
    answer = await paywatch(tmp_path, "doctor", "--bundle", "out.tar.gz", PAYWATCH_XPUB="xprv-secret")
    assert answer.code == 1
    assert answer.error == "packed out.tar.gz\n"
    assert "xprv-secret" not in answer.out
    assert names_in(tmp_path) == ["out.tar.gz"]
