"""What the operator's commands work on: a new wallet, and the installation that the settings name."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from app.blockchain.wallet import account_xpub, new_mnemonic
from app.core.chains import ChainsFile
from app.core.config import Settings
from app.core.errors import ConfigError
from app.db import schema
from app.services.context import Context, open_context


@dataclass(frozen=True, slots=True)
class NewWallet:
    """24 recovery words, and the xpub of their deposit account m/44'/60'/0'."""

    mnemonic: str
    xpub: str

    def __repr__(self) -> str:
        return "NewWallet(…)"  # a wallet in a log or a traceback is a wallet given away


def new_wallet() -> NewWallet:
    """A wallet that nobody has; it is stored nowhere."""
    mnemonic = new_mnemonic()
    return NewWallet(mnemonic, account_xpub(mnemonic))


@asynccontextmanager
async def installation(settings: Settings, chains: ChainsFile) -> AsyncIterator[Context]:
    """The context of an installation that has been started before; closed when the block ends.

    Nothing is migrated. Raises ConfigError when its schema is not at head, SchemaError when the database is away.
    """
    problem = await schema.schema_problem(settings.database_url)
    if problem is not None:
        hint = "; or start the server once, which does it in embedded mode" if settings.embedded else ""
        raise ConfigError(problem + hint)
    context = open_context(settings, chains)
    try:
        yield context
    finally:
        await context.close()
