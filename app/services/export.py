"""The audit trail, all of it, page by page: memory does not grow with what is exported."""

import csv
import io
import json
from collections.abc import AsyncIterator
from datetime import datetime
from typing import Any, Final, Literal

from app.core import limits
from app.core.clock import rfc3339
from app.db.models import Event
from app.db.repositories import events
from app.services.context import Context
from app.services.merchants import named

ExportFormat = Literal["csv", "jsonl"]
COLUMNS: Final = (
    *("id", "created_at", "merchant_id", "type", "payment_id", "version", "cause", "reason", "status", "flags"),
    *("chain", "token", "amount", "amount_received", "address", "order_id"),
)
_FORMULA: Final = ("=", "+", "-", "@", "\t", "\r")  # what a spreadsheet would run


async def export_events(
    context: Context, form: ExportFormat, merchant: str | None, since: datetime | None, until: datetime
) -> AsyncIterator[str]:
    """Text of all events made from `since` on and before `until`, the oldest first, a page at a time.

    `merchant` is a name, None for all. CSV has one line for each event with the payment's main fields as they were
    then; JSON lines have all of it. Raises NotFound for a merchant that there is not.
    """
    async with context.db.read() as session:
        merchant_id = None if merchant is None else next(iter(await named(session, merchant)))
    if form == "csv":
        yield _line(COLUMNS)
    after_id = ""
    while True:
        async with context.db.read() as session:  # one for each page: no transaction lasts as long as the reader
            rows = await events.list_all(session, merchant_id, since, until, after_id, limits.EXPORT_ROWS)
        if not rows:
            return
        yield "".join(_csv(row) if form == "csv" else _json(row) for row in rows)
        after_id = rows[-1].id


def _json(row: Event) -> str:
    shown = {
        "id": row.id,
        "created_at": rfc3339(row.created_at),
        "merchant_id": row.merchant_id,
        "type": row.type,
        "payment_id": row.payment_id,
        "version": row.version,
        "cause": row.cause,
        "data": row.data,
    }
    return json.dumps(shown, ensure_ascii=False) + "\n"


def _csv(row: Event) -> str:
    data = row.data
    return _line(
        (
            row.id,
            rfc3339(row.created_at),
            row.merchant_id,
            row.type,
            row.payment_id,
            row.version,
            row.cause.get("kind"),
            row.cause.get("reason"),
            data.get("status"),
            " ".join(data.get("flags", ())),
            *(data.get(name) for name in COLUMNS[10:]),
        )
    )


def _line(cells: tuple[Any, ...]) -> str:
    line = io.StringIO()
    csv.writer(line).writerow([_plain(cell) for cell in cells])
    return line.getvalue()


def _plain(cell: Any) -> Any:
    """Text that a spreadsheet does not run: an order's id comes from a stranger's program."""
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(_FORMULA) else cell
