"""What the operator's commands work on: the installation that the settings name."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from app.core.chains import ChainsFile
from app.core.config import Settings
from app.core.errors import ConfigError
from app.db import schema
from app.services.context import Context, open_context


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
