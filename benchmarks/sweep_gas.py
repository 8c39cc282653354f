"""What it costs to bring twenty token payments to the treasury: EIP-7702, beside funding each address.

    python -m benchmarks.sweep_gas

A real EVM (Anvil) counts the gas, the same each time. Exits with 1 when a ratio of the contract is broken.
"""

import asyncio
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from pydantic import SecretStr

from app.blockchain.collector import Contracts
from app.blockchain.fees import read_fees
from app.blockchain.receipts import fetch_receipts
from app.blockchain.rpc import Endpoint
from app.blockchain.sending import Outcome, broadcast, estimate, read_accounts, token_balances
from app.blockchain.signer import Action, Signer, SigningAccount, token_transfer
from app.blockchain.wallet import TOKEN_BRANCH
from app.blockchain.wire import to_int
from app.core import limits
from app.core.evm import checksum, to_bytes20
from devnet.anvil import MNEMONIC, Anvil

FRESH_RATIO: Final = 0.62
AGAIN_RATIO: Final = 0.30

PAYMENTS: Final = 20
UNITS: Final = 25_000_000
ETHER: Final = 10**18
TREASURY: Final = bytes(19) + b"\x77"


@dataclass(frozen=True)
class Gas:
    """Gas of one payment, a twentieth of all that was used; `deploy` is of both contracts, once for a chain."""

    topup: float
    transfer: float
    fresh: float
    again: float
    deploy: int

    @property
    def baseline(self) -> float:
        return self.topup + self.transfer


class _Chain:
    """A chain with one token, whose treasury already has some: the first arrival at an address costs more."""

    def __init__(self, anvil: Anvil, endpoint: Endpoint) -> None:
        self.anvil = anvil
        self.endpoint = endpoint
        self.signer = Signer(SecretStr(MNEMONIC))
        self.sponsor = self.signer.gas_account
        self.contracts = Contracts(self.sponsor.address, TREASURY)
        self.token = b""

    async def prepare(self) -> None:
        await self.anvil.set_balance(checksum(self.sponsor.address), 100 * ETHER)
        self.token = to_bytes20(await self.anvil.deploy("TestToken", "USD Coin", "USDC", 6))
        await self.pay([TREASURY])

    async def pay(self, addresses: Sequence[bytes]) -> None:
        """A customer's payment to each."""
        for address in addresses:
            await self.anvil.transact(checksum(self.token), "mint(address,uint256)", checksum(address), UNITS)
        await self.anvil.mine()

    async def run(self, actions: Sequence[tuple[SigningAccount, Action]]) -> int:
        """Send all, mine them, and add up what they used."""
        fees = await read_fees(self.endpoint)
        accounts = await read_accounts(self.endpoint, [account.address for account, _ in actions])
        nonces = {address: account.nonce for address, account in accounts.items()}
        hashes = []
        for account, action in actions:
            gas = await estimate(self.endpoint, account.address, action)
            nonce = nonces[account.address]
            tx = account.sign(action, chain_id=self.anvil.chain_id, nonce=nonce, gas=gas, fees=fees)
            sent = await broadcast(self.endpoint, tx.raw)
            assert sent.outcome is Outcome.ACCEPTED, sent
            nonces[account.address] += 1
            hashes.append(tx.hash)
        await self.anvil.mine()
        used = 0
        for receipt in (await fetch_receipts(self.endpoint, hashes)).values():
            assert receipt is not None
            assert receipt.status == "0x1", receipt
            used += to_int(receipt.gasUsed or "")
        return used

    async def collect(self, accounts: Sequence[SigningAccount]) -> int:
        """One transaction that delegates those that are not and sweeps them all."""
        addresses = [account.address for account in accounts]
        before = await read_accounts(self.endpoint, addresses)
        authorizations = tuple(
            account.authorize(
                chain_id=self.anvil.chain_id,
                delegate=self.contracts.delegate,
                nonce=before[account.address].nonce,
            )
            for account in accounts
            if before[account.address].delegate is None
        )
        data = self.contracts.collect_data(self.token, addresses, limits.SWEEP_ITEM_GAS)
        action = Action(self.contracts.collector, data=data, authorizations=authorizations)
        return await self.run([(self.sponsor, action)])

    async def swept(self, payments: int) -> bool:
        """Whether the treasury has that many payments beside its first."""
        balances = await token_balances(self.endpoint, self.token, [TREASURY])
        return balances[TREASURY] == (1 + payments) * UNITS


async def measure(anvil: Anvil) -> Gas:
    """Sweep twenty fresh addresses, the same again, and twenty others by top-up, on a chain of their own."""
    endpoint = Endpoint(anvil.url)
    try:
        chain = _Chain(anvil, endpoint)
        await chain.prepare()
        deploy = await chain.run([(chain.sponsor, call) for call in chain.contracts.deploy_calls()])
        await chain.contracts.verified(endpoint)
        ours = [chain.signer.account(TOKEN_BRANCH, index) for index in range(PAYMENTS)]
        collected = []
        for _ in range(2):
            await chain.pay([account.address for account in ours])
            collected.append(await chain.collect(ours) / PAYMENTS)
        others = [chain.signer.account(TOKEN_BRANCH, index) for index in range(PAYMENTS, 2 * PAYMENTS)]
        await chain.pay([account.address for account in others])
        topup = await chain.run([(chain.sponsor, Action(account.address, ETHER // 100)) for account in others])
        transfer = await chain.run([(account, token_transfer(chain.token, TREASURY, UNITS)) for account in others])
        assert await chain.swept(3 * PAYMENTS), "not all that was paid is in the treasury"
    finally:
        await endpoint.close()
    fresh, again = collected
    return Gas(topup / PAYMENTS, transfer / PAYMENTS, fresh, again, deploy)


async def _measured() -> Gas:
    async with Anvil() as anvil:
        return await measure(anvil)


def main() -> int:
    gas = asyncio.run(_measured())
    print(f"\nsweep_gas: gas for each of {PAYMENTS} token payments, a plain ERC-20\n")
    rows = (
        ("top-up, then transfer", gas.baseline, None),
        ("EIP-7702, fresh addresses", gas.fresh, FRESH_RATIO),
        ("EIP-7702, addresses swept before", gas.again, AGAIN_RATIO),
    )
    broken = 0
    for way, used, limit in rows:
        ratio = used / gas.baseline
        verdict = "" if limit is None else f"  (at most {limit:.2f})"
        broken += limit is not None and ratio > limit
        print(f"  {way:<34}{used:>10,.0f}{ratio:>8.3f}{verdict}")
    print(
        f"\n  top-up {gas.topup:,.0f}, transfer {gas.transfer:,.0f}; both contracts, once for a chain: {gas.deploy:,}"
    )
    if broken:
        print("  BROKEN: a ratio is over its limit")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
