"""The gas account on each swept chain, and sweeps that wait for somebody."""

from datetime import datetime

from app.blockchain.errors import NodeError
from app.blockchain.fees import read_fees
from app.blockchain.rpc import Endpoint
from app.blockchain.sending import read_accounts
from app.core import limits
from app.core.chains import Chain
from app.core.clock import utc_now
from app.core.evm import checksum
from app.core.money import format_units
from app.db.models import NonceLane
from app.db.repositories import chains, pauses, payments, sweeps
from app.services.blockchain.sweeper import swept_chains
from app.services.doctor.finding import Finding, Patient, failed, ok, warning


async def check_sweeping(patient: Patient) -> list[Finding]:
    """Frozen sweeps, addresses that cannot be swept, rounds that do not come, and gas that is short."""
    async with patient.context.db.read() as session:
        lanes = {lane.chain_id: lane for lane in await sweeps.current_gas_lanes(session)}
        frozen = await sweeps.frozen(session)
        refused = await sweeps.refused(session, limits.DOCTOR_SWEEP_FAILURES)
        stopped = {state.name for state in (await chains.list_states(session)).values() if state.halt_code is not None}
        stopped |= {each.name for each in patient.chains if await pauses.sweeping_paused(session, each.name)}
        waiting = await payments.oldest(session, utc_now())
    found: list[Finding] = []
    swept = swept_chains(patient.context)
    for chain in patient.chains:
        ids = frozen.get(chain.chain_id, [])
        if ids:
            remedy = f"look at the account in an explorer, then paywatch sweep release {ids[0]}"
            found.append(
                failed(f"sweeps:{chain.name}", f"{len(ids)} frozen: {', '.join(ids[: limits.HEALTH_NAMES])}", remedy)
            )
        elif chain in swept:
            found.append(_refused(chain, [each for each in refused if each.chain_id == chain.chain_id]))
        if chain in swept:
            since = waiting.get((chain.chain_id, "confirmed"))
            found.append(
                ok(f"gas:{chain.name}", "not looked at while sweeping is paused or the chain halted")
                if chain.name in stopped
                else await _gas(patient, chain, lanes.get(chain.chain_id), since)
            )
    return found or [ok("sweeps", "nothing is swept here")]


def _refused(chain: Chain, refused: list[sweeps.Refused]) -> Finding:
    """Whether there is an address that a token, or whoever holds it, does not let go of its money."""
    check = f"sweeps:{chain.name}"
    if not refused:
        return ok(check, "none is frozen, and no address holds its money back")
    first = refused[0]
    found = f"{len(refused)} addresses keep their money, of {first.payment_id} first: {checksum(first.address)} failed "
    found += f"{first.count} times" + (f" ({first.error})" if first.error else "")
    return failed(check, found, f"paywatch sweep --dry-run --chain {chain.name}; ask the token's issuer")


async def _gas(patient: Patient, chain: Chain, lane: NonceLane | None, waits_since: datetime | None) -> Finding:
    """`waits_since`: when the payment was confirmed that has waited longest to be settled."""
    check = f"gas:{chain.name}"
    rounds = patient.start_worker("sweeper")
    patience_s = max(limits.DOCTOR_SWEEP_ROUND_S, 5 * chain.sweep.interval_s)
    if lane is None or lane.looked_at is None:
        waits_s = (utc_now() - waits_since).total_seconds() if waits_since is not None else 0.0
        if waits_s > patience_s:
            found = f"no round has ever been, and confirmed money has waited for {waits_s:.0f} s"
            remedy = f"{rounds}, with PAYWATCH_MNEMONIC or PAYWATCH_KEYSTORE_FILE in its environment"
            return failed(check, found, f"{remedy}; or sweep.mode: off where the merchant sweeps")
        return warning(
            check, "no round has looked at the gas account yet", f"{rounds}; paywatch sweep --dry-run names it"
        )
    age_s = (utc_now() - lane.looked_at).total_seconds()
    if age_s > patience_s:
        return failed(check, f"the last round was {age_s:.0f} s ago", rounds)
    endpoint = patient.nodes.get(chain.name)
    if endpoint is None:
        return warning(check, "its balance is not checked: no endpoint is well", "mend its rpc_urls first")
    try:
        return await _balance(check, chain, lane, endpoint)
    except NodeError as error:
        return warning(check, f"{endpoint.name}: {error}", "mend its rpc_urls first")


async def _balance(check: str, chain: Chain, lane: NonceLane, endpoint: Endpoint) -> Finding:
    """Against what the last round wanted, or else what any round may need."""
    balance = (await read_accounts(endpoint, [lane.account]))[lane.account].balance_wei
    reserve = limits.SWEEP_RESERVE_GAS * (await read_fees(endpoint)).max_wei if chain.tokens else 0
    wanted = (lane.balance_units or 0) + lane.short_units if lane.short_units else reserve
    account, native = checksum(lane.account), chain.native
    found = f"{account} holds {format_units(balance, native.decimals)} {native.symbol}"
    if balance >= wanted:
        return ok(check, found)
    short = f"{format_units(wanted - balance, native.decimals)} {native.symbol}"
    return failed(check, f"{found}; a round needs {short} more", f"send {short} to {account} on {chain.name}")
