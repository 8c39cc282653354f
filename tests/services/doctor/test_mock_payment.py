"""Goal: a mock payment says at which step it stopped, and whom to start."""

import asyncio
from typing import Any

import pytest

from app.core import limits
from app.services.doctor import mock_payment as mock
from app.services.doctor.mock_payment import mock_payment
from app.services.gateway import running_gateway
from app.services.merchants import make_key
from app.workers.runner import run_workers
from tests.services.doctor.conftest import SECRET_KEY, System
from tests.support.gateway import serving

pytestmark = pytest.mark.filterwarnings("ignore:Call to deprecated close:DeprecationWarning")


@pytest.mark.parametrize(
    ("roles", "stops_at", "remedy"),
    [
        ((), "detected", "python -m app.workers --roles listener"),
        (("listener",), "webhook", "python -m app.workers --roles webhook"),
        (("listener", "webhook"), None, ""),
    ],
    ids=["nobody-listens", "nobody-tells", "all-work"],
)
async def test_a_mock_payment_stops_where_nobody_works(
    system: System, monkeypatch: pytest.MonkeyPatch, roles: tuple[str, ...], stops_at: str | None, remedy: str
) -> None:
    told = mock._Run._told

    async def soon_given_up(run: Any, remedy: str) -> None:
        monkeypatch.setattr(limits, "MOCK_STEP_S", 0.5)
        await told(run, remedy)

    if stops_at == "detected":
        monkeypatch.setattr(limits, "MOCK_STEP_S", 0.5)
    elif stops_at == "webhook":
        monkeypatch.setattr(mock._Run, "_told", soon_given_up)  # the steps before it take their time
    system.configure(webhook_allow_networks="127.0.0.0/8")
    settings, stop = system.settings, asyncio.Event()
    key = await make_key(system.watch.context, None, False, "doctor", ["admin"])
    monkeypatch.chdir(system.watch.context.chains.path.parent)
    async with (
        running_gateway(settings, system.chains, settings.redis_url) as gateway,
        serving(gateway) as url,
    ):
        for name, value in {
            "DATABASE_URL": settings.database_url,
            "REDIS_URL": settings.redis_url,
            "XPUB": settings.xpub or "",
            "SECRET_KEY": SECRET_KEY,
            "PORT": url.rpartition(":")[2],
        }.items():
            monkeypatch.setenv(f"PAYWATCH_{name}", value)
        workers = asyncio.create_task(run_workers(settings, system.chains, settings.redis_url, roles, stop))
        try:
            findings = await mock_payment(None, key.key)
        finally:
            stop.set()
            await workers
    if stops_at is None:
        assert [each.check for each in findings][-1] == "webhook"
        assert {each.result for each in findings} == {"ok"}
        return
    *before, last = findings
    assert {each.result for each in before} == {"ok"}
    assert (last.check, last.result) == (stops_at, "failed")
    assert remedy in last.remedy
