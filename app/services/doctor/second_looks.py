"""Periodic tasks that are not done, and what the second looks at each chain have found."""

from itertools import groupby

from app.core import limits, pulse
from app.core.chains import Chain
from app.db.models import ChainState
from app.db.repositories import chains
from app.services.doctor.finding import Finding, Patient, failed, ok, warning
from app.services.doctor.processes import asking
from app.services.task_runs import TaskRun, task_runs, told


async def check_tasks(patient: Patient) -> list[Finding]:
    """When each task was last done, and what the last comparison of balances found."""
    async with asking(patient) as redis:
        runs = await task_runs(patient.context, redis)
        differences = await pulse.differences(redis)
    runs.sort(key=lambda run: run.place)
    found = [_tasks(patient, place, list(of_place)) for place, of_place in groupby(runs, key=lambda run: run.place)]
    return found + [_balances(chain, differences.get(chain.name)) for chain in patient.chains]


async def check_backups(patient: Patient) -> list[Finding]:
    """How far each backup pass is behind finality, and whether one ever found what the scan had missed."""
    async with patient.context.db.read() as session:
        states = await chains.list_states(session)
    return [_backup(chain, states[chain.chain_id]) for chain in patient.chains if chain.chain_id in states]


def _tasks(patient: Patient, place: str, runs: list[TaskRun]) -> Finding:
    late = [run for run in runs if run.late]
    if not late:
        return ok(f"tasks:{place}", told(runs))
    remedy = f"look at rpc:{place} here and at its worker's log" if late[0].chain else "look at its worker's log"
    return failed(f"tasks:{place}", told(runs), f"{remedy}; then restart it: {patient.start_worker(late[0].role)}")


def _balances(chain: Chain, differences: int | None) -> Finding:
    check = f"balances:{chain.name}"
    if not differences:
        return ok(check, "not compared yet" if differences is None else "they were as recorded")
    found = f"{differences} differed from what was recorded when they were last compared"
    return failed(check, found, f"paywatch reconcile --chain {chain.name} names them")


def _backup(chain: Chain, state: ChainState) -> Finding:
    check = f"backup:{chain.name}"
    behind = max(min(state.finalized_block, state.last_scanned_block) - state.backup_block, 0)
    found = f"{behind} final blocks are still to be read again"
    if state.missed_transfers:
        found = f"the scan had missed {state.missed_transfers} transfers, which a backup pass found; {found}"
        remedy = f"the log's `missed_by` names the node: replace it; then paywatch reconcile --chain {chain.name}"
        return warning(check, found, remedy)
    if behind > limits.DOCTOR_BACKUP_BLOCKS:
        return warning(
            check, found, f"look at tasks:{chain.name} and rpc:{chain.name} here; it is so while catching up"
        )
    return ok(check, found)
