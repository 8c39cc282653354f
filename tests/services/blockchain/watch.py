"""A Paywatch without its workers: one chain on Anvil, one merchant, and steps that a test takes by hand."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

from sqlalchemy import select, update
from sqlalchemy.ext.asyncio import AsyncSession

from app.blockchain.wallet import AddressDeriver, account_xpub
from app.core.chains import Chain, load_chains
from app.core.clock import utc_now
from app.core.config import Settings
from app.core.evm import NATIVE_ASSET
from app.db.base import Base
from app.db.models import BlockHeader, ChainState, Event, Merchant, Payment, PaymentOption, Transaction, WebhookDelivery
from app.db.repositories import merchants
from app.services import payments
from app.services.blockchain.chains import ChainCheck, prepare
from app.services.blockchain.scanner import StepOutcome, step
from app.services.context import Context, open_context
from app.services.defaults import defaults_of
from app.services.ledger import Cause
from app.services.merchants import ensure_first_merchant
from app.services.payments import NewPayment
from app.services.views import PaymentView
from tests.support.anvil import MNEMONIC, Anvil
from tests.support.secrets import SECRET_KEY

TRANSFER_TOPIC = "0xddf252ad1be2c89b69c2b068fc378daa952ba7f163c4a11628f55a4df523b3ef"
STEPS_MAX = 300  # of one scan: a scanner that never comes to rest is a failure
CONFIRMATIONS = 3


@cache
def known_xpub(words: str) -> str:
    """Derived once: each test needs it, for a thirtieth of a second."""
    return account_xpub(words)


@cache
def deriver() -> AddressDeriver:
    return AddressDeriver(known_xpub(MNEMONIC))


def chain_yaml(url: str, tokens: dict[str, str], decimals: int, **changed: Any) -> str:
    values = {
        "name": "devnet",
        "chain_id": 31337,
        "rpc_urls": [url],
        "confirmations_required": CONFIRMATIONS,
        "finality": {"depth": 64},
        "tokens": [{"symbol": symbol, "address": address, "decimals": decimals} for symbol, address in tokens.items()],
    }
    lines = [f"{name}: {value!s}" for name, value in (values | changed).items()]
    return "chains:\n  - " + "\n    ".join(lines) + "\n"


@dataclass
class Watch:
    """`tokens` are the configured ones by symbol."""

    context: Context
    chain: Chain
    anvil: Anvil
    tokens: dict[str, str]
    merchant_id: str = ""
    outcomes: list[StepOutcome] = field(default_factory=list)

    async def prepare(self) -> ChainCheck:
        return await prepare(self.context, self.chain)

    # --- the merchant

    async def create(self, token: str = "USDC", amount: str = "25", **changed: Any) -> PaymentView:
        return await self.create_wanted(
            NewPayment(
                chain="devnet", token=token, amount=amount, webhook_url="https://shop.example.com/hook", **changed
            )
        )

    async def create_wanted(self, wanted: NewPayment) -> PaymentView:
        async with self.context.db.read() as session:
            merchant = await session.get_one(Merchant, self.merchant_id)
        quoted = await payments.quote(self.context, defaults_of(merchant), wanted)
        created = await payments.create(self.context, deriver(), self.merchant_id, quoted, Cause("api_key", {}))
        assert isinstance(created, payments.Created)
        return created.view

    async def get(self, payment: PaymentView) -> PaymentView:
        async with self.context.db.read() as session:
            return await payments.get(self.context, session, self.merchant_id, payment.id)

    async def cancel(self, payment: PaymentView) -> None:
        async with self.context.db.write() as session:
            await payments.cancel(self.context, session, self.merchant_id, payment.id, Cause("api_key", {}))

    async def expire_at(self, payment: PaymentView, seconds_ago: float) -> None:
        """Set when it expires by our clock; a real one would have to be waited for."""
        moment = utc_now() - timedelta(seconds=seconds_ago)
        async with self.context.db.write() as session:
            await session.execute(update(Payment).where(Payment.id == payment.id).values(expires_at=moment))

    async def told(self, payment: PaymentView) -> str:
        """Its event types without their prefix, in order of version."""
        async with self.context.db.read() as session:
            query = select(Event.type).where(Event.payment_id == payment.id).order_by(Event.version)
            return " ".join(type_.removeprefix("payment.") for type_ in await session.scalars(query))

    # --- the customer

    async def pay(
        self, payment: PaymentView, units: int | None = None, *, payer: int = 1, token: str | None = None
    ) -> str:
        """Send what it asks for, or `units`, or another token; the transaction's hash. Not mined here."""
        units = int(payment.amount_units) if units is None else units
        symbol = token or payment.token
        if symbol == "ETH":
            return await self.anvil.send_ether(payer, payment.address, units)
        mint = (payment.address, units)
        return await self.anvil.transact(self.tokens[symbol], "mint(address,uint256)", *mint, sender_index=payer)

    async def raw(self, tx_hash: str) -> str:
        """The signed bytes of a transaction, to have it mined again elsewhere."""
        text: str = await self.anvil.rpc("eth_getRawTransactionByHash", tx_hash)
        return text

    # --- the scanner

    async def step(self) -> StepOutcome:
        outcome = await step(self.context, self.chain)
        self.outcomes.append(outcome)
        return outcome

    async def scan(self) -> None:
        """Steps until one finds nothing new; none may have a problem."""
        for _ in range(STEPS_MAX):
            outcome = await self.step()
            assert outcome.problem is None
            if not outcome.progressed:
                return
        raise AssertionError("the scanner never came to rest")

    async def mine_and_scan(self, blocks: int = 1) -> None:
        await self.anvil.mine(blocks)
        await self.scan()

    # --- what is stored

    async def rows(self, model: type[Base], *where: Any) -> list[Any]:
        async with self.context.db.read() as session:
            return list(await session.scalars(select(model).where(*where)))

    async def state(self) -> ChainState:
        [state] = await self.rows(ChainState)
        return state

    async def dump(self) -> dict[str, list[tuple[Any, ...]]]:
        """Every row of every table."""
        async with self.context.db.read() as session:
            return {
                table.name: sorted(map(tuple, await session.execute(select(table))), key=str)
                for table in Base.metadata.sorted_tables
            }

    async def audit(self, *, against_node: bool = True) -> None:
        """What must hold at any moment: history without a gap, amounts that add up, headers that link, the truth."""
        async with self.context.db.read() as session:
            await audit_payments(session)
            await audit_headers(session)
        if against_node:
            transfers = await self.rows(Transaction, Transaction.canonical)
            recorded = sorted(
                (row.block_hash, row.tx_index, row.position, row.recipient, row.asset, row.amount_units)
                for row in transfers
            )
            assert recorded == sorted(await self.truth())

    async def truth(self) -> list[tuple[bytes, int, str, bytes, bytes, int]]:
        """The transfers that the node's chain holds up to the cursor, read in another way than the scanner does."""
        async with self.context.db.read() as session:
            found = await session.scalars(select(Event.data).where(Event.type == "payment.created"))
            ours = {bytes.fromhex(data["address"][2:]) for data in found}
        state = await self.state()
        watched = {token.lower() for token in self.tokens.values()}
        transfers: list[tuple[bytes, int, str, bytes, bytes, int]] = []
        for number in range(state.first_block + 1, state.last_scanned_block + 1):
            block = await self.anvil.block(number, full=True)
            if not block["transactions"]:
                continue
            block_hash = bytes.fromhex(block["hash"][2:])
            for at, receipt in enumerate(await self.anvil.rpc("eth_getBlockReceipts", hex(number))):
                transaction = block["transactions"][at]
                if receipt["status"] == "0x1" and transaction["to"] is not None:
                    recipient, units = bytes.fromhex(transaction["to"][2:]), int(transaction["value"], 16)
                    transfers.append((block_hash, at, "tx", recipient, NATIVE_ASSET, units))
                for log in receipt["logs"]:
                    if log["address"].lower() in watched and log["topics"][0] == TRANSFER_TOPIC:
                        recipient, asset = bytes.fromhex(log["topics"][2][26:]), bytes.fromhex(log["address"][2:])
                        position = f"log:{int(log['logIndex'], 16)}"
                        transfers.append((block_hash, at, position, recipient, asset, int(log["data"], 16)))
        return [transfer for transfer in transfers if transfer[3] in ours and transfer[5] > 0]


async def audit_payments(session: AsyncSession) -> None:
    for payment in list(await session.scalars(select(Payment))):
        query = select(Event).where(Event.payment_id == payment.id).order_by(Event.version)
        events = list(await session.scalars(query))
        assert [event.version for event in events] == list(range(1, payment.version + 1))
        assert (events[-1].data["status"], events[-1].data["flags"]) == (payment.status, payment.flags)
        deliveries = select(WebhookDelivery.event_id).where(WebhookDelivery.payment_id == payment.id)
        assert sorted(await session.scalars(deliveries)) == sorted(event.id for event in events)
        counting = select(Transaction).where(Transaction.payment_id == payment.id, ~Transaction.set_aside)
        transfers = list(await session.scalars(counting))
        assert all(row.noted for row in transfers)
        for option in list(await session.scalars(select(PaymentOption).where(PaymentOption.payment_id == payment.id))):
            assert option.received_units == sum(
                row.amount_units
                for row in transfers
                if row.canonical and (row.chain_id, row.asset) == (option.chain_id, option.asset)
            )


async def audit_headers(session: AsyncSession) -> None:
    """The headers reach from below everything that can be undone to the cursor, each the child of the one before."""
    for state in list(await session.scalars(select(ChainState))):
        query = select(BlockHeader).where(BlockHeader.chain_id == state.chain_id).order_by(BlockHeader.number)
        headers = list(await session.scalars(query))
        assert (headers[-1].number, headers[-1].hash) == (state.last_scanned_block, state.last_scanned_hash)
        assert headers[0].number <= max(state.first_block, min(state.finalized_block, state.last_scanned_block))
        for parent, child in pairwise(headers):
            assert (child.number, child.parent_hash) == (parent.number + 1, parent.hash)


@asynccontextmanager
async def open_watch(
    db_url: str,
    folder: Path,
    anvil: Anvil,
    *,
    tokens: dict[str, str],
    decimals: int = 6,
    prepared: bool = True,
    rates: str = "",
    **changed: Any,
) -> AsyncIterator[Watch]:
    """A watch over a migrated database; `changed` are fields of the chain in chains.yaml, `rates` is a section of it.

    Many may share a database.
    """
    path = folder / "chains.yaml"
    path.write_text(chain_yaml(anvil.url, tokens, decimals, **changed) + rates)
    settings = Settings(
        _env_file=None,
        database_url=db_url,
        redis_url="redis://never-asked",
        secret_key=SECRET_KEY,
        xpub=known_xpub(MNEMONIC),
        public_url="https://pay.example.com",
    )
    chains = load_chains(path, {})
    context = open_context(settings, chains)
    watch = Watch(context, chains.chains[0], anvil, tokens)
    try:
        await ensure_first_merchant(context)
        async with context.db.read() as session:
            merchant = await merchants.first(session)
        assert merchant is not None
        watch.merchant_id = merchant.id
        if prepared:
            check = await watch.prepare()
            assert check.problem is None
        yield watch
    finally:
        await context.close()
