"""All that is known of one payment, for whoever has to find out what became of it."""

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from app.core import limits
from app.core.errors import NotFound
from app.db.repositories import addresses, merchants
from app.db.repositories import payments as payment_rows
from app.services import deliveries, events, payments, sweep_log
from app.services.context import Context
from app.services.deliveries import DeliveryView
from app.services.sweep_log import SweepView
from app.services.views import PaymentView, View

Row = TypeVar("Row")


class ChangeView(View):
    """One event without the payment as it was then, but for its status."""

    id: str
    type: str
    version: int
    created_at: str
    status: str
    cause: dict[str, Any]


class Dossier(View):
    """`address_path`: where the address's key is in the wallet. Events, deliveries and sweeps begin with the oldest."""

    merchant: str
    address_path: str
    payment: PaymentView
    events: list[ChangeView]
    deliveries: list[DeliveryView]
    sweeps: list[SweepView]


async def dossier(context: Context, payment_id: str) -> Dossier:
    """A payment of any merchant with its events, deliveries and sweeps. Raises NotFound."""
    async with context.db.read() as session:
        owner = await payment_rows.merchant_of(session, payment_id)
        merchant = None if owner is None else await merchants.get(session, owner)
        if merchant is None:
            raise NotFound(f"there is no payment {payment_id!r}")
        payment = await payments.get(context, session, merchant.id, payment_id)
        branch, index = await addresses.place_of(session, bytes.fromhex(payment.address[2:]))
        told = await _all(
            lambda after: events.list_of_payment(session, merchant.id, payment_id, after or 0, limits.PAGE_MAX)
        )
        sent = await _all(
            lambda before: deliveries.list_deliveries(
                session, merchant.id, None, payment_id, None, before, limits.PAGE_MAX
            )
        )
        swept = await _all(
            lambda before: sweep_log.list_page(session, merchant.id, None, payment_id, before, limits.PAGE_MAX)
        )
    return Dossier(
        merchant=merchant.name,
        address_path=f"m/44'/60'/0'/{branch}/{index}",
        payment=payment,
        events=[
            ChangeView(
                id=each.id,
                type=each.type,
                version=each.version,
                created_at=each.created_at,
                status=each.data.status,
                cause=each.cause,
            )
            for each in told
        ],
        deliveries=sent[::-1],
        sweeps=swept[::-1],
    )


async def _all(page: Callable[[Any], Awaitable[tuple[list[Row], Any]]]) -> list[Row]:
    """Every page's rows; `page` takes where the page before it ended, None at first."""
    rows: list[Row] = []
    at: Any = None
    while True:
        found, at = await page(at)
        rows += found
        if at is None:
            return rows
