"""Tokens of many addresses in one transaction of the gas account (EIP-7702)."""

import time
from collections.abc import Mapping, Sequence
from typing import Final

from app.blockchain.collector import Contracts, ContractsError, ContractsMissingError, supports_eip7702
from app.blockchain.errors import FatalError
from app.blockchain.sending import Account, estimate, token_balances
from app.blockchain.signer import Action, Authorization
from app.blockchain.wallet import TOKEN_BRANCH
from app.core import limits
from app.core.chains import Chain
from app.core.evm import NATIVE_ASSET, checksum
from app.core.logger import get_logger
from app.db.repositories import sweeps
from app.services.blockchain.sweeping.budget import GasBudget
from app.services.blockchain.sweeping.jobs import Candidate, Item, Job, Plan, Refusal
from app.services.blockchain.sweeping.round import Round
from app.services.blockchain.sweeping.single import NEXT_ROUND, data_fee

log = get_logger(__name__)

# What the collector wants to see left before its last item, less what an item takes: it is never spent.
_UNUSED_GAS: Final = limits.SWEEP_ITEM_GAS * 33 // 32 + 10_000 - 25_000


def collects_tokens(chain: Chain, candidate: Candidate) -> bool:
    """Whether the candidate's address may be delegated: those of the native branch never are."""
    return chain.sweep.mode in ("auto", "eip7702") and candidate.branch == TOKEN_BRANCH


async def plan_collects(
    round_: Round,
    plan: Plan,
    budget: GasBudget,
    token: bytes,
    candidates: Sequence[Candidate],
    accounts: Mapping[bytes, Account],
) -> Sequence[Candidate]:
    """Transactions of up to `batch_size` addresses each; where a contract is missing, its deployment before them.

    Returns the candidates that have to be swept in another way. Raises NodeError.
    """
    if not candidates:
        return ()
    contracts = Contracts(round_.gas_address, round_.treasury)
    unusable = await _why_unusable(round_, contracts)
    if unusable is not None:
        if round_.chain.sweep.mode == "auto":
            return candidates
        for each in candidates:
            plan.wait(each, unusable)
        return ()
    if not round_.memory.contracts_verified:
        refused = await plan_deployment(round_, plan, budget, contracts)
        for each in candidates:
            plan.wait(each, refused or "the sweep contracts are being deployed")
        return ()
    balances = await token_balances(round_.endpoint, token, [each.address for each in candidates])
    holders: list[Candidate] = []
    for each in candidates:
        if accounts[each.address].has_other_code:
            plan.wait(each, "there is a contract at the address", balances[each.address])
        elif balances[each.address] == 0:
            plan.wait(each, "it holds nothing", 0)
        else:
            holders.append(each)
    size = min(round_.chain.sweep.batch_size, limits.SWEEP_BATCH_ADDRESSES)
    for start in range(0, len(holders), size):
        batch = holders[start : start + size]
        await _plan_batch(round_, plan, budget, contracts, token, batch, balances, accounts)
    return ()


async def plan_deployment(round_: Round, plan: Plan, budget: GasBudget, contracts: Contracts) -> str | None:
    """The first contract that is missing; the next one follows when it is mined. Raises NodeError.

    Returns why it has to wait, if it has to.
    """
    calls = contracts.deploy_calls(await contracts.present(round_.endpoint))
    async with round_.context.db.read() as session:
        under_way = await sweeps.deploying(session, round_.chain.chain_id, round_.gas_address, round_.began_at)
    if under_way or not calls or any(job.kind == "deploy" for job in plan.jobs):
        return None
    try:
        gas = await estimate(round_.endpoint, round_.gas_address, calls[0])
    except FatalError as error:
        return f"the sweep contracts cannot be deployed: {error}"
    job = Job(
        kind="deploy",
        asset=NATIVE_ASSET,
        account=round_.gas_address,
        place=None,
        nonce=round_.gas.nonce,
        action=calls[0],
        gas=gas,
        fees=round_.affordable_fees(),
    )
    refused = budget.refuses(job)
    if refused is None:
        plan.jobs.append(job)
    return refused


async def _why_unusable(round_: Round, contracts: Contracts) -> str | None:
    """Why nothing can be collected on this chain; missing contracts are no reason, they get deployed."""
    memory = round_.memory
    if memory.eip7702 is None or (
        not memory.eip7702 and time.monotonic() - memory.probed_at > limits.SWEEP_PROBE_EVERY_S
    ):
        memory.eip7702 = await supports_eip7702(round_.endpoint, round_.chain.chain_id)
        memory.probed_at = time.monotonic()
    reason = None if memory.eip7702 else "the chain does not have EIP-7702"
    if reason is None and not memory.contracts_verified:
        try:
            await contracts.verified(round_.endpoint)
            memory.contracts_verified = True
        except ContractsMissingError:
            pass
        except ContractsError as error:
            reason = str(error)
    if memory.news("eip7702", reason):
        log.warning("tokens cannot be collected", chain=round_.chain.name, mode=round_.chain.sweep.mode, reason=reason)
    return reason


async def _plan_batch(
    round_: Round,
    plan: Plan,
    budget: GasBudget,
    contracts: Contracts,
    token: bytes,
    batch: Sequence[Candidate],
    balances: Mapping[bytes, int],
    accounts: Mapping[bytes, Account],
) -> None:
    if plan.is_full:
        for each in batch:
            plan.wait(each, NEXT_ROUND, balances[each.address])
        return
    addresses = [each.address for each in batch]
    authorizations = [
        _authorize(round_, contracts, each, accounts[each.address])
        for each in batch
        if accounts[each.address].delegate != contracts.delegate
    ]
    data = contracts.collect_data(token, addresses, limits.SWEEP_ITEM_GAS)
    action = Action(contracts.collector, data=data, authorizations=tuple(authorizations))
    try:
        gas = await estimate(round_.endpoint, round_.gas_address, action)
    except FatalError as error:
        if len(batch) > 1:  # one address may be the reason: it shall hold up only itself
            half = len(batch) // 2
            for part in (batch[:half], batch[half:]):
                await _plan_batch(round_, plan, budget, contracts, token, part, balances, accounts)
            return
        [single] = batch
        plan.refusals.append(Refusal(single, "collect", balances[single.address], str(error)))
        plan.wait(single, f"collecting fails: {error}", balances[single.address])
        if round_.memory.news("collect", str(error)):
            log.error("collecting fails", chain=round_.chain.name, token=checksum(token), reason=str(error))
        return
    overdue = any(round_.overdue(each.since) for each in batch)
    job = Job(
        kind="collect",
        asset=token,
        account=round_.gas_address,
        place=None,
        nonce=round_.gas.nonce,
        action=action,
        gas=min(gas * limits.SWEEP_GAS_PERCENT // 100, limits.SWEEP_TX_GAS),
        fees=round_.capped(round_.fees, overdue),
        items=tuple(Item(each.payment_id, each.address, balances[each.address]) for each in batch),
        data_fee_wei=await data_fee(round_, action),
        estimated_gas=max(gas - _UNUSED_GAS, 0),
    )
    reason = budget.refuses(job)
    if reason is None:
        plan.jobs.append(job)
        return
    for each in batch:
        plan.wait(each, reason, balances[each.address])


def _authorize(round_: Round, contracts: Contracts, candidate: Candidate, account: Account) -> Authorization:
    if account.delegate is not None:  # the treasury in chains.yaml changed, or somebody else has the key
        log.warning(
            "address delegated elsewhere is delegated anew",
            address=checksum(candidate.address),
            delegate=checksum(account.delegate),
        )
    signing = round_.deposit_account(candidate.address, candidate.branch, candidate.index)
    return signing.authorize(chain_id=round_.chain.chain_id, delegate=contracts.delegate, nonce=account.nonce)
