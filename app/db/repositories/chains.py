"""Cursors, headers and checked assets."""

from collections.abc import Sequence
from typing import cast

from sqlalchemy import delete, func, insert, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncSession

from app.db.base import Base
from app.db.models import BlockHeader, ChainState, Token


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
    return {state.chain_id: state for state in await session.scalars(select(ChainState))}


async def insert_state(session: AsyncSession, values: dict[str, object]) -> bool:
    """Make the cursor of a chain; False when it exists: two processes may start at once, and neither sees the other."""
    statement = upsert(session, ChainState).values(values).on_conflict_do_nothing().returning(ChainState.chain_id)
    return await session.scalar(statement) is not None


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
    """The header of the cursor, unless it is kept."""
    await session.execute(upsert(session, BlockHeader).values(row).on_conflict_do_nothing())


async def restore_headers(session: AsyncSession, chain_id: int, rows: list[dict[str, object]]) -> None:
    """Write headers that should be kept again, missing ones too: ascending, linked, and known to be ours.

    What lies below the lowest kept one is left out: it would stand there by itself.
    """
    lowest = await session.scalar(select(func.min(BlockHeader.number)).where(BlockHeader.chain_id == chain_id))
    wanted = [row for row in rows if lowest is None or cast(int, row["number"]) > lowest]
    if wanted:
        statement = upsert(session, BlockHeader).values(wanted)
        changed = {"parent_hash": statement.excluded.parent_hash}
        await session.execute(statement.on_conflict_do_update(index_elements=["chain_id", "number"], set_=changed))


async def delete_headers_above(session: AsyncSession, chain_id: int, number: int) -> None:
    await session.execute(delete(BlockHeader).where(BlockHeader.chain_id == chain_id, BlockHeader.number > number))


async def delete_headers_below(session: AsyncSession, chain_id: int, number: int) -> None:
    await session.execute(delete(BlockHeader).where(BlockHeader.chain_id == chain_id, BlockHeader.number < number))


async def get_token(session: AsyncSession, chain_id: int, address: bytes) -> Token | None:
    return await session.get(Token, (chain_id, address))


async def list_tokens(session: AsyncSession) -> dict[tuple[int, bytes], Token]:
    """All that were ever watched, of all chains."""
    return {(token.chain_id, token.address): token for token in await session.scalars(select(Token))}


async def save_token(session: AsyncSession, chain_id: int, address: bytes, symbol: str, decimals: int) -> None:
    statement = upsert(session, Token).values(chain_id=chain_id, address=address, symbol=symbol, decimals=decimals)
    await session.execute(
        statement.on_conflict_do_update(index_elements=["chain_id", "address"], set_={"symbol": symbol})
    )
