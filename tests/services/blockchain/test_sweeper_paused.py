"""Goal: while sweeping is paused nothing is signed and nothing goes out, what was broadcast is followed to its end, and
afterwards everything goes on by itself."""

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update

from app.core import limits
from app.core.clock import utc_now
from app.core.errors import ConfigError
from app.db.models import SweepAttempt
from app.services import pauses
from app.services.blockchain import control, sweeper
from app.services.blockchain.sweeper import RoundOutcome, deploy_step
from app.services.blockchain.sweeping import sign
from tests.services.blockchain.requests import Requests
from tests.services.blockchain.sweeping import OpenSwept, Swept

WHATS = [pauses.SWEEPING, pauses.sweeping_of("devnet")]


async def pause(swept: Swept, what: str = pauses.SWEEPING) -> None:
    assert await pauses.pause(swept.watch.context, what, "a look at the treasury", "op")


async def resume(swept: Swept, what: str = pauses.SWEEPING) -> None:
    assert await pauses.resume(swept.watch.context, what, "op")


@pytest.mark.parametrize("what", WHATS)
async def test_nothing_is_signed_until_it_is_resumed(swept: Swept, what: str) -> None:
    payment = await swept.confirmed()
    await pause(swept, what)
    for _ in range(2):
        assert await swept.round() == RoundOutcome()
    assert await swept.story() == []
    await resume(swept, what)
    await swept.settle(payment)


async def test_another_chains_pause_is_no_matter(swept: Swept) -> None:
    payment = await swept.confirmed()
    await pause(swept, pauses.sweeping_of("base"))
    await swept.settle(payment)


async def test_what_was_broadcast_is_followed_to_its_end(swept: Swept) -> None:
    payment = await swept.confirmed("ETH", "1")
    await swept.round()
    await pause(swept)
    await swept.settle(payment)
    assert [status for _, status, *_ in await swept.story()] == ["confirmed"]


async def test_nothing_goes_out_again_and_nothing_is_replaced(
    swept: Swept, requests: Requests, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One is stuck in the pool for long, one was signed by a worker that died before it sent it."""
    monkeypatch.setattr(limits, "SWEEP_STUCK_S", 0.0)
    monkeypatch.setattr(limits, "SWEEP_REBROADCAST_S", 0.0)
    payments = [await swept.confirmed("ETH", "1"), await swept.confirmed("ETH", "1")]
    await swept.round()
    long_ago = utc_now() - timedelta(days=1)
    attempts = await swept.watch.rows(SweepAttempt)
    async with swept.watch.context.db.write() as session:
        await session.execute(update(SweepAttempt).values(created_at=long_ago, broadcast_at=long_ago))
        first = SweepAttempt.tx_hash == attempts[0].tx_hash
        await session.execute(update(SweepAttempt).where(first).values(broadcast_at=None))
    await pause(swept)
    await swept.watch.anvil.rpc("anvil_dropAllTransactions")
    sent = len(requests.calls("eth_sendRawTransaction"))
    for _ in range(2):
        await swept.round()
    assert len(requests.calls("eth_sendRawTransaction")) == sent
    assert len(await swept.watch.rows(SweepAttempt)) == len(attempts)
    await resume(swept)
    await swept.settle(*payments)


@pytest.mark.parametrize("how", ["paused", "halted"])
async def test_a_stop_in_the_middle_of_a_round_ends_its_signing(
    swept: Swept, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    context, chain = swept.watch.context, swept.watch.chain
    payments = [await swept.confirmed("ETH", "1") for _ in range(3)]
    original = sweeper.sign_and_send

    async def then_stopped(*arguments: Any) -> Any:
        sent = await original(*arguments)
        if how == "paused":
            await pauses.pause(context, pauses.SWEEPING, "now", "op")
        else:
            await control.halt(context, chain, "now", "op")
        return sent

    monkeypatch.setattr(sweeper, "sign_and_send", then_stopped)
    outcome = await swept.round()
    assert outcome.signed == 1
    assert len(await swept.story()) == 1
    monkeypatch.setattr(sweeper, "sign_and_send", original)
    if how == "paused":
        await resume(swept)
    else:
        found = await control.find_resumption(context, chain)
        assert found is not None
        await control.resume(context, chain, found, "op")
    await swept.settle(*payments)
    assert sign.sign_and_send is original


async def test_contracts_are_not_deployed_meanwhile(open_swept: OpenSwept, tmp_path: Path) -> None:
    async with open_swept() as swept:
        await pause(swept)
        with pytest.raises(ConfigError, match="sweeping is paused"):
            await deploy_step(swept.sweeper, swept.watch.chain)
        assert await swept.story() == []
