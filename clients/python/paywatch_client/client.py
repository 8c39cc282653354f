"""`Paywatch` and `AsyncPaywatch`: the same calls, waited for or awaited."""

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Final, Self, Unpack

import httpx

from paywatch_client.errors import PaywatchError
from paywatch_client.types import (
    ApiKey,
    Chain,
    Event,
    NewApiKey,
    NewPayment,
    Page,
    Payment,
    PaymentEvent,
    WebhookEndpoint,
)

TIMEOUT_S: Final = 30.0
TRIES: Final = 4
WAIT_MAX_S: Final = 10.0  # between two tries
STREAM_SILENCE_S: Final = 60.0  # the gateway sends a heartbeat every 15 s
AGAIN: Final = (429, 502, 503, 504)


@dataclass(frozen=True)
class _Call:
    """A request. One that reads, or has an idempotency key, is made again when it got no answer.

    A deletion is not: one that was done and whose answer was lost would be told as `not_found`.
    """

    method: str
    path: str
    params: dict[str, Any] = field(default_factory=dict)
    body: Any = None
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def repeatable(self) -> bool:
        return self.method == "GET" or "Idempotency-Key" in self.headers

    @property
    def again(self) -> tuple[int, ...]:
        """Statuses after which it is made again. Only 429 says for sure that nothing has happened."""
        return AGAIN if self.repeatable else (429,)

    def kwargs(self) -> dict[str, Any]:
        params = {name: value for name, value in self.params.items() if value is not None}
        return {"params": params, "json": self.body, "headers": self.headers}


def _create(fields: NewPayment, idempotency_key: str | None) -> _Call:
    headers = {"Idempotency-Key": idempotency_key or str(uuid.uuid4())}
    return _Call("POST", "/v1/payments", body=fields, headers=headers)


def _endpoint(url: str, event_types: list[str] | None) -> _Call:
    body = {"url": url} if event_types is None else {"url": url, "event_types": event_types}
    return _Call("POST", "/v1/webhook_endpoints", body=body)


def _wait_s(attempt: int, response: httpx.Response | None) -> float:
    """As long as the gateway asks for, else longer each time."""
    asked = response.headers.get("retry-after", "") if response is not None else ""
    return min(float(asked) if asked.isdigit() else 0.5 * 2**attempt, WAIT_MAX_S)


def _answer(response: httpx.Response) -> Any:
    if not response.is_success:
        raise PaywatchError(response)
    return response.json() if response.content else None


class _Events:
    """Events out of the text of a stream; remembers where to go on.

    Not by httpx's lines, which end wherever Python's do: at some characters that a JSON string may hold as they are.
    """

    def __init__(self, last_event_id: str | None) -> None:
        self.last_event_id = last_event_id
        self._line = self._data = self._id = ""

    def headers(self) -> dict[str, str]:
        """For the next connection, on which all that the last one left unfinished comes again."""
        self._line = self._data = ""
        return {"Last-Event-ID": self.last_event_id} if self.last_event_id else {}

    def take(self, text: str) -> Iterator[PaymentEvent]:
        *lines, self._line = (self._line + text).split("\n")
        for line in lines:
            name, _, value = line.partition(":")
            if name == "data":
                self._data = value.strip()
            elif name == "id":
                self._id = value.strip()
            elif not line and self._data:
                event: PaymentEvent = json.loads(self._data)
                self.last_event_id, self._data = self._id, ""
                yield event


class Paywatch:
    """A client that blocks. Close it, or use it in a `with` block. Calls raise PaywatchError, or httpx's errors."""

    def __init__(self, base_url: str, api_key: str, *, http: httpx.Client | None = None) -> None:
        self._http = http or httpx.Client(timeout=TIMEOUT_S)
        self._http.base_url = httpx.URL(base_url)
        self._http.headers["Authorization"] = f"Bearer {api_key}"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    def create_payment(self, idempotency_key: str | None = None, **fields: Unpack[NewPayment]) -> Payment:
        """A new payment. Give the key of your order to be safe across restarts of your own, too."""
        payment: Payment = self._send(_create(fields, idempotency_key))
        return payment

    def get_payment(self, payment_id: str) -> Payment:
        payment: Payment = self._send(_Call("GET", f"/v1/payments/{payment_id}"))
        return payment

    def list_payments(self, **query: Any) -> Page[Payment]:
        """One page, newest first: status, order_id, chain, token, address, created_after, created_before, limit, …"""
        page: Page[Payment] = self._send(_Call("GET", "/v1/payments", query))
        return page

    def all_payments(self, **query: Any) -> Iterator[Payment]:
        """Every payment that `list_payments` would find, page after page."""
        cursor: str | None = None
        while True:
            page = self.list_payments(**{"limit": 100} | query, cursor=cursor)
            yield from page["data"]
            cursor = page["next_cursor"]
            if cursor is None:
                return

    def cancel_payment(self, payment_id: str) -> Payment:
        payment: Payment = self._send(_Call("POST", f"/v1/payments/{payment_id}/cancel"))
        return payment

    def payment_events(self, payment_id: str, **query: Any) -> Page[PaymentEvent]:
        page: Page[PaymentEvent] = self._send(_Call("GET", f"/v1/payments/{payment_id}/events", query))
        return page

    def list_events(self, **query: Any) -> Page[Event]:
        """One page, newest first: type, payment_id, created_after, created_before, limit, cursor."""
        page: Page[Event] = self._send(_Call("GET", "/v1/events", query))
        return page

    def stream_payment(self, payment_id: str, last_event_id: str | None = None) -> Iterator[PaymentEvent]:
        """A payment's events as they happen, without an end: leave the loop when you have seen enough."""
        events, attempt = _Events(last_event_id), 0
        while True:
            try:
                with self._http.stream(
                    "GET", f"/v1/payments/{payment_id}/stream", headers=events.headers(), timeout=STREAM_SILENCE_S
                ) as response:
                    if not response.is_success:
                        response.read()
                        raise PaywatchError(response)
                    for text in response.iter_text():
                        attempt = 0
                        yield from events.take(text)
            except (httpx.TransportError, PaywatchError) as error:
                if attempt >= TRIES or (isinstance(error, PaywatchError) and error.status not in AGAIN):
                    raise
            time.sleep(_wait_s(attempt, None))
            attempt += 1

    def list_chains(self) -> list[Chain]:
        page: Page[Chain] = self._send(_Call("GET", "/v1/chains", {"limit": 100}))
        return page["data"]

    def create_webhook_endpoint(self, url: str, event_types: list[str] | None = None) -> WebhookEndpoint:
        """A receiver; `secret` is in this answer and in no other."""
        endpoint: WebhookEndpoint = self._send(_endpoint(url, event_types))
        return endpoint

    def delete_webhook_endpoint(self, endpoint_id: str) -> None:
        self._send(_Call("DELETE", f"/v1/webhook_endpoints/{endpoint_id}"))

    def create_key(self, name: str, scopes: list[str]) -> NewApiKey:
        """An API key; `key` is in this answer and in no other."""
        key: NewApiKey = self._send(_Call("POST", "/v1/keys", body={"name": name, "scopes": scopes}))
        return key

    def list_keys(self, **query: Any) -> Page[ApiKey]:
        page: Page[ApiKey] = self._send(_Call("GET", "/v1/keys", query))
        return page

    def revoke_key(self, key_id: str) -> None:
        self._send(_Call("DELETE", f"/v1/keys/{key_id}"))

    def request(self, method: str, path: str, **request: Any) -> Any:
        """Any other call; `params` and `json` as httpx takes them."""
        return _answer(self._http.request(method, path, **request))

    def _send(self, call: _Call) -> Any:
        for attempt in range(TRIES):
            response: httpx.Response | None = None
            try:
                response = self._http.request(call.method, call.path, **call.kwargs())
            except httpx.TransportError:
                if not call.repeatable or attempt == TRIES - 1:
                    raise
            if response is not None and (response.status_code not in call.again or attempt == TRIES - 1):
                return _answer(response)
            time.sleep(_wait_s(attempt, response))
        raise AssertionError("unreachable")


class AsyncPaywatch:
    """A client that is awaited; otherwise as `Paywatch`."""

    def __init__(self, base_url: str, api_key: str, *, http: httpx.AsyncClient | None = None) -> None:
        self._http = http or httpx.AsyncClient(timeout=TIMEOUT_S)
        self._http.base_url = httpx.URL(base_url)
        self._http.headers["Authorization"] = f"Bearer {api_key}"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        await self._http.aclose()

    async def create_payment(self, idempotency_key: str | None = None, **fields: Unpack[NewPayment]) -> Payment:
        payment: Payment = await self._send(_create(fields, idempotency_key))
        return payment

    async def get_payment(self, payment_id: str) -> Payment:
        payment: Payment = await self._send(_Call("GET", f"/v1/payments/{payment_id}"))
        return payment

    async def list_payments(self, **query: Any) -> Page[Payment]:
        page: Page[Payment] = await self._send(_Call("GET", "/v1/payments", query))
        return page

    async def all_payments(self, **query: Any) -> AsyncIterator[Payment]:
        cursor: str | None = None
        while True:
            page = await self.list_payments(**{"limit": 100} | query, cursor=cursor)
            for payment in page["data"]:
                yield payment
            cursor = page["next_cursor"]
            if cursor is None:
                return

    async def cancel_payment(self, payment_id: str) -> Payment:
        payment: Payment = await self._send(_Call("POST", f"/v1/payments/{payment_id}/cancel"))
        return payment

    async def payment_events(self, payment_id: str, **query: Any) -> Page[PaymentEvent]:
        page: Page[PaymentEvent] = await self._send(_Call("GET", f"/v1/payments/{payment_id}/events", query))
        return page

    async def list_events(self, **query: Any) -> Page[Event]:
        page: Page[Event] = await self._send(_Call("GET", "/v1/events", query))
        return page

    async def stream_payment(self, payment_id: str, last_event_id: str | None = None) -> AsyncIterator[PaymentEvent]:
        events, attempt = _Events(last_event_id), 0
        while True:
            try:
                async with self._http.stream(
                    "GET", f"/v1/payments/{payment_id}/stream", headers=events.headers(), timeout=STREAM_SILENCE_S
                ) as response:
                    if not response.is_success:
                        await response.aread()
                        raise PaywatchError(response)
                    async for text in response.aiter_text():
                        attempt = 0
                        for event in events.take(text):
                            yield event
            except (httpx.TransportError, PaywatchError) as error:
                if attempt >= TRIES or (isinstance(error, PaywatchError) and error.status not in AGAIN):
                    raise
            await asyncio.sleep(_wait_s(attempt, None))
            attempt += 1

    async def list_chains(self) -> list[Chain]:
        page: Page[Chain] = await self._send(_Call("GET", "/v1/chains", {"limit": 100}))
        return page["data"]

    async def create_webhook_endpoint(self, url: str, event_types: list[str] | None = None) -> WebhookEndpoint:
        endpoint: WebhookEndpoint = await self._send(_endpoint(url, event_types))
        return endpoint

    async def delete_webhook_endpoint(self, endpoint_id: str) -> None:
        await self._send(_Call("DELETE", f"/v1/webhook_endpoints/{endpoint_id}"))

    async def create_key(self, name: str, scopes: list[str]) -> NewApiKey:
        key: NewApiKey = await self._send(_Call("POST", "/v1/keys", body={"name": name, "scopes": scopes}))
        return key

    async def list_keys(self, **query: Any) -> Page[ApiKey]:
        page: Page[ApiKey] = await self._send(_Call("GET", "/v1/keys", query))
        return page

    async def revoke_key(self, key_id: str) -> None:
        await self._send(_Call("DELETE", f"/v1/keys/{key_id}"))

    async def request(self, method: str, path: str, **request: Any) -> Any:
        return _answer(await self._http.request(method, path, **request))

    async def _send(self, call: _Call) -> Any:
        for attempt in range(TRIES):
            response: httpx.Response | None = None
            try:
                response = await self._http.request(call.method, call.path, **call.kwargs())
            except httpx.TransportError:
                if not call.repeatable or attempt == TRIES - 1:
                    raise
            if response is not None and (response.status_code not in call.again or attempt == TRIES - 1):
                return _answer(response)
            await asyncio.sleep(_wait_s(attempt, response))
        raise AssertionError("unreachable")
