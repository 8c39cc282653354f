"""Goal: whatever happens in a job, its worker goes on, and log and metrics say what it was and whose."""

import asyncio
from typing import Any

import pytest
import structlog
from sqlalchemy.exc import IntegrityError, OperationalError

from app.core import pulse, queue
from app.core.errors import ConfigError
from app.workers.job import job
from tests.support.exposition import counted


@pytest.fixture
def said() -> Any:
    with structlog.testing.capture_logs(processors=[structlog.contextvars.merge_contextvars]) as lines:
        yield lines


def jobs(outcome: str) -> float:
    return counted("paywatch_job_seconds_count", task="a_test", outcome=outcome)


async def test_a_jobs_lines_have_its_name_and_its_chain(said: list[dict[str, Any]]) -> None:
    log = structlog.get_logger()

    @job("a_test")
    async def work(ctx: dict[str, Any], chain_name: str) -> None:
        log.info("at work", **ctx)

    before = jobs("ok")
    await work({"a": 1}, "devnet")
    log.info("afterwards")
    assert said[0] | {"task": "a_test", "chain": "devnet", "a": 1} == said[0]
    assert "task" not in said[1]
    assert jobs("ok") == before + 1


@pytest.mark.parametrize(
    "error",
    [
        OperationalError("SELECT 1", {}, OSError("away")),
        ConnectionRefusedError("nobody listens"),
        TimeoutError(),
        ConfigError("the keys are of another wallet"),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_an_outage_is_one_line(said: list[dict[str, Any]], error: Exception) -> None:
    @job("a_test")
    async def work(ctx: dict[str, Any]) -> None:
        raise error

    before, reports = jobs("failed"), counted("paywatch_unhandled_errors_total")
    await work({})
    [line] = said
    assert (line["event"], line["task"]) == ("job failed", "a_test")
    assert line["reason"].startswith(type(error).__name__)
    assert "exc_info" not in line
    assert jobs("failed") == before + 1
    assert counted("paywatch_unhandled_errors_total") == reports


@pytest.mark.parametrize("error", [RuntimeError("a mistake"), IntegrityError("INSERT", {}, Exception("refused"))])
async def test_what_nobody_foresaw_is_reported(said: list[dict[str, Any]], error: Exception) -> None:
    @job("a_test")
    async def work(ctx: dict[str, Any], chain_name: str) -> None:
        raise error

    before, reports = jobs("error"), counted("paywatch_unhandled_errors_total")
    await work({}, "devnet")
    [line] = said
    assert (line["event"], line["task"], line["chain"]) == ("unhandled error", "a_test", "devnet")
    assert line["report"].startswith("rep_")
    assert line["exc_info"] is error
    assert jobs("error") == before + 1
    assert counted("paywatch_unhandled_errors_total") == reports + 1


async def test_only_work_that_was_done_is_told_to_redis(redis_url: str) -> None:
    @job("a_test")
    async def work(ctx: dict[str, Any], chain_name: str) -> str | None:
        if ctx["fails"]:
            raise TimeoutError
        return "the node is behind" if ctx["is_put_off"] else None

    redis = queue.connect(redis_url)
    for fails, is_put_off in ((True, False), (False, True)):
        await work({"redis": redis, "fails": fails, "is_put_off": is_put_off}, "devnet")
        assert await pulse.ages_s(redis) == {}
    await work({"redis": redis, "fails": False, "is_put_off": False}, "devnet")
    assert 0 <= (await pulse.ages_s(redis))["a_test", "devnet"] < 60
    await redis.aclose(close_connection_pool=True)


async def test_one_that_is_cancelled_is_counted_and_stays_so() -> None:
    @job("a_test")
    async def work(ctx: dict[str, Any]) -> None:
        await asyncio.Event().wait()

    before = jobs("cancelled")
    task = asyncio.create_task(work({}))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert jobs("cancelled") == before + 1
