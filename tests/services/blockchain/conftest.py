"""A chain of the test's own, a database of its own, and every request that was sent to the node."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from functools import partial
from pathlib import Path

import pytest

from app.blockchain.signer import Signer
from app.blockchain.w3 import NodeProvider
from tests.services.blockchain.requests import Requests
from tests.services.blockchain.sweeping import OpenSwept, Swept, make_signer, swept_by, use_words
from tests.services.blockchain.watch import Watch, open_watch
from tests.support.anvil import Anvil

OpenWatch = Callable[..., AbstractAsyncContextManager[Watch]]


@pytest.fixture
async def usdc(anvil: Anvil) -> str:
    return await anvil.deploy("TestToken", "USD Coin", "USDC", 6)


@pytest.fixture
def opened(db_url: str, tmp_path: Path, anvil: Anvil, usdc: str) -> OpenWatch:
    """Opens watches over the test's database; takes `tokens` and fields of the chain in chains.yaml."""
    return partial(open_watch, db_url, tmp_path, anvil, tokens={"USDC": usdc})


@pytest.fixture
async def watch(opened: OpenWatch) -> AsyncIterator[Watch]:
    """Three confirmations, finality 64 blocks deep. When the test ends, the whole database must be in order."""
    async with opened() as it:
        yield it
        await it.audit()


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> Requests:
    """Every HTTP request to a node, from now on."""
    recorder = Requests()
    original = NodeProvider.post

    async def post(self: NodeProvider, method: str, payload: bytes) -> bytes:
        await recorder.before(payload)
        return await recorder.after(payload, await original(self, method, payload))

    monkeypatch.setattr(NodeProvider, "post", post)
    return recorder


@pytest.fixture(scope="session")
def signer() -> Signer:
    return make_signer()


@pytest.fixture
def open_swept(opened: OpenWatch, signer: Signer, monkeypatch: pytest.MonkeyPatch) -> OpenSwept:
    use_words(monkeypatch)
    return partial(swept_by, opened, signer)


@pytest.fixture
async def swept(open_swept: OpenSwept) -> AsyncIterator[Swept]:
    """Mode `auto`; when the test ends, the database must be in order."""
    async with open_swept() as it:
        yield it
        await it.watch.audit(against_node=False)
