"""Goal: whatever a node says of a transaction, the sender learns what became of it: taken, known, used up, or refused.

`seen` is where a message is said: a file of the client's sources, or another project's list of them.
"""

from collections.abc import AsyncIterator
from typing import Any, NamedTuple

import pytest
from aiohttp import web

from app.blockchain.errors import FatalError, InvalidAnswerError, RateLimitedError, TransientError
from app.blockchain.fees import Fees, bumped, read_fees
from app.blockchain.rpc import Endpoint
from app.blockchain.sending import Account, Outcome, broadcast, estimate, read_accounts, token_balances
from app.blockchain.signer import Action, Signer, SigningAccount
from app.blockchain.wallet import NATIVE_BRANCH, TOKEN_BRANCH
from app.core import limits
from app.core.evm import checksum, to_bytes20
from tests.support.anvil import Anvil
from tests.support.node import ScriptedNode, failure, result

GWEI = 10**9
ETHER = 10**18
PAYEE = bytes(19) + b"\x55"


class Said(NamedTuple):
    client: str
    message: str
    code: int = -32000
    seen: str = ""


CHAINLINK = "smartcontractkit/chainlink core/chains/evm/client/errors.go"
GETH = "ethereum/go-ethereum core/txpool/errors.go, core/error.go"
ERIGON = "erigontech/erigon txnprovider/txpool/txpoolcfg/txpoolcfg.go"
BESU = "hyperledger/besu RpcErrorType.java"
BESU_DETAIL = "hyperledger/besu MainnetTransactionValidator.java"
NETHERMIND = "older releases, by " + CHAINLINK
ANVIL = "Anvil 1.7.1"

# fmt: off
SAID: dict[Outcome, list[Said]] = {
    Outcome.ALREADY_KNOWN: [
        Said("geth, reth, nethermind", "already known", seen=GETH),
        Said("geth of 2019, besu", "known transaction: 0xb0c1", seen=CHAINLINK),
        Said("besu", "Known transaction", seen=BESU),
        Said("erigon", "existing txn with same hash", seen=ERIGON),
        Said("erigon of 2023", "INTERNAL_ERROR: existing tx with same hash", seen="a relayer's list of messages"),
        Said("nethermind", "AlreadyKnown", -32010, seen=NETHERMIND),
        Said("anvil", "transaction already imported", -32003, seen=ANVIL),
        Said("openethereum", "Transaction with the same hash was already imported.", -32010, seen=CHAINLINK),
        Said("zkSync", "known transaction. transaction with hash 0xab is already in the system", 3, seen=CHAINLINK),
    ],
    Outcome.NONCE_TOO_LOW: [
        Said("geth, reth", "nonce too low: next nonce 8, tx nonce 7", seen=GETH),
        Said("nethermind", "OldNonce, Current nonce: 8, nonce of rejected tx: 7", -32010, seen=NETHERMIND),
        Said("besu", "Nonce too low", -32001, seen=BESU),
        Said("besu, in full", "transaction nonce 7 below sender account nonce 8", -32001, seen=BESU_DETAIL),
        Said("anvil", "nonce too low", -32003, seen=ANVIL),
        Said("arbitrum", "nonce too low: address 0x52, tx: 7 state: 8", seen=CHAINLINK),
        Said("openethereum", "Transaction nonce is too low. Try incrementing the nonce.", -32010, seen=CHAINLINK),
    ],
    Outcome.UNDERPRICED: [
        Said("geth, reth, nethermind", "replacement transaction underpriced", seen=GETH),
        Said("besu", "Replacement transaction underpriced", seen=BESU),
        Said("erigon", "could not replace existing tx", seen=ERIGON),
        Said("nethermind", "ReplacementNotAllowed", -32010, seen="NethermindEth/nethermind AcceptTxResult.cs"),
        Said("reth of 2023", "[0xab]: insufficient gas price to replace existing transaction.",
             seen="paradigmxyz/reth crates/transaction-pool/src/error.rs"),
        Said("openethereum", "Transaction gas price 5 is too low. There is another transaction with same nonce in the "
             "queue with gas price: 9. Try increasing the gas price.", -32010, seen=CHAINLINK),
    ],
    Outcome.FEE_TOO_LOW: [
        Said("geth, nethermind", "transaction underpriced", seen=GETH),
        Said("geth", "transaction underpriced: gas tip cap 1, minimum needed 1000000", seen=GETH),
        Said("erigon", "underpriced", seen=ERIGON),
        Said("erigon", "fee too low", seen=ERIGON),
        Said("geth, arbitrum", "max fee per gas less than block base fee: address 0x52, maxFeePerGas: 1 baseFee: 9",
             seen=CHAINLINK),
        Said("besu", "Gas price below current base fee", -32009, seen=BESU),
        Said("besu", "Gas price below configured minimum gas price", -32009, seen=BESU),
        Said("nethermind", "FeeTooLow, MaxFeePerGas too low. MaxFeePerGas: 1, BaseFee: 9", -32010, seen=NETHERMIND),
        Said("nethermind", "FeeTooLowToCompete", -32010, seen=NETHERMIND),
        Said("metis", "gas price too low: 1 wei, use at least tx.gasPrice = 9 wei", seen=CHAINLINK),
        Said("celo", "gasprice is less than gas price minimum floor", seen=CHAINLINK),
        Said("anvil", "max fee per gas less than block base fee", -32003, seen=ANVIL),
    ],
    Outcome.INSUFFICIENT_FUNDS: [
        Said("geth, nethermind", "insufficient funds for gas * price + value: address 0x52 have 1 want 9", seen=GETH),
        Said("geth", "insufficient funds for gas * price + value: balance 1, queued cost 2, tx cost 3, overshot 4",
             seen=GETH),
        Said("erigon", "insufficient funds", seen=ERIGON),
        Said("besu", "Upfront cost exceeds account balance", -32004, seen=BESU),
        Said("besu, in full", "transaction up-front cost 0x9 exceeds transaction sender account balance 0x1", -32004,
             seen=BESU_DETAIL),
        Said("nethermind", "InsufficientFunds, Account balance: 1, cumulative cost: 9", -32010, seen=NETHERMIND),
        Said("arbitrum", "not enough funds for gas", seen=CHAINLINK),
        Said("zkSync", "insufficient balance for transfer", seen=CHAINLINK),
        Said("anvil", "Insufficient funds for gas * price + value", -32003, seen=ANVIL),
    ],
    Outcome.NOT_NOW: [
        Said("geth", "txpool is full", seen="ethereum/go-ethereum core/txpool/legacypool"),
        Said("geth", "in-flight transaction limit reached for delegated accounts", seen=GETH),
        Said("geth", "gapped-nonce tx from delegated accounts", seen="ethereum/go-ethereum core/txpool/legacypool"),
        Said("geth", "authority already reserved", seen="ethereum/go-ethereum core/txpool/legacypool"),
        Said("geth", "future transaction tries to replace pending", seen="ethereum/go-ethereum core/txpool/legacypool"),
        Said("geth", "account limit exceeded: pooled 16 txs", seen=GETH),
        Said("erigon", "EIP-7702 transaction with authority already reserved", seen=ERIGON),
        Said("erigon", "pending sub-pool is full", seen=ERIGON),
        Said("besu", "Nonce too high", -32006, seen=BESU),
        Said("besu", "Transaction nonce is too distant from current sender nonce", seen=BESU),
        Said("nethermind", "NonceGap, Future nonce. Expected nonce: 7", -32010, seen=NETHERMIND),
        Said("arbitrum", "queue full", seen=CHAINLINK),
        Said("openethereum", "There are too many transactions in the queue. Your transaction was dropped due to limit. "
             "Try increasing the fee.", -32010, seen=CHAINLINK),
    ],
    Outcome.REJECTED: [
        Said("geth", "intrinsic gas too low: gas 20000, minimum needed 21000", seen=GETH),
        Said("geth", "exceeds block gas limit", seen=GETH),
        Said("geth", "tx fee (1.20 ether) exceeds the configured cap (1.00 ether)", seen=CHAINLINK),
        Said("geth", "invalid sender", seen=GETH),
        Said("besu", "Intrinsic gas exceeds gas limit", -32003, seen=BESU),
        Said("besu", "Wrong chainId", seen=BESU),
        Said("erigon", "gas limit is too high", seen=ERIGON),
        Said("arbitrum, in a contract's words", "execution reverted: already known, nonce too low", 3, "made up"),
    ],
}
# fmt: on


@pytest.fixture
def account(signer: Signer) -> SigningAccount:
    return signer.account(NATIVE_BRANCH, 30)  # none of Anvil's own


class Chooser:
    """A node that answers everything with one error."""

    def __init__(self) -> None:
        self.error = (0, "")
        self.http_status = 200


def answer(chooser: Chooser, call: Any) -> web.Response:
    return web.json_response(failure(call, *chooser.error), status=chooser.http_status)


@pytest.fixture
async def refusing() -> AsyncIterator[tuple[Endpoint, Chooser]]:
    chooser = Chooser()
    async with ScriptedNode(lambda call: answer(chooser, call)) as node:
        endpoint = Endpoint(node.url)
        yield endpoint, chooser
        await endpoint.close()


@pytest.mark.parametrize("outcome", SAID)
async def test_what_clients_say_is_read_as_what_it_means(refusing: tuple[Endpoint, Chooser], outcome: Outcome) -> None:
    endpoint, chooser = refusing
    for said in SAID[outcome]:
        chooser.error = (said.code, said.message)
        sent = await broadcast(endpoint, b"\x01")
        assert (sent.outcome, said) == (outcome, said)
        assert said.message[:40] in sent.reason


@pytest.mark.parametrize(
    ("code", "message", "error"),
    [
        (-32005, "rate limit exceeded", RateLimitedError),
        (429, "too many requests", RateLimitedError),
        (-32603, "internal error", TransientError),
        (-32000, "request timed out", TransientError),
    ],
)
async def test_where_the_node_says_nothing_of_the_transaction_nothing_is_known(
    refusing: tuple[Endpoint, Chooser],
    monkeypatch: pytest.MonkeyPatch,
    code: int,
    message: str,
    error: type[Exception],
) -> None:
    monkeypatch.setattr(limits, "RPC_ATTEMPTS", 1)
    endpoint, chooser = refusing
    chooser.error = (code, message)
    with pytest.raises(error):
        await broadcast(endpoint, b"\x01")


@pytest.mark.parametrize(
    ("http_status", "code", "message"),
    [
        (200, -32601, "the method eth_sendRawTransaction does not exist/is not available"),
        (401, -32000, "must be authenticated"),
        (403, -32000, "project is not allowed to send"),
        (404, -32000, "no such path"),
    ],
)
async def test_what_an_endpoint_does_not_serve_is_no_word_about_the_transaction(
    refusing: tuple[Endpoint, Chooser], http_status: int, code: int, message: str
) -> None:
    endpoint, chooser = refusing
    chooser.error, chooser.http_status = (code, message), http_status
    with pytest.raises(FatalError):
        await broadcast(endpoint, b"\x01")


async def test_a_node_that_names_another_hash_is_not_believed() -> None:
    async with ScriptedNode(lambda call: web.json_response(result(call, "0x" + "ab" * 32))) as node:
        endpoint = Endpoint(node.url)
        with pytest.raises(InvalidAnswerError):
            await broadcast(endpoint, b"\x01")
        await endpoint.close()


# --- with a real node


async def test_a_real_node_is_understood(anvil: Anvil, devnet: Endpoint, account: SigningAccount) -> None:
    await anvil.set_balance(checksum(account.address), ETHER)
    fees = await read_fees(devnet)

    def signed(nonce: int, priced: Fees = fees, value: int = 1, gas: int = 21_000) -> bytes:
        action = Action(PAYEE, value)
        return account.sign(action, chain_id=anvil.chain_id, nonce=nonce, gas=gas, fees=priced).raw

    async def outcome(raw: bytes) -> Outcome:
        return (await broadcast(devnet, raw)).outcome

    first = signed(0)
    assert await outcome(first) is Outcome.ACCEPTED
    assert await outcome(first) is Outcome.ALREADY_KNOWN
    assert await outcome(signed(0, value=2)) is Outcome.UNDERPRICED
    assert await outcome(signed(0, bumped(fees, fees), value=3)) is Outcome.ACCEPTED
    await anvil.mine()
    assert await anvil.balance(checksum(PAYEE)) == 3
    assert await outcome(first) is Outcome.NONCE_TOO_LOW
    assert await outcome(signed(1, value=ETHER)) is Outcome.INSUFFICIENT_FUNDS
    assert await outcome(signed(1, gas=20_000)) is Outcome.REJECTED
    await anvil.rpc("anvil_setNextBlockBaseFeePerGas", hex(500 * GWEI))
    await anvil.mine()
    assert await outcome(signed(1)) is Outcome.FEE_TOO_LOW


async def test_accounts_are_read_with_what_is_at_their_address(
    anvil: Anvil, devnet: Endpoint, account: SigningAccount, signer: Signer
) -> None:
    token = to_bytes20(await anvil.deploy("TestToken", "USD Coin", "USDC", 6))
    delegated = signer.account(TOKEN_BRANCH, 0).address
    await anvil.set_balance(checksum(account.address), 5)
    await anvil.rpc("anvil_setCode", checksum(delegated), "0xef0100" + "99" * 20)
    await anvil.rpc("anvil_setNonce", checksum(delegated), "0x7")
    await anvil.transact(checksum(token), "mint(address,uint256)", checksum(delegated), 11)
    await anvil.mine()
    wanted = [account.address, delegated, token, account.address]
    assert await read_accounts(devnet, wanted) == {
        account.address: Account(nonce=0, balance_wei=5, delegate=None, has_other_code=False),
        delegated: Account(nonce=7, balance_wei=0, delegate=b"\x99" * 20, has_other_code=False),
        token: Account(nonce=1, balance_wei=0, delegate=None, has_other_code=True),
    }
    assert await token_balances(devnet, token, [delegated, account.address]) == {delegated: 11, account.address: 0}
    assert await read_accounts(devnet, []) == {}


async def test_an_estimate_knows_the_recipients_code_and_a_revert(
    anvil: Anvil, devnet: Endpoint, account: SigningAccount
) -> None:
    await anvil.set_balance(checksum(account.address), ETHER)
    wallet = await anvil.deploy("Forwarder")  # takes no plain ether
    assert await estimate(devnet, account.address, Action(PAYEE, 1)) == 21_000
    with pytest.raises(FatalError):
        await estimate(devnet, account.address, Action(to_bytes20(wallet), 1))
