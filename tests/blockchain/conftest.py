"""An endpoint of the test's own chain, and a wallet."""

from collections.abc import AsyncIterator

import pytest
from pydantic import SecretStr

from app.blockchain.rpc import Endpoint
from app.blockchain.signer import Signer
from tests.support.anvil import MNEMONIC, Anvil


@pytest.fixture
async def devnet(anvil: Anvil) -> AsyncIterator[Endpoint]:
    endpoint = Endpoint(anvil.url)
    yield endpoint
    await endpoint.close()


@pytest.fixture(scope="session")
def signer() -> Signer:
    return Signer(SecretStr(MNEMONIC))
