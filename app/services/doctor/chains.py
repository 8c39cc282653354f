"""Each chain's cursor, and the clocks that everything is judged by."""

import asyncio
from datetime import datetime

from app.blockchain.errors import NodeError
from app.blockchain.headers import fetch_header
from app.core import limits
from app.core.chains import Chain
from app.core.clock import utc_now
from app.db.models import ChainState
from app.db.repositories import chains, diagnosis
from app.services.blockchain.control import OPERATOR
from app.services.doctor.finding import RESTART, Finding, Patient, failed, ok, warning
from app.services.doctor.processes import asking
from app.services.status import ChainView, list_chains


async def check_chains(patient: Patient) -> list[Finding]:
    """Whether each enabled chain has its cursor, under its own chain id, and whether it advances."""
    async with patient.context.db.read() as session:
        states = await chains.list_states(session)
        views = {view.name: view for view in await list_chains(patient.context, session)}
    by_name = {state.name: state for state in states.values()}
    return [
        _chain(patient, chain, states.get(chain.chain_id), by_name.get(chain.name), views[chain.name])
        for chain in patient.chains
    ]


def _chain(
    patient: Patient, chain: Chain, state: ChainState | None, namesake: ChainState | None, view: ChainView
) -> Finding:
    check = f"chain:{chain.name}"
    if namesake is not None and namesake.chain_id != chain.chain_id:
        found = f"the database knows {chain.name!r} by chain id {namesake.chain_id}, chains.yaml says {chain.chain_id}"
        return failed(
            check, found, f"give back the chains.yaml (or PAYWATCH_DATABASE_URL) of this installation; {RESTART}"
        )
    if state is None:
        found = "it has no cursor (ChainState): no payment is taken on it"
        return failed(check, found, f"mend its node, then {patient.start_worker('listener')}, which makes the cursor")
    if state.halt_code == OPERATOR:
        return warning(check, str(state.halt_detail), _resumption(chain, OPERATOR))
    if state.halt_code is not None:
        return failed(check, f"halted ({state.halt_code}): {state.halt_detail}", _resumption(chain, state.halt_code))
    told = f"cursor {view.cursor}, {view.lag_blocks} blocks and {view.lag_seconds} s behind"
    if state.name != chain.name:
        found = f"the database calls chain id {chain.chain_id} {state.name!r}: never rename a chain that has payments"
        return failed(check, found, f"call it {state.name} again in chains.yaml; {RESTART}")
    if view.state == "ok":
        return ok(check, told)
    remedy = f"look at rpc:{chain.name} and worker:listener here; {patient.start_worker('listener')}"
    return failed(check, f"it does not advance: {view.reason or told}", remedy)


def _resumption(chain: Chain, halt_code: str) -> str:
    if halt_code == "config":
        return (
            f"mend chains.yaml, {RESTART}; or mend the node of {chain.name}, and it goes on by itself within a minute"
        )
    return f"paywatch chain resume {chain.name}"


async def check_clocks(patient: Patient) -> list[Finding]:
    """This machine's clock against the database's, Redis' and the newest blocks'."""
    found: list[Finding] = []
    db = patient.context.db
    if "database" not in patient.down and not db.is_sqlite:
        async with db.read() as session:
            before = utc_now()
            theirs = await diagnosis.clock(session)
        found.append(_clock("clock:database", before, theirs))
    if "redis" not in patient.down:
        async with asking(patient) as redis:
            await redis.ping()
            before = utc_now()
            seconds, microseconds = await redis.time()
        found.append(_clock("clock:redis", before, datetime.fromtimestamp(seconds + microseconds / 1e6, before.tzinfo)))
    by_chain = await asyncio.gather(*(_block_clock(patient, chain) for chain in patient.chains))
    return found + [each for each in by_chain if each is not None]


async def _block_clock(patient: Patient, chain: Chain) -> Finding | None:
    """None where no node answers: `rpc:` says it."""
    endpoint = patient.nodes.get(chain.name)
    if endpoint is None:
        return None
    try:
        async with asyncio.timeout(limits.DOCTOR_NODE_S):
            head = await fetch_header(endpoint, "latest")
    except (NodeError, TimeoutError):
        return None
    return _blocks(chain, head.time - utc_now().timestamp())


def _clock(check: str, before: datetime, theirs: datetime) -> Finding:
    """`before` was read just before it was asked: the question's own time counts for neither."""
    after = utc_now()
    ahead_s = (theirs - after).total_seconds() if theirs > after else min((theirs - before).total_seconds(), 0.0)
    if abs(ahead_s) <= limits.DOCTOR_CLOCK_S:
        return ok(check, "within a few seconds of this machine's")
    found = f"it is {abs(ahead_s):.0f} s {'ahead of' if ahead_s > 0 else 'behind'} this machine's clock"
    return failed(check, found, "timedatectl set-ntp true, on both machines")


def _blocks(chain: Chain, ahead_s: float) -> Finding:
    check = f"clock:{chain.name}"
    if chain.max_head_age_s is not None and -ahead_s > limits.DOCTOR_BLOCK_AGE_S:
        found = f"its newest block is {-ahead_s:.0f} s old by this machine's clock: the clock is fast, and receivers "
        return warning(check, f"{found}refuse its signatures; or the node is behind", "timedatectl set-ntp true")
    if ahead_s <= limits.DOCTOR_BLOCK_AHEAD_S:
        return ok(check, "its newest block is not from the future")
    found = f"its newest block is {ahead_s:.0f} s ahead of this machine's clock: payments expire at the wrong time"
    return failed(check, found, "timedatectl set-ntp true; on a devnet that was moved ahead, start a new one")
