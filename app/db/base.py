"""The declarative base and the naming convention of constraints."""

from sqlalchemy import MetaData
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
