"""A process of the gateway that can be killed at any await, and whose database can break at any statement."""

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

from sqlalchemy.util import await_only

from app.core.chains import Chain, ChainsFile
from app.core.config import Settings
from app.services.context import Context, open_context
from tests.simulation.virtual import Turns, real_sleep


class Worker:
    """A context of its own, like a process. One job at a time runs in it, through `run`.

    `arm_kill` and `arm_drop` set a trap a number of points ahead; a point is an await of a node or of the database. A
    hard kill lets nothing more reach the database or a node, as SIGKILL does; a soft one cancels the job and lets it
    clean up, as a stopping worker does.
    """

    def __init__(
        self, name: str, settings: Settings, chains: ChainsFile, ports: list[int], turns: Turns, rng: random.Random
    ) -> None:
        self.name = name
        self.turns = turns
        self.rng = rng
        self.faults: Counter[str] = Counter()
        self.ready = False
        self.gone = False
        self.killed = False
        self._kill_in = self._drop_in = 0
        self._task: asyncio.Task[Any] | None = None
        [chain] = chains.chains
        urls = tuple(f"http://127.0.0.1:{port}/{name}" for port in ports)
        self.chain: Chain = replace(chain, rpc_urls=urls)
        self.context: Context = open_context(settings, replace(chains, chains=(self.chain,)))
        self._hook()

    async def run(self, job: Callable[[], Awaitable[Any]]) -> Any:
        """What the job returned, or the exception that ended it; None after a kill."""
        self._task = asyncio.ensure_future(job())
        await asyncio.wait((self._task,))
        if self._task.cancelled():
            assert self.killed, "cancelled by nobody"
            return None
        return self._task.exception() or self._task.result()

    async def close(self) -> None:
        await self.context.close()

    def arm_kill(self, points: int) -> None:
        self._kill_in = points

    def arm_drop(self, points: int) -> None:
        self._drop_in = points

    def disarm(self) -> None:
        self._kill_in = self._drop_in = 0

    async def point(self, kind: str, detail: str = "") -> None:
        """An await of the job: others may go on here, it may be its last, and the database may be gone."""
        await self.turns.turn(self, self.name, wants_to_write=detail == "BEGIN IMMEDIATE")
        if self.gone:
            return
        if self._kill_in:
            self._kill_in -= 1
            if not self._kill_in:
                await self._kill(kind)
        if kind == "database" and self._drop_in:
            self._drop_in -= 1
            if not self._drop_in:
                self.faults[f"database_dropped_{detail.split()[0].lower()}"] += 1
                raise self._broken()

    async def _kill(self, kind: str) -> None:
        self.killed = True
        self.gone = self.rng.random() < 0.6
        self.faults[f"kill_{'hard' if self.gone else 'soft'}_at_{kind}"] += 1
        if self._task is not None:
            self._task.cancel()
            await real_sleep(0)  # raises here when it is the job itself that waits

    def _broken(self) -> Exception:
        error: Exception = self._dialect.dbapi.OperationalError("connection was closed in the middle of operation")
        return error

    def _hook(self) -> None:
        """Put a point before each statement and around each commit; what cleans up is left alone."""
        self._dialect: Any = self.context.db.engine.sync_engine.dialect
        dialect = self._dialect
        execute, executemany, commit = dialect.do_execute, dialect.do_executemany, dialect.do_commit

        def before(detail: str) -> None:
            if not self.gone:
                await_only(self.point("database", detail))
            if self.gone:
                raise self._broken()

        def do_execute(cursor: Any, statement: str, parameters: Any, context: Any = None) -> None:
            before(statement)
            execute(cursor, statement, parameters, context)
            if statement == "BEGIN IMMEDIATE":
                self.turns.writer = self

        def do_executemany(cursor: Any, statement: str, parameters: Any, context: Any = None) -> None:
            before(statement)
            executemany(cursor, statement, parameters, context)

        def do_commit(connection: Any) -> None:
            before("COMMIT")
            commit(connection)
            self.turns.release_writer(self)
            before("COMMITTED")  # it is done, and nobody may be left to know

        def releasing(name: str) -> None:
            real = getattr(dialect, name)

            def release(connection: Any) -> None:
                try:
                    real(connection)
                finally:
                    self.turns.release_writer(self)

            setattr(dialect, name, release)

        dialect.do_execute, dialect.do_executemany, dialect.do_commit = do_execute, do_executemany, do_commit
        for name in ("do_rollback", "do_close", "do_terminate"):
            releasing(name)
