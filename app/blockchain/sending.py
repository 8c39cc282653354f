"""What signing needs to know of accounts, what a transaction will take, and what a node says when it is given one."""

import re
from collections.abc import Collection
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final

from eth_utils.crypto import keccak

from app.blockchain.balances import fetch_token_balances
from app.blockchain.errors import FatalError, InvalidAnswerError, MethodMissingError, NodeError
from app.blockchain.rpc import Call, Endpoint
from app.blockchain.signer import Action, Authorization
from app.blockchain.wire import to_bytes, to_int
from app.core.evm import hex0x

_DELEGATION: Final = bytes.fromhex("ef0100")  # and 20 bytes of address are the code of a delegated account (EIP-7702)


@dataclass(frozen=True, slots=True)
class Account:
    """An address at the head. `delegate`: whose code it has by EIP-7702; `has_other_code`: it is a contract."""

    nonce: int
    balance_wei: int
    delegate: bytes | None
    has_other_code: bool


class Outcome(Enum):
    """What a node made of a transaction, by what it means to the sender."""

    ACCEPTED = "accepted"
    ALREADY_KNOWN = "already known"  # in the pool, or mined just now
    NONCE_TOO_LOW = "nonce too low"  # that nonce is used: by this transaction or by another one
    UNDERPRICED = "underpriced"  # another transaction has the nonce, and this one does not pay enough more
    FEE_TOO_LOW = "fee too low"  # under the base fee, or the node's least tip
    INSUFFICIENT_FUNDS = "insufficient funds"
    NOT_NOW = "not now"  # a full pool, an earlier nonce is missing, a delegated account's one place is taken
    REJECTED = "rejected"  # for a reason that neither time nor money changes


@dataclass(frozen=True, slots=True)
class Sent:
    """The outcome of a broadcast, and the node's words (no secret in them); empty when it was accepted."""

    outcome: Outcome
    reason: str = ""


# Real messages, which tests/blockchain/test_sending.py lists with who says them. The first match wins: what names two
# things (a replacement that is underpriced) comes before what names one.
_TABLE: Final[tuple[tuple[Outcome, str], ...]] = (
    # Chains that run a transaction before they take it: a contract chooses the words of its revert.
    (Outcome.REJECTED, r"execution reverted|vm exception|vm execution error"),
    (Outcome.ALREADY_KNOWN, r"already ?(known|imported|exists|in the (pool|system|mempool))|known transaction"),
    (Outcome.ALREADY_KNOWN, r"existing txn? with same hash|same hash was already imported"),
    (Outcome.NOT_NOW, r"nonce (is )?too (high|distant|far)|nonce ?gap|future (nonce|transaction)|gapped|in-flight"),
    (Outcome.NOT_NOW, r"already reserved|higher than account nonce|DelegatorHasPendingTx|NotCurrentNonceForDelegation"),
    (Outcome.NONCE_TOO_LOW, r"nonce (is )?too low|oldnonce|below sender account nonce|invalid transaction nonce"),
    (Outcome.UNDERPRICED, r"replacement transaction (is )?underpriced|replacement ?(fee too low|not ?allowed)"),
    (Outcome.UNDERPRICED, r"to replace existing|not replace existing|same nonce"),
    (Outcome.INSUFFICIENT_FUNDS, r"insufficient ?(funds|balance)|exceeds (transaction sender )?account balance"),
    (Outcome.INSUFFICIENT_FUNDS, r"not enough funds|overdraft|overshot"),
    (Outcome.NOT_NOW, r"(pool|queue) (is )?full|pool overflow|too many transactions|account limit exceeded"),
    (Outcome.FEE_TOO_LOW, r"underpriced|(fee|cap|price) ?(is )?too ?low|less than block base fee|tip (cap )?too low"),
    (Outcome.FEE_TOO_LOW, r"(price|fee|cap) (is )?(below|less than)|too low to compete"),
)
# Says nothing of the transaction either: a key that is gone, a plan that may not send, a path that is not there.
_NOT_SERVED: Final = re.compile(r"\S*: HTTP (401|403|404|405)\b")


async def broadcast(endpoint: Endpoint, raw: bytes) -> Sent:
    """Give a signed transaction to a node; the same bytes may be given any number of times.

    Raises NodeError where the node said nothing of the transaction (no answer, a rate limit, a method or a key that the
    endpoint does not serve): it may have it or not.
    """
    try:
        answer = await endpoint.call(str, "eth_sendRawTransaction", hex0x(raw))
    except NodeError as error:
        # Whatever its type: some nodes' codes for these mean something else to other nodes.
        outcome = _outcome(str(error))
        if outcome is not None:
            return Sent(outcome, str(error))
        about_endpoint = isinstance(error, MethodMissingError) or _NOT_SERVED.match(str(error))
        if isinstance(error, FatalError) and not about_endpoint:
            return Sent(Outcome.REJECTED, str(error))
        raise
    if answer is None or to_bytes(answer) != keccak(raw):
        raise InvalidAnswerError("eth_sendRawTransaction gave another hash")
    return Sent(Outcome.ACCEPTED)


async def estimate(endpoint: Endpoint, sender: bytes, action: Action) -> int:
    """Gas that the action would take at the head, authorizations applied; no allowance is added.

    Raises FatalError when it would revert, NodeError otherwise.
    """
    call: dict[str, Any] = {"from": hex0x(sender), "to": hex0x(action.to), "value": hex(action.value_wei)}
    if action.data:
        call["data"] = hex0x(action.data)
    if action.authorizations:
        call["authorizationList"] = [_wire(each) for each in action.authorizations]
    # Not every node's default: some count what is in their pool as done.
    answer = await endpoint.call(str, "eth_estimateGas", call, "latest")
    if answer is None:
        raise InvalidAnswerError("eth_estimateGas gave null")
    return to_int(answer)


async def read_accounts(endpoint: Endpoint, addresses: Collection[bytes]) -> dict[bytes, Account]:
    """Nonce, balance and code of each address at the head. Raises NodeError."""
    wanted = list(dict.fromkeys(addresses))
    methods = ("eth_getTransactionCount", "eth_getBalance", "eth_getCode")
    calls: list[Call] = [(method, [hex0x(address), "latest"]) for address in wanted for method in methods]
    answers = await endpoint.batch(str, calls)
    if None in answers:
        raise InvalidAnswerError("null for an account's nonce, balance or code")
    texts = [answer or "" for answer in answers]
    return {
        address: _account(to_int(texts[place]), to_int(texts[place + 1]), to_bytes(texts[place + 2]))
        for address, place in zip(wanted, range(0, len(texts), len(methods)), strict=True)
    }


async def fetch_nonce(endpoint: Endpoint, address: bytes, number: int) -> int:
    """An address's nonce after a block. Raises PrunedError where the node no longer has its state, NodeError."""
    answer = await endpoint.call(str, "eth_getTransactionCount", hex0x(address), hex(number))
    if answer is None:
        raise InvalidAnswerError("null for an account's nonce")
    return to_int(answer)


async def token_balances(endpoint: Endpoint, token: bytes, addresses: Collection[bytes]) -> dict[bytes, int]:
    """A token's `balanceOf` at the head, in base units. Raises NodeError."""
    return await fetch_token_balances(endpoint, token, addresses, None)


def _account(nonce: int, balance_wei: int, code: bytes) -> Account:
    delegated = len(code) == 23 and code.startswith(_DELEGATION)
    return Account(nonce, balance_wei, code[3:] if delegated else None, bool(code) and not delegated)


def _wire(authorization: Authorization) -> dict[str, str]:
    return {
        "chainId": hex(authorization.chain_id),
        "address": hex0x(authorization.delegate),
        "nonce": hex(authorization.nonce),
        "yParity": hex(authorization.y_parity),
        "r": hex(authorization.r),
        "s": hex(authorization.s),
    }


def _outcome(words: str) -> Outcome | None:
    return next((outcome for outcome, pattern in _TABLE if re.search(pattern, words, re.IGNORECASE)), None)
