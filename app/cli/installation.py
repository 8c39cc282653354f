"""How a command reaches the installation that it is about."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from app.core.chains import load_chains
from app.core.config import load_settings, read_environment
from app.core.logger import configure_logging
from app.services.context import Context
from app.services.operator import installation


@asynccontextmanager
async def opened() -> AsyncIterator[Context]:
    """The installation of this folder's settings; logs go to standard error. Raises ConfigError or SchemaError."""
    settings = load_settings()
    configure_logging(settings.log_format, settings.log_level)
    async with installation(settings, load_chains(settings.chains_file, read_environment())) as context:
        yield context
