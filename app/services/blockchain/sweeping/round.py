"""What one round of a chain's sweeper knows: the node it asks, the head, today's fees, and the gas account."""

import time
from dataclasses import dataclass, field, replace
from datetime import datetime
from decimal import Decimal

from app.blockchain.errors import NodeBehindError, NodeError
from app.blockchain.fees import Fees, read_fees
from app.blockchain.headers import fetch_header
from app.blockchain.rpc import Endpoint
from app.blockchain.sending import Account, read_accounts
from app.blockchain.signer import Signer, SigningAccount
from app.core import limits
from app.core.chains import Chain
from app.core.clock import utc_now
from app.core.errors import ConfigError
from app.core.evm import checksum
from app.core.logger import get_logger
from app.db.repositories import chains, pauses, sweeps
from app.services.blockchain.chains import require_same_chain
from app.services.context import Context

log = get_logger(__name__)

_WEI_PER_GWEI = 10**9


class NotReadyError(NodeError):
    """The chain is not in a state to be swept: not scanned yet, or halted."""


@dataclass
class Memory:
    """What the rounds of one chain in one process remember; losing it costs a few requests.

    `after_id`: how far the rotation through what waits has come. `eip7702`: what the last probe said, None before it.
    `own`: of the addresses that wait, those whose key was looked at and fits; `has_keys`: whether one ever did.
    """

    after_id: int = 0
    eip7702: bool | None = None
    probed_at: float = 0.0
    contracts_verified: bool = False
    own: frozenset[bytes] = frozenset()
    has_keys: bool = False
    told: dict[str, tuple[str, float]] = field(default_factory=dict)

    def news(self, topic: str, text: str | None) -> bool:
        """Whether to tell `text`: it is not what was told of the topic a short while ago. None: nothing to tell."""
        if text is None:
            self.told.pop(topic, None)
            return False
        before, at = self.told.get(topic, ("", 0.0))
        if text == before and time.monotonic() - at < limits.SWEEP_TELL_EVERY_S:
            return False
        self.told[topic] = (text, time.monotonic())
        return True


@dataclass(frozen=True)
class Round:
    """`cursor`: the last block that was scanned, by which confirmations count. `gas`: the gas account at the head.

    The node has the cursor's very block, so what it says of nonces and balances is no older than what we know.
    `paused`: what was signed is followed, and nothing is signed or broadcast.
    """

    context: Context
    chain: Chain
    endpoint: Endpoint
    signer: Signer
    memory: Memory
    treasury: bytes
    cursor: int
    fees: Fees
    gas: Account
    began_at: datetime
    paused: bool

    @property
    def gas_address(self) -> bytes:
        return self.signer.gas_account.address

    def deposit_account(self, address: bytes, branch: int, index: int) -> SigningAccount:
        """The keys of a deposit address. Raises ConfigError when they are of another wallet than the address."""
        account = self.signer.account(branch, index)
        if account.address != address:
            raise ConfigError(
                f"the private key is of another wallet than the xpub that {checksum(address)} was made from"
            )
        return account

    @property
    def stuck_s(self) -> float:
        """After how long an unmined transaction is replaced; not before it was sent a second time."""
        polls_s = limits.SWEEP_STUCK_POLLS * self.chain.poll_interval_s
        rounds_s = limits.SWEEP_STUCK_ROUNDS * self.chain.sweep.interval_s
        return min(limits.SWEEP_STUCK_S, max(limits.SWEEP_REBROADCAST_S, polls_s, rounds_s))

    @property
    def ceiling_wei(self) -> int | None:
        """The most that a gas may cost."""
        ceiling = self.chain.sweep.max_fee_gwei
        return None if ceiling is None else int(ceiling * _WEI_PER_GWEI)

    def too_dear(self) -> str | None:
        """Why the round waits for a lower fee; None when it does not."""
        now_wei = self.fees.now_wei
        if self.ceiling_wei is None or now_wei <= self.ceiling_wei:
            return None
        return f"the fee is {gwei(now_wei)} gwei, above max_fee_gwei {gwei(self.ceiling_wei)}"

    def capped(self, fees: Fees, overdue: bool = False) -> Fees:
        """`fees` under the ceiling, which money that has waited for max_wait may pass."""
        if self.ceiling_wei is None or overdue or fees.max_wei <= self.ceiling_wei:
            return fees
        return replace(fees, max_wei=self.ceiling_wei, priority_wei=min(fees.priority_wei, self.ceiling_wei))

    def affordable_fees(self) -> Fees:
        """Today's under the ceiling; above it only what is overdue is planned at all."""
        return self.capped(self.fees, overdue=self.too_dear() is not None)

    def overdue(self, since: datetime) -> bool:
        """Whether what waits since then has waited for `max_wait`."""
        longest_s = self.chain.sweep.max_wait_s
        return longest_s is not None and (self.began_at - since).total_seconds() > longest_s


def gwei(wei: int) -> str:
    return f"{(Decimal(wei) / _WEI_PER_GWEI).normalize():f}"


async def open_round(context: Context, chain: Chain, endpoint: Endpoint, signer: Signer, memory: Memory) -> Round:
    """A round at the node's head. Raises NotReadyError, NodeError; NodeBehindError when the node lacks our cursor."""
    treasury = chain.sweep.treasury
    if treasury is None:
        raise ConfigError(f"chain {chain.name!r} has no sweep.treasury")
    async with context.db.read() as session:
        state = await chains.get_state(session, chain.chain_id)
        paused = await pauses.sweeping_paused(session, chain.name)
    if state is None or state.halt_code is not None:
        raise NotReadyError("the chain is halted" if state else "the chain was not scanned yet")
    await require_same_chain(context, chain, endpoint)
    at_cursor = await fetch_header(endpoint, state.last_scanned_block)
    if at_cursor.hash != state.last_scanned_hash:
        raise NodeBehindError(f"the node has another block {at_cursor.number} than the one that was scanned")
    fees = await read_fees(endpoint)
    address = signer.gas_account.address
    accounts = await read_accounts(endpoint, [address])
    return Round(
        context=context,
        chain=chain,
        endpoint=endpoint,
        signer=signer,
        memory=memory,
        treasury=treasury,
        cursor=state.last_scanned_block,
        fees=fees,
        gas=accounts[address],
        began_at=utc_now(),
        paused=paused,
    )


async def ensure_lane(round_: Round) -> None:
    """The gas account's lane is there before the first coin leaves the account: the listener knows it by that."""
    chain_id = round_.chain.chain_id
    async with round_.context.db.read() as session:
        lanes = await sweeps.gas_lanes(session)
    if (chain_id, round_.gas_address) not in {(lane.chain_id, lane.account) for lane in lanes}:
        async with round_.context.db.write() as session:
            await sweeps.add_lane(session, chain_id, round_.gas_address, is_deposit=False, nonce=round_.gas.nonce)
