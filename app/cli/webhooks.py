"""`paywatch webhooks`"""

import asyncio
import contextlib
from typing import Annotated

import typer

from app.cli.installation import opened
from app.cli.listen import Listener
from app.core.config import load_settings
from app.services.merchants import webhook_secret

MerchantOption = Annotated[str | None, typer.Option(help="Whose secret; by default the first merchant's.")]

app = typer.Typer(help="What receivers of webhooks need.", no_args_is_help=True)


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


async def _secret(merchant: str | None) -> str:
    async with opened() as context:
        return await webhook_secret(context, merchant)
