"""Goal: an operator sees what the sweeper would do at which cost, deploys its contracts, and lets frozen sweeps go."""

from pathlib import Path

from sqlalchemy import update

from app.blockchain.signer import Signer
from app.core.evm import checksum
from app.core.money import format_units
from app.db.models import Sweep
from app.services.blockchain.sweeper import Sweeper
from tests.cli.test_cli import paywatch
from tests.services.blockchain.conftest import OpenWatch
from tests.services.blockchain.sweeping import GAS_MONEY, TREASURY, WORDS, OpenSwept, Swept, sweep_policy
from tests.services.blockchain.watch import chain_yaml
from tests.support.forks import Answer
from tests.support.secrets import SECRET_KEY


async def run(swept: Swept, folder: Path, *arguments: str, **changed: str) -> Answer:
    """The command in the installation of `swept`, whose chains.yaml is in `folder`."""
    settings = {
        "PAYWATCH_DATABASE_URL": swept.watch.context.settings.database_url,
        "PAYWATCH_REDIS_URL": "redis://never-asked",
        "PAYWATCH_SECRET_KEY": SECRET_KEY,
        "PAYWATCH_MNEMONIC": WORDS,
    }
    return await paywatch(folder, *arguments, **(settings | changed))


async def test_a_dry_run_shows_the_plan_with_its_costs_and_signs_nothing(open_swept: OpenSwept, tmp_path: Path) -> None:
    async with open_swept(min_amount='{USDC: "10"}') as swept:
        first = await swept.confirmed()
        await swept.settle(first)  # the contracts are there from now on
        payments = await swept.confirmed_many(2)
        little, native = await swept.confirmed("USDC", "5"), await swept.confirmed("ETH", "1")
        before = await swept.watch.dump()
        answer = await run(swept, tmp_path, "sweep", "--dry-run")
        assert (answer.code, answer.error) == (0, "")
        lines = answer.out.splitlines()
        assert lines[0].startswith(f"devnet: treasury {checksum(bytes.fromhex(TREASURY[2:]))}, base fee ")
        assert lines[1].startswith(f"gas account {swept.gas_account}: 0.99")
        rows = {line.split()[0]: line.split()[1:] for line in lines if line.startswith("0x")}
        for payment in payments:
            assert rows[payment.address][:3] == ["USDC", "25", "collect"]
            gas, fee = int(rows[payment.address][3]), rows[payment.address][4]
            assert 25_000 < gas < 60_000
            assert fee.startswith("0.0000")
        assert rows[native.address][:4] == ["ETH", "1", "native", "21000"]
        assert rows[little.address] == ["USDC", "5", "less", "than", "min_amount", "10", "USDC"]
        assert "in all: 2 transactions, 0.000" in answer.out
        assert await swept.watch.dump() == before


async def test_the_contracts_can_be_deployed_beforehand(open_swept: OpenSwept, tmp_path: Path) -> None:
    async with open_swept() as swept:
        await swept.watch.anvil.set_automine(True)
        shown = await run(swept, tmp_path, "contracts", "deploy", "--chain", "devnet", "--dry-run")
        assert shown.out == "would deploy what is missing of the sweep's contracts on devnet, which costs gas\n"
        assert shown.error == ""
        answer = await run(swept, tmp_path, "contracts", "deploy", "--chain", "devnet")
        assert "contracts deployed by an operator" in answer.error
        contracts = swept.contracts
        assert answer.error.count("sweep signed") == 2
        collector, delegate = checksum(contracts.collector), checksum(contracts.delegate)
        assert (answer.code, answer.out) == (0, f"devnet: collector {collector}, delegate {delegate}\n")
        await contracts.verified(swept.watch.context.nodes.nodes(swept.watch.chain).endpoints[0])


async def test_only_a_frozen_sweep_is_released(open_swept: OpenSwept, tmp_path: Path) -> None:
    async with open_swept() as swept:
        await swept.confirmed("ETH", "1")
        await swept.round()
        [sweep] = await swept.watch.rows(Sweep)
        answer = await run(swept, tmp_path, "sweep", "release", sweep.id)
        assert (answer.code, answer.error) == (1, f"sweep {sweep.id} is signed; only a frozen one is released\n")
        async with swept.watch.context.db.write() as session:
            await session.execute(update(Sweep).values(status="frozen"))
        dry = await run(swept, tmp_path, "sweep", "release", sweep.id, "--dry-run")
        assert (dry.code, dry.out.startswith(f"would release {sweep.id}")) == (0, True)
        refused = await run(swept, tmp_path, "sweep", "release", sweep.id)
        assert (refused.code, "add --yes" in refused.error) == (1, True)
        assert [status for _, status, *_ in await swept.story()] == ["frozen"]
        answer = await run(swept, tmp_path, "sweep", "release", sweep.id, "--yes")
        assert (answer.code, answer.out) == (0, f"released {sweep.id}\n")
        assert [status for _, status, *_ in await swept.story()] == ["released"]
        again = await run(swept, tmp_path, "sweep", "release", sweep.id, "--yes")
        assert (again.code, again.out) == (0, f"nothing to do: {sweep.id} is released already\n")


async def test_without_a_private_key_it_says_where_to_run_it(open_swept: OpenSwept, tmp_path: Path) -> None:
    async with open_swept() as swept:
        answer = await run(swept, tmp_path, "sweep", "--dry-run", PAYWATCH_MNEMONIC="")
        assert answer.code == 1
        assert answer.error.startswith("there is no private key here: run this where the sweeper runs")


async def test_a_fresh_installation_can_ask_and_deploy_before_a_server_ran(
    opened: OpenWatch, signer: Signer, tmp_path: Path
) -> None:
    async with opened(sweep=sweep_policy(), prepared=False) as watch:
        swept = Swept(watch, Sweeper(watch.context, signer))
        await watch.anvil.set_balance(swept.gas_account, GAS_MONEY)
        before = await watch.dump()
        answer = await run(swept, tmp_path, "sweep", "--dry-run")
        assert (answer.code, answer.error) == (0, "")
        _, gas, unscanned, nothing = answer.out.splitlines()
        assert gas == f"gas account {swept.gas_account}: {format_units(GAS_MONEY, 18)} ETH"
        assert unscanned.startswith("no server or listener was here yet")
        assert nothing == "nothing to be signed now"
        assert await watch.dump() == before, "where the chain is scanned from is not a dry run's to decide"
        await watch.anvil.set_automine(True)
        answer = await run(swept, tmp_path, "contracts", "deploy")
        assert (answer.code, answer.out.split(",")[0]) == (
            0,
            f"devnet: collector {checksum(swept.contracts.collector)}",
        )


async def test_a_chain_that_cannot_be_asked_hides_no_other(open_swept: OpenSwept, tmp_path: Path) -> None:
    async with open_swept() as swept:
        path = tmp_path / "chains.yaml"
        gone = chain_yaml("http://127.0.0.1:1", {}, 6, name="gone", chain_id=31338, sweep=sweep_policy())
        path.write_text(gone + path.read_text().removeprefix("chains:\n"))
        answer = await run(swept, tmp_path, "sweep", "--dry-run")
        assert answer.code == 1
        assert answer.out.startswith("devnet: treasury ")
        assert answer.error.splitlines()[-1].startswith("chain 'gone': ")


async def test_a_fresh_installation_whose_node_is_wrong_is_told_so_and_nothing_is_made(
    opened: OpenWatch, signer: Signer, tmp_path: Path
) -> None:
    async with opened(sweep=sweep_policy(), prepared=False) as watch:
        path = tmp_path / "chains.yaml"
        path.write_text(path.read_text().replace("chain_id: 31337", "chain_id: 31338"))
        before = await watch.dump()
        answer = await run(Swept(watch, Sweeper(watch.context, signer)), tmp_path, "sweep", "--dry-run")
        assert answer.code == 1
        assert answer.error.startswith("chain 'devnet': ")
        assert "has chain id 31337, chains.yaml says 31338" in answer.error
        assert await watch.dump() == before
