"""PostgreSQL's driver without SQLAlchemy between, for the few statements that every new payment runs.

Measured: one SELECT costs 0.34 ms of CPU in a session, 0.24 ms on SQLAlchemy's connection, and 0.07 ms so.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, Final, cast

import asyncpg
from sqlalchemy import Dialect, Executable
from sqlalchemy.dialects.postgresql import asyncpg as dialects
from sqlalchemy.exc import IntegrityError, OperationalError, ProgrammingError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.sql.compiler import SQLCompiler

_DIALECT: Final[Dialect] = dialects.dialect()  # type: ignore[no-untyped-call]
_NUMERIC_OID: Final = 1700  # only NUMERIC asks which type PostgreSQL gave a column
_Convert = Callable[[Any], Any]


class Driver:
    """asyncpg's connection, which runs SQLAlchemy's statements as a session does, and raises what a session raises."""

    def __init__(self, connection: asyncpg.Connection) -> None:
        self._connection = connection
        self._is_busy = False

    @property
    def is_clean(self) -> bool:
        """Fit for the next one: not cancelled or lost within a statement, and in no transaction."""
        return not (self._is_busy or self._connection.is_in_transaction())

    async def say(self, command: str) -> None:
        """BEGIN, COMMIT or ROLLBACK."""
        await self._wait_for(command)

    async def execute(self, statement: Executable, values: Mapping[str, Any]) -> Sequence[tuple[Any, ...]]:
        """The rows; values and columns mean what their types say. The statement is kept: it must be made once."""
        sql, binds, readers = _compiled(statement)
        arguments = [values[name] if bind is None else bind(values[name]) for name, bind in binds]
        return [
            tuple(
                value if read is None or value is None else read(value)
                for read, value in zip(readers, record, strict=True)
            )
            for record in await self._wait_for(sql, arguments)
        ]

    async def _wait_for(self, sql: str, arguments: Sequence[Any] = ()) -> list[asyncpg.Record]:
        self._is_busy = True
        try:
            found = await self._connection.fetch(sql, *arguments)
        except asyncpg.IntegrityConstraintViolationError as error:
            self._is_busy = False
            raise IntegrityError(sql, None, error) from error
        except (asyncpg.SyntaxOrAccessError, asyncpg.DataError) as error:
            self._is_busy = False
            raise ProgrammingError(sql, None, error) from error
        except (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError) as error:
            raise OperationalError(sql, None, error) from error
        self._is_busy = False
        return cast(list[asyncpg.Record], found)


# What runs a statement that has no entities: a session, or on PostgreSQL the driver.
QuickSession = AsyncSession | Driver


@lru_cache(maxsize=512)
def _compiled(statement: Executable) -> tuple[str, Sequence[tuple[str, _Convert | None]], Sequence[_Convert | None]]:
    """The SQL, its parameters in order with what makes them the driver's, and what makes the driver's columns ours."""
    compiled = cast(SQLCompiler, statement.compile(dialect=_DIALECT))  # type: ignore[attr-defined]
    types = [(name, compiled.binds[name].type) for name in compiled.positiontup or ()]
    columns = [column.type.dialect_impl(_DIALECT) for column in compiled._result_columns]
    return (
        compiled.string,
        [(name, type_.dialect_impl(_DIALECT).bind_processor(_DIALECT)) for name, type_ in types],
        [column.result_processor(_DIALECT, _NUMERIC_OID) for column in columns],
    )
