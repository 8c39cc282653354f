"""Goal: a transaction is priced for its chain, a replacement always replaces, and what was paid is what counts."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web
from hypothesis import given, settings
from hypothesis import strategies as st

from app.blockchain.errors import InvalidAnswerError
from app.blockchain.fees import Fees, add_prices, bumped, l1_fee_wei, paid_wei, read_fees
from app.blockchain.rpc import Endpoint
from app.blockchain.signer import Action, Signer
from app.blockchain.wallet import NATIVE_BRANCH
from app.blockchain.wire import RawReceipt
from app.core.evm import checksum
from tests.support.anvil import Anvil
from tests.support.node import ScriptedNode, answered, failure, result
from tests.support.sending import send

GWEI = 10**9
wei = st.integers(min_value=0, max_value=10**15)


@pytest.fixture
async def says() -> AsyncIterator[Any]:
    """Makes an endpoint of a node that knows these methods, and no others."""
    endpoints: list[Endpoint] = []
    nodes: list[ScriptedNode] = []

    async def node(**known: Any) -> Endpoint:
        def script(call: Any) -> web.Response:
            missing = failure(call, -32601, "the method does not exist")
            return web.json_response(result(call, known[call["method"]]) if call["method"] in known else missing)

        nodes.append(await ScriptedNode(script).__aenter__())
        endpoints.append(Endpoint(nodes[-1].url))
        return endpoints[-1]

    yield node
    for endpoint in endpoints:
        await endpoint.close()
    for each in nodes:
        await each.stop()


async def test_the_cap_leaves_room_for_the_base_fee_to_double(says: Any) -> None:
    block = {"number": "0x1", "baseFeePerGas": hex(30 * GWEI)}
    node = await says(eth_getBlockByNumber=block, eth_maxPriorityFeePerGas=hex(2 * GWEI))
    fees = await read_fees(node)
    assert fees == Fees(30 * GWEI, 2 * GWEI, 62 * GWEI)
    assert fees.expected_wei == 32 * GWEI


async def test_a_node_that_suggests_no_tip_is_asked_for_its_gas_price(says: Any) -> None:
    block = {"number": "0x1", "baseFeePerGas": hex(30 * GWEI)}
    assert await read_fees(await says(eth_getBlockByNumber=block, eth_gasPrice=hex(31 * GWEI))) == Fees(
        30 * GWEI, GWEI, 61 * GWEI
    )
    # A gas price from before the base fee rose is no tip, and no debt either.
    assert (await read_fees(await says(eth_getBlockByNumber=block, eth_gasPrice=hex(GWEI)))).priority_wei == 0


async def test_a_chain_without_base_fee_has_a_gas_price(says: Any) -> None:
    fees = await read_fees(await says(eth_getBlockByNumber={"number": "0x1"}, eth_gasPrice=hex(5 * GWEI)))
    assert fees == Fees(None, 5 * GWEI, 5 * GWEI) == fees.exact()
    assert fees.expected_wei == 5 * GWEI


@settings(deadline=None)
@given(wei, wei, wei, wei, wei)
def test_a_replacement_pays_an_eighth_more_of_both_and_never_less_than_today(
    base: int, priority: int, fresh_base: int, fresh_priority: int, extra: int
) -> None:
    old = Fees(base, priority, base + priority + extra)
    fresh = Fees(fresh_base, fresh_priority, 2 * fresh_base + fresh_priority)
    for before, now in ((old, fresh), (old.exact(), fresh.exact())):
        new = bumped(before, now)
        assert new.base_wei == now.base_wei
        for was, today, becomes in (
            (before.priority_wei, now.priority_wei, new.priority_wei),
            (before.max_wei, now.max_wei, new.max_wei),
        ):
            assert 8 * becomes >= 9 * was
            assert becomes > was
            assert becomes >= today
        assert new.priority_wei <= new.max_wei  # else no node takes it
    assert bumped(old.exact(), fresh.exact()).priority_wei == bumped(old.exact(), fresh.exact()).max_wei


async def test_at_an_exact_price_all_of_the_coin_arrives_but_the_fee(
    anvil: Anvil, devnet: Endpoint, signer: Signer
) -> None:
    account, payee, balance = signer.account(NATIVE_BRANCH, 3), bytes(19) + b"\x55", 10**16 + 7
    await anvil.set_balance(checksum(account.address), balance)
    fees = (await read_fees(devnet)).exact()
    value = balance - 21_000 * fees.max_wei
    receipt = await send(anvil, devnet, account, Action(payee, value), gas=21_000, fees=fees)
    assert await anvil.balance(checksum(account.address)) == 0
    assert await anvil.balance(checksum(payee)) == value == balance - paid_wei(receipt)


async def test_an_op_stack_chain_takes_a_fee_for_the_bytes_and_others_none(anvil: Anvil, devnet: Endpoint) -> None:
    raw = b"\x02" * 70
    assert await l1_fee_wei(devnet, raw) == 0
    # Answers every call with the size of its calldata.
    await anvil.rpc("anvil_setCode", "0x420000000000000000000000000000000000000F", "0x365f5260205ff3")
    assert await l1_fee_wei(devnet, raw) == 4 + 2 * 32 + 96


def test_what_was_paid_is_gas_at_its_price_and_the_fee_for_the_bytes() -> None:
    receipt = RawReceipt(
        transactionHash="0x01",
        blockHash="0x02",
        blockNumber="0x1",
        gasUsed="0x5208",
        effectiveGasPrice="0x3",
        l1Fee="0x10",
    )
    assert paid_wei(receipt) == 21_000 * 3 + 16
    receipt.l1Fee = None
    assert paid_wei(receipt) == 63_000
    receipt.effectiveGasPrice = None
    with pytest.raises(InvalidAnswerError):
        paid_wei(receipt)


@pytest.mark.parametrize(
    ("told", "price"),
    [
        ({"hash": "0x01", "gasPrice": "0x3"}, "0x3"),
        ({"hash": "0x02", "gasPrice": "0x3"}, None),
        ({"hash": "0x01"}, None),
        (None, None),
    ],
)
async def test_a_price_that_a_receipt_lacks_is_that_of_its_own_transaction(
    told: dict[str, str] | None, price: str | None
) -> None:
    receipt = RawReceipt(transactionHash="0x01", blockHash="0x02", blockNumber="0x1")
    whole = RawReceipt(transactionHash="0x02", blockHash="0x02", blockNumber="0x1", effectiveGasPrice="0x5")
    async with ScriptedNode(lambda payload: answered(payload, lambda _call: told)) as node:
        endpoint = Endpoint(node.url)
        await add_prices(endpoint, [None, whole, receipt])
        await add_prices(endpoint, [None, whole])
        await endpoint.close()
        assert [call["params"] for call in node.calls("eth_getTransactionByHash")] == [["0x01"]]
    assert (receipt.effectiveGasPrice, whole.effectiveGasPrice) == (price, "0x5")
