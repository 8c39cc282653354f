"""Goal: money on delegated addresses goes to the treasury and nowhere else, and no address holds up another."""

from collections.abc import Sequence

import pytest

from app.blockchain.collector import (
    DEPLOYER,
    Contracts,
    ContractsMissingError,
    WrongCodeError,
    supports_eip7702,
)
from app.blockchain.errors import FatalError
from app.blockchain.rpc import Endpoint
from app.blockchain.sending import estimate, read_accounts, token_balances
from app.blockchain.signer import Action, Authorization, Signer, SigningAccount
from app.blockchain.wallet import TOKEN_BRANCH
from app.blockchain.wire import RawReceipt
from app.core import limits
from app.core.evm import checksum, to_bytes20
from benchmarks import sweep_gas
from tests.support.anvil import Anvil, encode_call
from tests.support.node import ProxyNode
from tests.support.sending import send

ETHER = 10**18
TREASURY = bytes(19) + b"\x77"


@pytest.fixture
def contracts(signer: Signer) -> Contracts:
    return Contracts(signer.gas_account.address, TREASURY)


@pytest.fixture
def accounts(signer: Signer) -> list[SigningAccount]:
    return [signer.account(TOKEN_BRANCH, index) for index in range(4)]


class House:
    """A chain with the contracts in place, and a sponsor that can pay."""

    def __init__(self, anvil: Anvil, devnet: Endpoint, signer: Signer, contracts: Contracts) -> None:
        self.anvil, self.devnet, self.signer, self.contracts = anvil, devnet, signer, contracts

    async def token(self, name: str) -> bytes:
        return to_bytes20(await self.anvil.deploy(name, "USD Coin", "USDC", 6))

    async def mint(self, token: bytes, accounts: Sequence[SigningAccount], units: int) -> None:
        for account in accounts:
            await self.anvil.transact(checksum(token), "mint(address,uint256)", checksum(account.address), units)
        await self.anvil.mine()

    async def authorizations(self, accounts: Sequence[SigningAccount]) -> tuple[Authorization, ...]:
        before = await read_accounts(self.devnet, [account.address for account in accounts])
        return tuple(
            account.authorize(
                chain_id=self.anvil.chain_id, delegate=self.contracts.delegate, nonce=before[account.address].nonce
            )
            for account in accounts
            if before[account.address].delegate is None
        )

    async def collect(
        self, token: bytes, accounts: Sequence[SigningAccount], *, gas: int | None = None, less_gas: int = 0
    ) -> RawReceipt:
        data = self.contracts.collect_data(token, [each.address for each in accounts], limits.SWEEP_ITEM_GAS)
        action = Action(self.contracts.collector, data=data, authorizations=await self.authorizations(accounts))
        sponsor = self.signer.gas_account
        gas = gas or await estimate(self.devnet, sponsor.address, action)
        return await send(self.anvil, self.devnet, sponsor, action, gas=gas - less_gas)

    async def held(self, token: bytes, address: bytes) -> int:
        return (await token_balances(self.devnet, token, [address]))[address]


@pytest.fixture
async def house(anvil: Anvil, devnet: Endpoint, signer: Signer, contracts: Contracts) -> House:
    await anvil.set_balance(checksum(signer.gas_account.address), ETHER)
    for call in contracts.deploy_calls():
        await send(anvil, devnet, signer.gas_account, call)
    await contracts.verified(devnet)
    return House(anvil, devnet, signer, contracts)


# --- deployment


async def test_the_contracts_come_to_the_addresses_that_were_known_before(
    anvil: Anvil, devnet: Endpoint, signer: Signer, contracts: Contracts
) -> None:
    await anvil.set_balance(checksum(signer.gas_account.address), ETHER)
    assert await contracts.present(devnet) == frozenset()
    with pytest.raises(ContractsMissingError, match="paywatch contracts deploy"):
        await contracts.verified(devnet)
    first, second = contracts.deploy_calls()
    await send(anvil, devnet, signer.gas_account, first)
    present = await contracts.present(devnet)
    assert present == {contracts.collector}
    assert contracts.deploy_calls(present) == [second]
    await send(anvil, devnet, signer.gas_account, second)
    await contracts.verified(devnet)
    assert contracts.deploy_calls(await contracts.present(devnet)) == []
    assert [to_bytes20(await anvil.call(checksum(contracts.delegate), f"{name}()", returns="address"))
            for name in ("TREASURY", "COLLECTOR")] == [TREASURY, contracts.collector]  # fmt: skip
    sponsor = await anvil.call(checksum(contracts.collector), "SPONSOR()", returns="address")
    assert to_bytes20(sponsor) == signer.gas_account.address


def test_another_treasury_or_sponsor_is_another_contract(contracts: Contracts, signer: Signer) -> None:
    other_treasury = Contracts(signer.gas_account.address, bytes(19) + b"\x78")
    assert other_treasury.collector == contracts.collector
    assert other_treasury.delegate != contracts.delegate
    other_sponsor = Contracts(bytes(19) + b"\x79", TREASURY)
    assert {other_sponsor.collector, other_sponsor.delegate}.isdisjoint({contracts.collector, contracts.delegate})


async def test_other_code_at_an_address_is_never_delegated_to(house: House) -> None:
    other = Contracts(house.signer.gas_account.address, bytes(19) + b"\x78")
    code = await house.anvil.rpc("eth_getCode", checksum(house.contracts.delegate), "latest")
    # The very contract, with another treasury in it.
    await house.anvil.rpc("anvil_setCode", checksum(other.delegate), code)
    with pytest.raises(WrongCodeError):
        await other.verified(house.devnet)


async def test_a_chain_without_the_deployer_is_told_apart_from_one_not_deployed_to(
    anvil: Anvil, devnet: Endpoint, contracts: Contracts
) -> None:
    await anvil.rpc("anvil_setCode", checksum(DEPLOYER), "0x")
    with pytest.raises(WrongCodeError, match="CREATE2 deployer"):
        await contracts.verified(devnet)


# --- sweeping


@pytest.mark.parametrize(
    ("token_name", "arrives"),
    [("TestToken", 1_000), ("NoReturnToken", 1_000), ("FeeToken", 990), ("BlacklistToken", 1_000)],
)
async def test_every_kind_of_token_is_swept(
    house: House, accounts: list[SigningAccount], token_name: str, arrives: int
) -> None:
    token = await house.token(token_name)
    await house.mint(token, accounts, 1_000)
    assert (await house.collect(token, accounts)).status == "0x1"
    assert await house.held(token, TREASURY) == len(accounts) * arrives
    for account in accounts:
        assert await house.held(token, account.address) == 0


async def test_an_address_that_fails_holds_up_only_itself(house: House, accounts: list[SigningAccount]) -> None:
    token = await house.token("BlacklistToken")
    await house.mint(token, accounts, 1_000)
    listed, burner, *others = accounts
    await house.anvil.transact(checksum(token), "setBlacklisted(address,bool)", checksum(listed.address), True)
    # 0xfe takes all gas that it is given.
    await house.anvil.rpc("anvil_setCode", checksum(burner.address), "0xfe")
    receipt = await house.collect(token, [listed, burner, *others])
    assert receipt.status == "0x1"
    assert len(receipt.logs) == len(others)
    assert await house.held(token, TREASURY) == 1_000 * len(others)
    assert await house.held(token, listed.address) == 1_000


async def test_an_empty_address_costs_nobody_anything(house: House, accounts: list[SigningAccount]) -> None:
    token = await house.token("TestToken")
    await house.mint(token, accounts[1:], 1_000)
    receipt = await house.collect(token, accounts)
    assert (receipt.status, len(receipt.logs)) == ("0x1", len(accounts) - 1)


async def test_too_little_gas_undoes_the_batch_instead_of_failing_its_items(
    house: House, accounts: list[SigningAccount]
) -> None:
    token = await house.token("TestToken")
    await house.mint(token, accounts, 1_000)
    # Under the estimate there is no limit at which the last item starves and the transaction succeeds.
    assert (await house.collect(token, accounts, less_gas=20_000)).status == "0x0"
    assert await house.held(token, TREASURY) == 0
    assert (await house.collect(token, accounts)).status == "0x1"
    assert await house.held(token, TREASURY) == 4_000


async def test_an_authorization_that_somebody_else_sent_first_does_no_harm(
    house: House, accounts: list[SigningAccount]
) -> None:
    token = await house.token("TestToken")
    await house.mint(token, accounts, 1_000)
    stolen = await house.authorizations(accounts)
    data = house.contracts.collect_data(token, [each.address for each in accounts], limits.SWEEP_ITEM_GAS)
    thief = house.signer.account(TOKEN_BRANCH, 99)
    await house.anvil.set_balance(checksum(thief.address), ETHER)
    await send(house.anvil, house.devnet, thief, Action(bytes(20), authorizations=stolen))
    ours = Action(house.contracts.collector, data=data, authorizations=stolen)  # stale by now
    assert (await send(house.anvil, house.devnet, house.signer.gas_account, ours)).status == "0x1"
    assert await house.held(token, TREASURY) == 4_000


async def test_a_delegated_address_takes_plain_ether_and_can_still_send_it(
    house: House, accounts: list[SigningAccount]
) -> None:
    account, payee = accounts[0], bytes(19) + b"\x55"
    token = await house.token("TestToken")
    await house.mint(token, [account], 1_000)
    await house.collect(token, [account])
    contract_payer = await house.anvil.deploy("Forwarder")
    await house.anvil.transact(contract_payer, "pay(address)", checksum(account.address), value=ETHER)
    await house.anvil.mine()
    assert await house.anvil.balance(checksum(account.address)) == ETHER
    assert (await send(house.anvil, house.devnet, account, Action(payee, 5))).status == "0x1"
    assert await house.anvil.balance(checksum(payee)) == 5


# --- who may


async def test_only_the_sponsor_may_collect_and_only_the_collector_may_sweep(
    house: House, accounts: list[SigningAccount]
) -> None:
    token = await house.token("TestToken")
    await house.mint(token, accounts, 1_000)
    account, stranger = accounts[0], house.signer.account(TOKEN_BRANCH, 99)
    await send(
        house.anvil,
        house.devnet,
        house.signer.gas_account,
        Action(bytes(20), authorizations=await house.authorizations(accounts)),
    )
    collect = house.contracts.collect_data(token, [account.address], limits.SWEEP_ITEM_GAS)
    sweep = bytes.fromhex(encode_call("sweep(address)", checksum(token))[2:])
    tries = (
        (stranger, Action(house.contracts.collector, data=collect)),
        (stranger, Action(account.address, data=sweep)),
        (account, Action(account.address, data=sweep)),
        (house.signer.gas_account, Action(account.address, data=sweep)),
        (house.signer.gas_account, Action(account.address, data=b"\xde\xad\xbe\xef")),
    )
    for caller, action in tries:
        await house.anvil.set_balance(checksum(caller.address), ETHER)
        with pytest.raises(FatalError, match="revert"):
            await estimate(house.devnet, caller.address, action)
        assert (await send(house.anvil, house.devnet, caller, action, gas=400_000)).status == "0x0"
    assert await house.held(token, account.address) == 1_000


# --- capability and cost


async def test_a_chain_with_eip7702_is_known_by_an_estimate(anvil: Anvil, devnet: Endpoint) -> None:
    assert await supports_eip7702(devnet, anvil.chain_id)


async def test_a_chain_without_it_is_swept_by_topup(devnet: Endpoint) -> None:
    async with Anvil(extra_args=["--hardfork", "cancun"]) as old:
        endpoint = Endpoint(old.url)
        assert not await supports_eip7702(endpoint, old.chain_id)
        await endpoint.close()


@pytest.mark.parametrize("gas", [21_000, 90_000])  # the second where a transaction's data is paid in gas
async def test_a_node_that_overlooks_authorizations_does_not_support_them(anvil: Anvil, gas: int) -> None:
    async with ProxyNode(anvil.url, lambda _, answer: answer | {"result": hex(gas)}) as node:
        endpoint = Endpoint(node.url)
        assert not await supports_eip7702(endpoint, anvil.chain_id)
        await endpoint.close()


async def test_twenty_payments_cost_what_the_contract_promises(anvil: Anvil) -> None:
    gas = await sweep_gas.measure(anvil)
    assert gas.fresh / gas.baseline <= sweep_gas.FRESH_RATIO
    assert gas.again / gas.baseline <= sweep_gas.AGAIN_RATIO
