"""The declarative base and the naming convention of constraints."""

from sqlalchemy import Boolean, ColumnClause, ColumnElement, Index, MetaData, TextClause, column
from sqlalchemy.orm import DeclarativeBase

# Every constraint has a predictable name: SQLite's batch migrations and PostgreSQL's ALTER both need one to drop it.
NAMING_CONVENTION = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
    "pk": "pk_%(table_name)s",
}


class Base(DeclarativeBase):
    """Root of all models. Relationships are not used: repositories load what they need in counted queries."""

    metadata = MetaData(naming_convention=NAMING_CONVENTION)


def flag(name: str) -> ColumnClause[bool]:
    """A boolean column in an index's `where`."""
    return column(name, Boolean)


def index_of_some(name: str, *columns: str, where: ColumnElement[bool] | TextClause, unique: bool = False) -> Index:
    """A partial index. SQLite uses it only for a query that has the same condition, written alike.

    So it is an expression here too: SQLAlchemy writes `canonical = 1` for SQLite, where people would write
    `canonical`. For the same reason a query names a status as a literal: of a bound value nobody knows what it is.
    """
    return Index(name, *columns, unique=unique, postgresql_where=where, sqlite_where=where)
