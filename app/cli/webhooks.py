"""`paywatch webhooks`"""

import asyncio
import contextlib
from datetime import datetime
from typing import Annotated

import typer

from app.cli.change import Consent, DryRun, Reason, Yes, operator_name
from app.cli.installation import opened
from app.cli.listen import Listener
from app.cli.times import parse_time
from app.core import limits
from app.core.clock import rfc3339
from app.core.config import load_settings
from app.core.logger import get_logger
from app.services import deliveries, pauses
from app.services.context import Context
from app.services.merchants import named, webhook_secret

MerchantOption = Annotated[str | None, typer.Option(help="Whose secret; by default the first merchant's.")]

app = typer.Typer(help="What receivers of webhooks need, and sending.", no_args_is_help=True)
log = get_logger(__name__)


@app.command()
def secret(merchant: MerchantOption = None) -> None:
    """Print the signing secret of webhooks that go to a payment's own webhook_url.

    An endpoint made over the API has a secret of its own, shown when it was made.
    """
    print(asyncio.run(_secret(merchant)))


@app.command()
def listen(
    port: Annotated[int, typer.Option(min=0, max=65_535, help="0: any that is free")] = 9000,
    host: str = "127.0.0.1",
    given: Annotated[
        str,
        typer.Option("--secret", envvar="WEBHOOK_SECRET", help="whsec_…, of an endpoint; default: as `secret` prints"),
    ] = "",
    merchant: MerchantOption = None,
) -> None:
    """Receive webhooks: verify each signature, and print what came. For trying things out; stop it with Ctrl-C.

    The gateway must be allowed to reach it: PAYWATCH_WEBHOOK_ALLOW_NETWORKS=127.0.0.0/8.
    """
    configured = load_settings().webhook_secret if merchant is None else None  # the first merchant's
    key = given or (configured.get_secret_value() if configured is not None else asyncio.run(_secret(merchant)))
    with Listener(host, port, key, lambda line: print(line, flush=True)) as receiver:
        print(f"Listening on {receiver.url}", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            receiver.serve_forever()


@app.command()
def pause(reason: Reason, dry_run: DryRun = False, yes: Yes = False) -> None:
    """Send no webhook any more, until `resume`: what happens is kept to be sent, and no attempt is counted."""
    asyncio.run(_pause(reason, Consent(dry_run, yes)))


@app.command()
def resume(dry_run: DryRun = False, yes: Yes = False) -> None:
    """Send webhooks again, all that waited; the pause counts for nothing in how long a receiver has been failing."""
    asyncio.run(_resume(Consent(dry_run, yes)))


@app.command()
def replay(
    delivery_id: Annotated[str | None, typer.Argument(help="One delivery, dlv_…, whatever became of it.")] = None,
    since: Annotated[
        datetime | None, typer.Option(parser=parse_time, help="Instead: all that are dead and were made since then.")
    ] = None,
    merchant: Annotated[str | None, typer.Option(help="With --since: one merchant's, by name.")] = None,
    again: Annotated[bool, typer.Option("--again", help="Also a delivery that was delivered.")] = False,
    dry_run: DryRun = False,
    yes: Yes = False,
) -> None:
    """Send deliveries again under their old ids. Those of disabled and deleted endpoints stay as they are."""
    if (delivery_id is None) == (since is None):
        raise typer.BadParameter("give either a delivery's id or --since")
    consent = Consent(dry_run, yes)
    if delivery_id is not None:
        asyncio.run(_replay_one(delivery_id, again, consent))
    elif since is not None:
        asyncio.run(_replay_dead(since, merchant, consent))


async def _pause(reason: str, consent: Consent) -> None:
    async with opened() as context:
        found = (await pauses.active(context)).get(pauses.WEBHOOKS)
        if found is not None:
            print(f"nothing to do: webhooks: {found.told}")
        elif consent.to("send no webhook any more"):
            made = await pauses.pause(context, pauses.WEBHOOKS, reason, operator_name())
            print("webhooks are paused" if made else "nothing to do: webhooks were paused meanwhile")


async def _resume(consent: Consent) -> None:
    async with opened() as context:
        if pauses.WEBHOOKS not in await pauses.active(context):
            print("nothing to do: webhooks are not paused")
        elif consent.to("send webhooks again"):
            await pauses.resume(context, pauses.WEBHOOKS, operator_name())
            print("webhooks are sent again")


async def _replay_one(delivery_id: str, again: bool, consent: Consent) -> None:
    async with opened() as context:
        async with context.db.read() as session:
            found = await deliveries.find(session, delivery_id)
        if found.status == "delivered" and not again:
            print(f"nothing to do: {delivery_id} was delivered at {found.delivered_at}; --again sends it once more")
        elif found.status == "pending" and found.manual:
            print(f"nothing to do: {delivery_id} is to be sent again already")
        elif consent.to(f"send {delivery_id}, which is {found.status}, again"):
            async with context.db.write() as session:
                await deliveries.replay(session, found.merchant_id, delivery_id)
            log.warning("webhook replayed by an operator", delivery=delivery_id, operator=operator_name())
            print(f"{delivery_id} is sent again")


async def _replay_dead(since: datetime, merchant: str | None, consent: Consent) -> None:
    async with opened() as context:
        async with context.db.read() as session:
            owners = await named(session, merchant)
            dead = {id_: await deliveries.count_dead(session, id_, since) for id_ in owners}
        if not any(dead.values()):
            print(f"nothing to do: no dead delivery since {rfc3339(since)} can be sent again")
            return
        counts = ", ".join(f"{count} of {owners[id_]}" for id_, count in dead.items() if count)
        if not consent.to(f"send dead deliveries since {rfc3339(since)} again: {counts}"):
            return
        for id_, name in owners.items():
            count = await _replay_all(context, id_, since) if dead[id_] else 0
            if count:
                log.warning("webhooks replayed by an operator", merchant=id_, count=count, operator=operator_name())
                print(f"{count} deliveries of {name} are sent again")


async def _replay_all(context: Context, merchant_id: str, since: datetime) -> int:
    total = 0
    while True:
        async with context.db.write() as session:
            replayed = (await deliveries.replay_dead(session, merchant_id, since, None)).replayed
        total += replayed
        if replayed < limits.WEBHOOK_REPLAY_ROWS:
            return total


async def _secret(merchant: str | None) -> str:
    async with opened() as context:
        return await webhook_secret(context, merchant)
