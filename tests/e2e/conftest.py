"""Houses that are torn down with the test, and whose logs are shown when it fails."""

from collections.abc import AsyncIterator, Generator
from dataclasses import dataclass
from typing import Any

import pytest

from tests.e2e.harness import House, chain_yaml, chains_yaml
from tests.support.anvil import Anvil


@dataclass(frozen=True)
class Devnet:
    """A chain whose blocks are mined by hand, and the test token on it."""

    anvil: Anvil
    token: str

    def chains_yaml(self, **options: Any) -> str:
        return chains_yaml(chain_yaml(self.anvil.url, self.token, **options))

    async def pay(self, payment: dict[str, Any], units: int | None = None, sender_index: int = 1) -> str:
        """Pay it, or only `units` of it; the transaction's hash. No block is mined."""
        amount = int(payment["amount_units"]) if units is None else units
        if payment["token"] == "ETH":
            return await self.anvil.send_ether(sender_index, payment["address"], amount)
        mint = (payment["address"], amount)
        return await self.anvil.transact(self.token, "mint(address,uint256)", *mint, sender_index=sender_index)


async def deploy(anvil: Anvil) -> Devnet:
    return Devnet(anvil, await anvil.deploy("TestToken", "USD Coin", "USDC", 6))


@pytest.fixture
async def devnet(anvil: Anvil) -> Devnet:
    return await deploy(anvil)


@pytest.fixture
async def house(devnet: Devnet) -> AsyncIterator[House]:
    """An embedded installation that watches the devnet; not started."""
    it = House(devnet.chains_yaml())
    yield it
    await it.close()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed:
        values = getattr(item, "funcargs", {}).values()
        houses = [it for value in values for it in (value if isinstance(value, list) else [value])]
        houses = [it for it in (getattr(it, "house", it) for it in houses) if isinstance(it, House)]
        report.sections += [("what the processes printed", house.logs()) for house in houses]
    return report
