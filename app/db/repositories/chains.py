"""Cursors, headers and checked assets."""

from collections.abc import Iterable, Sequence
from typing import Final, cast

from sqlalchemy import bindparam, delete, insert, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncSession

from app.db.base import Base
from app.db.models import BlockHeader, ChainState, Token

# Made once: every new payment runs them, and making and hashing a statement costs as much as running it.
_STATES: Final = select(ChainState)
_TOKENS: Final = select(Token).where(Token.chain_id.in_(bindparam("chain_ids", expanding=True)))


def upsert(session: AsyncSession, model: type[Base]) -> postgresql.Insert | sqlite.Insert:
    """The INSERT that knows ON CONFLICT, which the two databases spell alike but SQLAlchemy builds apart."""
    dialect = session.get_bind().dialect.name
    return postgresql.insert(model) if dialect == "postgresql" else sqlite.insert(model)


async def get_state(session: AsyncSession, chain_id: int) -> ChainState | None:
    return await session.get(ChainState, chain_id)


async def lock_state(session: AsyncSession, chain_id: int) -> ChainState | None:
    """The cursor under its row lock, which serialises all writers of a chain: two steps at once, step and rescan."""
    query = select(ChainState).where(ChainState.chain_id == chain_id).with_for_update()
    return cast(ChainState | None, await session.scalar(query))


async def list_states(session: AsyncSession) -> dict[int, ChainState]:
    return {state.chain_id: state for state in await session.scalars(_STATES)}


async def insert_state(session: AsyncSession, values: dict[str, object]) -> None:
    """Make the cursor of a chain unless it exists: two processes may start at once."""
    await session.execute(upsert(session, ChainState).values(values).on_conflict_do_nothing())


async def headers_from(session: AsyncSession, chain_id: int, lowest: int) -> Sequence[tuple[int, bytes]]:
    """(number, hash) of the scanned headers from `lowest` up, ascending."""
    query = (
        select(BlockHeader.number, BlockHeader.hash)
        .where(BlockHeader.chain_id == chain_id, BlockHeader.number >= lowest)
        .order_by(BlockHeader.number)
    )
    return [(number, hash_) for number, hash_ in await session.execute(query)]


async def get_header(session: AsyncSession, chain_id: int, number: int) -> BlockHeader | None:
    return await session.get(BlockHeader, (chain_id, number))


async def insert_headers(session: AsyncSession, rows: list[dict[str, object]]) -> None:
    if rows:
        await session.execute(insert(BlockHeader), rows)


async def insert_base(session: AsyncSession, row: dict[str, object]) -> None:
    """The header under the first block to be scanned, unless another process was quicker."""
    await session.execute(upsert(session, BlockHeader).values(row).on_conflict_do_nothing())


async def delete_headers_above(session: AsyncSession, chain_id: int, number: int) -> None:
    await session.execute(delete(BlockHeader).where(BlockHeader.chain_id == chain_id, BlockHeader.number > number))


async def delete_headers_below(session: AsyncSession, chain_id: int, number: int) -> None:
    await session.execute(delete(BlockHeader).where(BlockHeader.chain_id == chain_id, BlockHeader.number < number))


async def get_token(session: AsyncSession, chain_id: int, address: bytes) -> Token | None:
    return await session.get(Token, (chain_id, address))


async def list_tokens(session: AsyncSession, chain_ids: Iterable[int]) -> dict[tuple[int, bytes], Token]:
    found = await session.scalars(_TOKENS, {"chain_ids": list(chain_ids)})
    return {(token.chain_id, token.address): token for token in found}


async def save_token(session: AsyncSession, chain_id: int, address: bytes, symbol: str, decimals: int) -> None:
    statement = upsert(session, Token).values(chain_id=chain_id, address=address, symbol=symbol, decimals=decimals)
    await session.execute(
        statement.on_conflict_do_update(index_elements=["chain_id", "address"], set_={"symbol": symbol})
    )
