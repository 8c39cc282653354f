"""`paywatch payments`: what became of one, and settling one whose money was taken out by hand."""

import asyncio
import json
import sys
from typing import Annotated, Any, Final

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from app.cli.change import Consent, DryRun, Reason, Yes, operator_name
from app.cli.installation import opened
from app.services.dossier import Dossier, dossier
from app.services.settlement import can_settle, mark_settled

PaymentId = Annotated[str, typer.Argument(help="Id of a payment, pay_….")]
NONE: Final = "–"
_WIDTH: Final = 400  # an address or hash that is cut short is of no use; a terminal wraps the line

app = typer.Typer(help="One payment, of any merchant.", no_args_is_help=True)


@app.command()
def show(
    payment_id: PaymentId, as_json: Annotated[bool, typer.Option("--json", help="As JSON, for programs.")] = False
) -> None:
    """Show all that is known: state, options, transactions, events with their causes, deliveries and sweeps."""
    found = asyncio.run(_dossier(payment_id))
    if as_json:
        print(found.model_dump_json(indent=2, ensure_ascii=True, by_alias=True))
        return
    _print(found)


@app.command("mark-settled")
def settle(payment_id: PaymentId, reason: Reason, dry_run: DryRun = False, yes: Yes = False) -> None:
    """Settle a confirmed payment whose money you took elsewhere than to the treasury; its merchant is told.

    Refused for any other payment, and while its address holds the money or a sweep of it is under way.
    """
    asyncio.run(_settle(payment_id, reason, Consent(dry_run, yes)))


async def _dossier(payment_id: str) -> Dossier:
    async with opened() as context:
        return await dossier(context, payment_id)


async def _settle(payment_id: str, reason: str, consent: Consent) -> None:
    async with opened() as context:
        if not await can_settle(context, payment_id):
            print(f"nothing to do: {payment_id} is settled already")
            return
        if consent.to(f"mark {payment_id} as settled and tell its merchant so"):
            await mark_settled(context, payment_id, reason, operator_name())
            print(f"{payment_id} is settled")


def _print(found: Dossier) -> None:
    console = Console(soft_wrap=True, width=None if sys.stdout.isatty() else _WIDTH)
    payment = found.payment
    flags = f" ({', '.join(payment.flags)})" if payment.flags else ""
    for line in (
        f"{payment.id}: {payment.status}{flags}, version {payment.version}",
        f"merchant {found.merchant}, order {payment.order_id or NONE}",
        f"address {payment.address} ({found.address_path})",
        f"created {payment.created_at}, expires {payment.expires_at}",
        f"detected {payment.detected_at or NONE}, confirmed {payment.confirmed_at or NONE}",
        f"settled {payment.settled_at or NONE}",
    ):
        console.print(Text(line))
    _table(
        console,
        "options",
        ("chain", "token", "asked", "received", "due", "confirmations required"),
        [
            (each.chain, each.token, each.amount, each.amount_received, each.amount_due, each.confirmations_required)
            for each in payment.options
        ],
    )
    _table(
        console,
        "transactions",
        ("chain", "token", "amount", "block", "confirmations", "status", "position", "transaction"),
        [
            (t.chain, t.token, t.amount, t.block_number, t.confirmations, t.status, t.position, t.tx_hash)
            for t in payment.transactions
        ],
    )
    _table(
        console,
        "money at the treasury",
        ("chain", "token", "amount", "block", "confirmations", "status", "sweep", "transaction"),
        [
            (s.chain, s.token, s.amount, s.block_number, s.confirmations, s.status, s.sweep_id, s.tx_hash)
            for s in payment.sweeps
        ],
    )
    _table(
        console,
        "events",
        ("version", "type", "status", "at", "cause"),
        [(each.version, each.type, each.status, each.created_at, json.dumps(each.cause)) for each in found.events],
    )
    _table(
        console,
        "deliveries",
        ("id", "type", "status", "attempts", "last answer", "next attempt", "to"),
        [
            (each.id, each.event_type, each.status, each.attempt_count, _answer(each), each.next_attempt_at, each.url)
            for each in found.deliveries
        ],
    )
    _table(
        console,
        "sweeps",
        ("id", "kind", "status", "nonce", "block", "error", "transaction"),
        [(s.id, s.kind, s.status, s.nonce, s.block_number, s.error, s.tx_hash) for s in found.sweeps],
    )


def _answer(delivery: Any) -> str | None:
    if not delivery.attempts:
        return None
    last = delivery.attempts[-1]
    return last.error or str(last.status_code)


def _table(console: Console, title: str, columns: tuple[str, ...], rows: list[tuple[Any, ...]]) -> None:
    console.print()
    if not rows:
        console.print(Text(f"no {title}"))
        return
    table = Table(*columns, title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for row in rows:
        table.add_row(*(Text(NONE if cell is None else str(cell)) for cell in row))
    console.print(table)
