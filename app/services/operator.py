"""What the operator's commands work on: the installation that the settings name."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from app.core.chains import ChainsFile
from app.core.config import Settings
from app.core.errors import ConfigError
from app.core.logger import get_logger
from app.db import dump, schema
from app.db.dump import Replaced
from app.services.context import Context, open_context

log = get_logger(__name__)


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


@dataclass(frozen=True, slots=True)
class Restored:
    """`replaced`: what became of what was there; `problem` says what the schema needs before a start."""

    database: str
    replaced: Replaced
    problem: str | None


async def back_up(settings: Settings, file: Path) -> str:
    """Write the database to `file`; returns the database's name. Raises DumpError, SchemaError."""
    await dump.dump(settings.database_url, file)
    return schema.show_url(settings.database_url)


async def check_restore(settings: Settings, file: Path, replace: bool) -> str:
    """The database's name, when it may be restored from `file`. Raises DumpError, SchemaError."""
    await dump.check_restore(settings.database_url, file, replace)
    return schema.show_url(settings.database_url)


async def restore(settings: Settings, file: Path, replace: bool, skip: int, by: str) -> Restored:
    """Make the database what the backup says. Raises DumpError, SchemaError; the database is as it was then."""
    url = settings.database_url
    replaced = await dump.restore(url, file, replace, skip)
    log.warning("database restored by an operator", file=str(file), stops=replaced.stops, operator=by)
    return Restored(schema.show_url(url), replaced, await schema.schema_problem(url))
