"""Addresses that sign for themselves: native coin, and tokens after a top-up with the gas for it."""

from collections.abc import Mapping, Sequence

from app.blockchain.errors import FatalError
from app.blockchain.fees import Fees, l1_fee_wei
from app.blockchain.sending import Account, estimate, token_balances
from app.blockchain.signer import Action, nobodys_account, token_transfer
from app.core import limits
from app.core.evm import NATIVE_ASSET
from app.core.logger import get_logger
from app.db.repositories import sweeps
from app.services.blockchain.sweeping.budget import GasBudget
from app.services.blockchain.sweeping.jobs import Candidate, Item, Job, Plan, Refusal
from app.services.blockchain.sweeping.round import Round

log = get_logger(__name__)

NEXT_ROUND = "the next round"
_PLAIN_GAS = 21_000  # of a transfer to an account without code: exact, so it gets no allowance


async def plan_natives(
    round_: Round, plan: Plan, candidates: Sequence[Candidate], accounts: Mapping[bytes, Account], places: int
) -> None:
    """One transfer of balance less fee for each address, until the plan has `places` jobs. Raises NodeError."""
    if not candidates:
        return
    holder = next((each for each in candidates if accounts[each.address].balance_wei > 0), candidates[0])
    try:
        # The same for all: what it costs to reach the treasury does not depend on who sends.
        gas = with_allowance(await estimate(round_.endpoint, holder.address, Action(round_.treasury, value_wei=1)))
    except FatalError as error:
        reason = f"the treasury takes no native coin: {error}"
        if round_.memory.news("treasury", reason):
            log.error("sweeping waits", chain=round_.chain.name, reason=reason)
        for each in candidates:
            plan.wait(each, reason)
        return
    data_fee_wei = await data_fee(round_, Action(round_.treasury, value_wei=1))
    for each in candidates:
        account = accounts[each.address]
        fees = round_.capped(round_.fees.exact(), round_.overdue(each.since))
        value_wei = account.balance_wei - gas * fees.max_wei - data_fee_wei
        if account.has_other_code:
            plan.wait(each, "there is a contract at the address")
        elif value_wei <= 0:
            plan.wait(each, "less than its own fee" if account.balance_wei else "it holds nothing", account.balance_wei)
        elif plan.is_full or len(plan.jobs) >= places:
            plan.wait(each, NEXT_ROUND, account.balance_wei)
        else:
            plan.jobs.append(
                Job(
                    kind="native",
                    asset=NATIVE_ASSET,
                    account=each.address,
                    place=(each.branch, each.index),
                    nonce=account.nonce,
                    action=Action(round_.treasury, value_wei=value_wei),
                    gas=gas,
                    fees=fees,
                    items=(Item(each.payment_id, each.address, account.balance_wei),),
                    data_fee_wei=data_fee_wei,
                )
            )


async def plan_transfers(
    round_: Round,
    plan: Plan,
    budget: GasBudget,
    token: bytes,
    candidates: Sequence[Candidate],
    accounts: Mapping[bytes, Account],
) -> None:
    """For each address its transfer, or the top-up that it needs before. Raises NodeError."""
    if not candidates:
        return
    balances = await token_balances(round_.endpoint, token, [each.address for each in candidates])
    async with round_.context.db.read() as session:
        customers_wei = await sweeps.unswept_native(
            session, round_.chain.chain_id, [each.address for each in candidates]
        )
    data_fee_wei: int | None = None
    unpaid: Job | None = None  # a top-up that the gas account has no place or no money for
    for each in candidates:
        account, units = accounts[each.address], balances[each.address]
        if units == 0:
            plan.wait(each, "it holds nothing", 0)
            continue
        if plan.is_full:
            plan.wait(each, NEXT_ROUND, units)
            continue
        # A customer's native coin pays for nobody's gas: it would be missing when it is swept itself.
        usable_wei = max(account.balance_wei - customers_wei.get(each.address, 0), 0)
        fees = round_.capped(round_.fees, round_.overdue(each.since))
        if unpaid is not None and usable_wei < _PLAIN_GAS * _enough(round_, fees):
            plan.wait(each, budget.refuses(unpaid) or NEXT_ROUND, units)  # it would be refused one like that
            continue
        action = token_transfer(token, round_.treasury, units)
        try:
            estimated = await estimate(round_.endpoint, each.address, action)
        except FatalError as error:
            plan.refusals.append(Refusal(each, "transfer", units, str(error)))
            plan.wait(each, f"refused: {error}", units)
            continue
        gas = with_allowance(estimated)
        if data_fee_wei is None:
            data_fee_wei = await data_fee(round_, action)
        affordable_wei = max(usable_wei - data_fee_wei, 0) // gas
        if affordable_wei < _enough(round_, fees):
            missing_wei = gas * fees.max_wei + data_fee_wei - usable_wei
            item = Item(each.payment_id, each.address, missing_wei)
            unpaid = await plan_top_up(round_, plan, budget, item, each) or unpaid
            continue
        price_wei = min(fees.max_wei, affordable_wei)
        plan.jobs.append(
            Job(
                kind="transfer",
                asset=token,
                account=each.address,
                place=(each.branch, each.index),
                nonce=account.nonce,
                action=action,
                gas=gas,
                fees=Fees(fees.base_wei, min(fees.priority_wei, price_wei), price_wei),
                items=(Item(each.payment_id, each.address, units),),
                data_fee_wei=data_fee_wei,
                estimated_gas=estimated,
            )
        )


async def plan_top_up(
    round_: Round, plan: Plan, budget: GasBudget, item: Item, candidate: Candidate | None = None
) -> Job | None:
    """Native coin from the gas account, for an address to pay its own transfer with. Raises NodeError.

    `candidate` is the token's that waits for it. Returns the job if the gas account has no place or no money for it.
    """
    action = Action(item.address, value_wei=item.units)
    try:
        gas = with_allowance(await estimate(round_.endpoint, item.address, Action(item.address)))
    except FatalError as error:
        if candidate is not None:
            plan.wait(candidate, f"the address takes no gas: {error}")
        return None
    if plan.topup_data_fee_wei is None:
        plan.topup_data_fee_wei = await data_fee(round_, action)
    job = Job(
        kind="topup",
        asset=NATIVE_ASSET,
        account=round_.gas_address,
        place=None,
        nonce=round_.gas.nonce,
        action=action,
        gas=gas,
        fees=round_.affordable_fees(),
        items=(item,),
        data_fee_wei=plan.topup_data_fee_wei,
    )
    reason = budget.refuses(job)
    if reason is None:
        plan.jobs.append(job)
    if candidate is not None:
        plan.wait(candidate, reason or "gas is sent to it first")
    return None if reason is None else job


async def plan_filler(round_: Round, plan: Plan, budget: GasBudget) -> None:
    """A plain transaction of nothing to ourselves, for the nonce that was left out. Raises NodeError."""
    action = Action(round_.gas_address)
    job = Job(
        kind="fill",
        asset=NATIVE_ASSET,
        account=round_.gas_address,
        place=None,
        nonce=round_.gas.nonce,
        action=action,
        gas=await estimate(round_.endpoint, round_.gas_address, action),
        fees=round_.capped(round_.fees),
    )
    if budget.refuses(job) is None:
        plan.jobs.append(job)


def with_allowance(gas: int) -> int:
    """A gas limit from an estimate."""
    return gas if gas == _PLAIN_GAS else gas * limits.SWEEP_GAS_PERCENT // 100


def _enough(round_: Round, fees: Fees) -> int:
    """The least price per gas with which it is worth signing now: that of `exact`, under the ceiling."""
    return min(round_.fees.exact().max_wei, fees.max_wei)


async def data_fee(round_: Round, action: Action) -> int:
    """What an L2 takes beside the gas for a transaction like this, with an allowance; 0 elsewhere. Raises NodeError.

    The node is shown a sample by a key that owns nothing: ours sign only what is stored.
    """
    sample = nobodys_account().sign(action, chain_id=round_.chain.chain_id, nonce=0, gas=_PLAIN_GAS, fees=round_.fees)
    return await l1_fee_wei(round_.endpoint, sample.raw) * limits.SWEEP_GAS_PERCENT // 100
