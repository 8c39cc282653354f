"""`paywatch webhooks`"""

import asyncio

import typer

from app.cli.installation import opened
from app.core.errors import ConfigError
from app.services.merchants import first_webhook_secret

app = typer.Typer(help="What receivers of webhooks need.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Keeps `secret` a command of its own: typer folds a group of one."""


@app.command()
def secret() -> None:
    """Print the signing secret of webhooks that go to a payment's own webhook_url.

    An endpoint made over the API has a secret of its own, shown when it was made.
    """
    print(asyncio.run(_first_secret()))


async def _first_secret() -> str:
    async with opened() as context:
        found = await first_webhook_secret(context)
    if found is None:
        raise ConfigError("there is no merchant yet: start the server once, which makes the first one")
    return found
