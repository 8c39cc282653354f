"""A merchant's defaults: what a payment gets where it says nothing of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

from sqlalchemy.ext.asyncio import AsyncSession

from app.core import limits
from app.core.clock import rfc3339
from app.core.errors import FieldError, InvalidRequest
from app.core.money import MoneyError, Tolerance, parse_price, parse_tolerance
from app.db.models import Merchant
from app.db.repositories.merchants import KnownKey
from app.services.views import View


class Tier(View):
    """Payments worth `up_to` of `currency`, or less, need so many `confirmations`."""

    up_to: str
    currency: str
    confirmations: int


class MerchantView(View):
    """The merchant whose key it is, with its defaults; `confirmations_required` null means each chain's own."""

    id: str
    object: Literal["merchant"] = "merchant"
    name: str
    confirmations_required: int | None
    confirmation_tiers: list[Tier]
    expires_in: int
    tolerance: str
    created_at: str


@dataclass(frozen=True, slots=True)
class Defaults:
    """Of one merchant. Tiers are in the merchant's order; `confirmations_required` None means the chain's."""

    confirmations_required: int | None
    tiers: Sequence[Tier]
    expires_in_s: int
    tolerance: Tolerance

    @property
    def currencies(self) -> tuple[str, ...]:
        """Those that the tiers are told in."""
        return tuple(dict.fromkeys(tier.currency for tier in self.tiers))

    def confirmations(self, chains_own: int, worth: Mapping[str, Fraction]) -> int:
        """How many a payment needs that is `worth` so much, by currency as far as it is known.

        The first tier's currency that is known decides, by its lowest tier that reaches. Above all tiers, and where
        nothing is known, the most that any tier or the default asks: doubt costs time, never goods.
        """
        default = self.confirmations_required or chains_own
        for currency in self.currencies:
            if currency not in worth:
                continue
            reaching = [t for t in self.tiers if t.currency == currency and worth[currency] <= Fraction(t.up_to)]
            if reaching:
                return min(reaching, key=lambda tier: Fraction(tier.up_to)).confirmations
            break
        return max(default, *(tier.confirmations for tier in self.tiers)) if self.tiers else default


def defaults_of(row: Merchant | KnownKey) -> Defaults:
    """What the merchant's payments get, as it is stored."""
    return Defaults(
        confirmations_required=row.confirmations_required,
        tiers=[Tier.model_validate(tier) for tier in row.confirmation_tiers],
        expires_in_s=row.expires_in_s,
        tolerance=parse_tolerance(row.tolerance),
    )


async def get(session: AsyncSession, merchant_id: str) -> MerchantView:
    """The merchant as it sees itself."""
    return _view(await session.get_one(Merchant, merchant_id))


async def update(session: AsyncSession, merchant_id: str, changes: Mapping[str, Any]) -> MerchantView:
    """Change the defaults named in `changes`, as `MerchantView` names them; None brings the original value back.

    Payments that exist keep what they were created with. Raises InvalidRequest.
    """
    row = await session.get_one(Merchant, merchant_id, with_for_update=True)
    if "confirmations_required" in changes:
        row.confirmations_required = changes["confirmations_required"]
    if "confirmation_tiers" in changes:
        row.confirmation_tiers = [tier.model_dump() for tier in _checked_tiers(changes["confirmation_tiers"] or [])]
    if "expires_in" in changes:
        row.expires_in_s = changes["expires_in"] or limits.EXPIRES_IN_DEFAULT_S
    if "tolerance" in changes:
        row.tolerance = _checked_tolerance(changes["tolerance"] or "0")
    return _view(row)


def _checked_tiers(tiers: Sequence[Mapping[str, Any]]) -> list[Tier]:
    """Normalised, in their order. More money never needs fewer confirmations: that is a typing error."""
    checked: list[Tier] = []
    problems: list[FieldError] = []
    for index, tier in enumerate(tiers):
        path = f"confirmation_tiers.{index}"
        currency, confirmations = tier["currency"].upper(), tier["confirmations"]
        try:
            up_to = parse_price(tier["up_to"])
        except MoneyError as error:
            problems.append(FieldError(f"{path}.up_to", str(error)))
            continue
        for other in (each for each in checked if each.currency == currency):
            less, more = sorted([(Fraction(up_to), confirmations), (Fraction(other.up_to), other.confirmations)])
            if less[0] == more[0]:
                problems.append(FieldError(f"{path}.up_to", f"there is another tier up to {up_to} {currency}"))
            elif less[1] > more[1]:
                message = "a tier for more money must not ask for fewer confirmations"
                problems.append(FieldError(f"{path}.confirmations", message))
        checked.append(Tier(up_to=up_to, currency=currency, confirmations=confirmations))
    if problems:
        raise InvalidRequest("; ".join(f"{each.path}: {each.message}" for each in problems), problems)
    return checked


def _checked_tolerance(text: str) -> str:
    try:
        return str(parse_tolerance(text))
    except MoneyError as error:
        raise InvalidRequest(str(error), [FieldError("tolerance", str(error))]) from error


def _view(row: Merchant) -> MerchantView:
    return MerchantView(
        id=row.id,
        name=row.name,
        confirmations_required=row.confirmations_required,
        confirmation_tiers=[Tier.model_validate(tier) for tier in row.confirmation_tiers],
        expires_in=row.expires_in_s,
        tolerance=row.tolerance,
        created_at=rfc3339(row.created_at),
    )
