"""Goal: what the client's README shows works as written, and whoever uses it is safe where the network is not."""

import asyncio
import inspect
import os
import re
import sys
from collections.abc import AsyncIterator
from itertools import product
from pathlib import Path
from typing import Any, get_args, get_type_hints

import httpx
import pytest
from standardwebhooks import Webhook as Signer

import paywatch_client
from app.core.clock import utc_now
from app.services.endpoints import EndpointView
from app.services.events import EventView
from app.services.gateway import Gateway
from app.services.keys import KeyView, NewKeyView
from app.services.status import ChainView
from app.services.views import OptionView, PaymentView, TransactionView
from paywatch_client import AsyncPaywatch, InvalidWebhook, Paywatch, PaywatchError, client, verify_webhook
from tests.support.gateway import API_KEY, serving

CLIENT = Path(__file__).parents[2] / "clients" / "python"
BLOCKS = re.findall(r"```python\n(.*?)```", (CLIENT / "README.md").read_text(), re.DOTALL)
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


@pytest.fixture
async def url(gateway: Gateway) -> AsyncIterator[str]:
    async with serving(gateway) as base_url:
        yield base_url


@pytest.fixture
async def paywatch(url: str) -> AsyncIterator[AsyncPaywatch]:
    async with AsyncPaywatch(url, API_KEY, http=httpx.AsyncClient(timeout=60, trust_env=False)) as it:
        yield it


async def run(code: str, url: str) -> str:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", code),
        env={**os.environ, "PYTHONPATH": str(CLIENT), "PAYWATCH_URL": url, "PAYWATCH_KEY": API_KEY, "NO_PROXY": "*"},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, error = await process.communicate()
    assert process.returncode == 0, error.decode()
    return out.decode()


async def test_the_quickstart_runs_as_written(url: str) -> None:
    quickstart, with_async, _ = BLOCKS
    promised = re.findall(r"```text\n(.*?)```", (CLIENT / "README.md").read_text(), re.DOTALL)[0].splitlines()
    for _ in range(2):  # people run it again
        printed = (await run(quickstart, url)).splitlines()
        assert re.fullmatch(r"send 25 USDC to 0x[0-9a-fA-F]{40}", printed[0])
        assert printed[1:] == promised[1:]
    assert re.fullmatch(r"(A-\d+ cancelled\n){2}", await run(with_async, url))


def test_the_readmes_receiver_takes_what_is_signed_and_nothing_else(capsys: pytest.CaptureFixture[str]) -> None:
    shown: dict[str, Any] = {}
    exec(BLOCKS[2], shown)  # noqa: S102 as written
    now = utc_now()
    body = '{"type":"payment.confirmed","timestamp":"x","data":{"order_id":"A-1","version":3}}'
    headers = {
        "Webhook-Id": "evt_1",
        "Webhook-Timestamp": str(int(now.timestamp())),
        "Webhook-Signature": Signer(SECRET).sign("evt_1", now, body),
    }
    assert shown["receive"](SECRET, headers, body.encode()) == 204
    assert capsys.readouterr().out == "payment.confirmed A-1 version 3\n"
    for wrong in (
        {**headers, "Webhook-Id": "evt_2"},
        {**headers, "Webhook-Timestamp": "1"},
        {**headers, "Webhook-Signature": "v1,"},
        {},
    ):
        assert shown["receive"](SECRET, wrong, body.encode()) == 401
    assert shown["receive"](SECRET, headers, body.replace("A-1", "A-2").encode()) == 401
    with pytest.raises(InvalidWebhook):
        verify_webhook(SECRET, headers, b"\xff")


async def test_every_call_of_it_is_understood(paywatch: AsyncPaywatch) -> None:
    payment = await paywatch.create_payment(chain="devnet", token="USDC", amount="1", metadata={"a": 1})
    assert await paywatch.get_payment(payment["id"]) == payment
    assert (await paywatch.list_payments(limit=1))["data"] == [payment]
    other = await paywatch.create_payment(chain="devnet", token="ETH", amount="1")
    assert [each["id"] async for each in paywatch.all_payments(limit=1)] == sorted([payment["id"], other["id"]])[::-1]
    assert (await paywatch.cancel_payment(payment["id"]))["status"] == "cancelled"
    trail = (await paywatch.payment_events(payment["id"]))["data"]
    assert [event["type"] for event in trail] == ["payment.created", "payment.cancelled"]
    assert (await paywatch.list_events(payment_id=payment["id"], type="payment.cancelled"))["data"] == [trail[1]]
    assert [chain["name"] for chain in await paywatch.list_chains()] == ["devnet"]
    endpoint = await paywatch.create_webhook_endpoint("http://127.0.0.1:9/", ["payment.confirmed"])
    assert endpoint["secret"].startswith("whsec_")
    await paywatch.delete_webhook_endpoint(endpoint["id"])
    key = await paywatch.create_key("till", ["payments:read"])
    assert key["id"] in [each["id"] for each in (await paywatch.list_keys())["data"]]
    await paywatch.revoke_key(key["id"])
    assert (await paywatch.request("GET", "/v1/merchant"))["name"] == "default"
    with pytest.raises(PaywatchError) as refused:
        await paywatch.cancel_payment(payment["id"])
    assert (refused.value.status, refused.value.code) == (409, "not_cancellable")
    assert (refused.value.request_id or "").startswith("req_")


def test_both_clients_have_the_same_calls() -> None:
    def calls(of: type) -> dict[str, list[str]]:
        return {
            name: list(inspect.signature(call).parameters)
            for name, call in vars(of).items()
            if inspect.isfunction(call) and not name.startswith("__")
        }

    assert calls(Paywatch) == calls(AsyncPaywatch)


@pytest.mark.parametrize(
    ("type_", "view"),
    [
        (paywatch_client.Payment, PaymentView),
        (paywatch_client.PaymentOption, OptionView),
        (paywatch_client.Transaction, TransactionView),
        (paywatch_client.PaymentEvent, EventView),
        (paywatch_client.EndpointEvent, EventView),
        (paywatch_client.Chain, ChainView),
        (paywatch_client.ApiKey, KeyView),
        (paywatch_client.NewApiKey, NewKeyView),
        (paywatch_client.WebhookEndpoint, EndpointView),
    ],
)
def test_its_types_have_the_fields_of_the_answers(type_: Any, view: Any) -> None:
    answered = {field.alias or name for name, field in view.model_fields.items()}
    assert set(get_type_hints(type_)) - {"secret"} == answered


async def test_an_event_holds_a_payment_or_an_endpoint_and_says_which(paywatch: AsyncPaywatch) -> None:
    await paywatch.create_payment(chain="devnet", token="USDC", amount="1")
    endpoint = await paywatch.create_webhook_endpoint("http://127.0.0.1:9/")
    await paywatch.request("PATCH", f"/v1/webhook_endpoints/{endpoint['id']}", json={"enabled": False})
    kinds: dict[str, Any] = {
        "payment": paywatch_client.PaymentEvent,
        "webhook_endpoint": paywatch_client.EndpointEvent,
    }
    assert set(get_args(paywatch_client.Event)) == set(kinds.values())
    found = (await paywatch.list_events())["data"]
    assert [event["type"] for event in found] == ["webhook_endpoint.disabled", "payment.created"]
    for event in found:
        hints = get_type_hints(kinds[event["data"]["object"]])
        assert set(event["data"]) == set(get_type_hints(hints["data"])) - {"secret"}
        assert (event["payment_id"] is None) == (hints["payment_id"] is type(None))


# --- where the network is not safe


def stubborn(answers: list[httpx.Response | None], seen: list[httpx.Request]) -> httpx.AsyncClient:
    """A gateway that gives these answers in turn; None is a connection that breaks."""

    async def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        given = answers.pop(0)
        if given is None:
            raise httpx.ReadError("lost")
        return given

    return httpx.AsyncClient(transport=httpx.MockTransport(answer))


@pytest.fixture
def no_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "WAIT_MAX_S", 0.0)


@pytest.mark.usefixtures("no_wait")
async def test_a_creation_is_repeated_under_one_key_until_it_is_answered() -> None:
    seen: list[httpx.Request] = []
    refused = httpx.Response(503, headers={"retry-after": "5"})
    http = stubborn([None, refused, httpx.Response(429), httpx.Response(201, json={"id": "pay_1"})], seen)
    async with AsyncPaywatch("http://gateway", "key", http=http) as paywatch:
        assert (await paywatch.create_payment(chain="x", token="y", amount="1"))["id"] == "pay_1"
    assert len(seen) == 4
    assert len({request.headers["idempotency-key"] for request in seen}) == 1
    assert len({request.content for request in seen}) == 1


@pytest.mark.usefixtures("no_wait")
async def test_what_may_have_happened_is_not_done_again() -> None:
    calls = ("create_webhook_endpoint", "delete_webhook_endpoint", "revoke_key", "cancel_payment")
    for call, answer in product(calls, (None, httpx.Response(502))):
        seen: list[httpx.Request] = []
        async with AsyncPaywatch("http://gateway", "key", http=stubborn([answer], seen)) as paywatch:
            with pytest.raises((httpx.ReadError, PaywatchError)):
                await getattr(paywatch, call)("whe_1")
        assert len(seen) == 1


@pytest.mark.usefixtures("no_wait")
async def test_what_was_refused_for_its_rate_has_not_happened_and_is_done() -> None:
    seen: list[httpx.Request] = []
    http = stubborn([httpx.Response(429), httpx.Response(204)], seen)
    async with AsyncPaywatch("http://gateway", "key", http=http) as paywatch:
        await paywatch.delete_webhook_endpoint("whe_1")
    assert len(seen) == 2


@pytest.mark.usefixtures("no_wait")
async def test_it_gives_up_at_last_and_says_why() -> None:
    seen: list[httpx.Request] = []
    page = httpx.Response(502, text="<html>a proxy's page</html>")
    async with AsyncPaywatch("http://gateway", "key", http=stubborn([page] * 4, seen)) as paywatch:
        with pytest.raises(PaywatchError, match="http_502"):
            await paywatch.list_payments()
    assert len(seen) == 4


@pytest.mark.usefixtures("no_wait")
async def test_a_stream_goes_on_after_the_last_event_that_came() -> None:
    def block(number: int) -> str:
        return f'event: payment.late\ndata: {{"version": {number}}}\nid: evt_{number}\n\n'

    seen: list[httpx.Request] = []
    first = httpx.Response(200, text=": open\nretry: 1000\n\n" + block(1) + block(2) + "event: payment.late\ndata: {")
    http = stubborn([first, None, httpx.Response(503), httpx.Response(200, text=block(3))], seen)
    found = []
    async with AsyncPaywatch("http://gateway", "key", http=http) as paywatch:
        async for event in paywatch.stream_payment("pay_1"):
            found.append(event["version"])
            if event["version"] == 3:
                break
    assert found == [1, 2, 3]
    assert [request.headers.get("last-event-id") for request in seen] == [None, "evt_2", "evt_2", "evt_2"]


async def test_a_text_that_python_would_split_into_lines_stays_whole(paywatch: AsyncPaywatch) -> None:
    """Of all line ends only those of the format end a line (WHATWG HTML, 9.2.6)."""
    text = "one\u2028two\u2029three\x85four\x0bfive\nsix\r"
    payment = await paywatch.create_payment(chain="devnet", token="USDC", amount="1", description=text)
    async for event in paywatch.stream_payment(payment["id"]):
        assert event["data"] == payment
        break


@pytest.mark.usefixtures("no_wait")
@pytest.mark.parametrize("cut", ["data", "blank line"])
async def test_an_event_that_was_cut_off_comes_whole_from_the_next_connection(cut: str) -> None:
    whole = 'event: payment.late\ndata: {"version": 2}\nid: evt_2\n\n'
    part = whole.partition("ersion")[0] if cut == "data" else whole.removesuffix("id: evt_2\n\n")
    seen: list[httpx.Request] = []
    http = stubborn([httpx.Response(200, text=each) for each in (part, ": open\nretry: 1000\n\n" + whole)], seen)
    async with AsyncPaywatch("http://gateway", "key", http=http) as paywatch:
        async for event in paywatch.stream_payment("pay_1", "evt_1"):
            assert event == {"version": 2}
            break
    assert [request.headers["last-event-id"] for request in seen] == ["evt_1", "evt_1"]


async def test_a_stream_that_is_refused_for_good_says_so(paywatch: AsyncPaywatch) -> None:
    with pytest.raises(PaywatchError, match="not_found"):
        async for _ in paywatch.stream_payment("pay_unknown"):
            pass
