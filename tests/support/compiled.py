"""Statements compiled once for all tests: each has an engine of its own, which would compile the same ones anew."""

from functools import wraps
from typing import Any

from sqlalchemy import util
from sqlalchemy.engine.default import DefaultDialect
from sqlalchemy.ext.asyncio import AsyncEngine

from app.db import engine

_STATEMENTS = 2_000  # of one dialect; an engine's own cache holds 500


def share_compiled_statements() -> None:
    """Give the engines of one dialect one cache: a fifth of what a test of the services computes.

    A cache tells dialects apart by identity, and here those of one kind are the same.
    """
    caches: dict[str, util.LRUCache[Any, Any]] = {}
    create = engine.create_async_engine

    @wraps(create)
    def create_with_cache(*args: Any, **options: Any) -> AsyncEngine:
        made = create(*args, **options)
        made.sync_engine._compiled_cache = caches.setdefault(made.dialect.name, util.LRUCache(_STATEMENTS))
        return made

    engine.create_async_engine = create_with_cache
    DefaultDialect.__eq__ = lambda self, other: type(self) is type(other)
    DefaultDialect.__hash__ = lambda self: hash(type(self))
