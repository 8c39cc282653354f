"""Goal: a chain that another worker's check has halted goes on when a check passes, whoever makes it."""

import pytest
from sqlalchemy import update

from app.core import limits
from app.db.models import ChainState
from app.services.gateway import Gateway
from app.workers.listener import Listener, listen_for_payments


async def test_a_ready_listener_checks_a_halted_chain_again(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "PREPARE_EVERY_S", 0.0)
    context = gateway.context
    [chain] = context.chains.enabled
    listener = Listener(context, gateway.wake_ups, ready={chain.name})
    async with context.db.write() as session:
        await session.execute(update(ChainState).values(halt_code="config", halt_detail="a node that could not trace"))
    for _ in range(2):  # one sees that it stands still, the next one checks
        await listen_for_payments({"listener": listener}, chain.name)
    async with context.db.read() as session:
        state = await session.get_one(ChainState, chain.chain_id)
    assert (state.halt_code, listener.ready) == (None, {chain.name})


async def test_a_chain_that_a_reorg_has_halted_stays_so(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "PREPARE_EVERY_S", 0.0)
    context = gateway.context
    [chain] = context.chains.enabled
    listener = Listener(context, gateway.wake_ups, ready={chain.name})
    async with context.db.write() as session:
        await session.execute(update(ChainState).values(halt_code="reorg", halt_detail="a fork below finality"))
    for _ in range(3):
        await listen_for_payments({"listener": listener}, chain.name)
    async with context.db.read() as session:
        assert (await session.get_one(ChainState, chain.chain_id)).halt_code == "reorg"
