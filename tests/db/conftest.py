"""Databases of this folder's tests."""

from collections.abc import AsyncIterator

import pytest

from app.db.engine import Database


@pytest.fixture
async def db(db_url: str) -> AsyncIterator[Database]:
    database = Database(db_url)
    yield database
    await database.close()
