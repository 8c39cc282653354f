"""A merchant's webhook receiver: a real HTTP server on loopback that judges requests with the reference library."""

import asyncio
import json
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from http import HTTPStatus
from types import TracebackType
from typing import Any, Self

import h11
from standardwebhooks import Webhook, WebhookVerificationError

from devnet.ports import free_port, give_back

READ_BYTES = 65536
WAIT_TIMEOUT_S = 60.0  # a busy machine takes a while, and a first retry comes after five seconds


@dataclass(frozen=True)
class Reply:
    """What the receiver answers. `hangs` answers nothing until the sender gives up or the receiver stops."""

    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    hangs: bool = False


HANG = Reply(hangs=True)


@dataclass(frozen=True)
class Received:
    """One request as it came. Header names are lower case. `problem` says why it is not `verified`."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes
    verified: bool
    problem: str | None
    reply: Reply

    @property
    def webhook_id(self) -> str:
        return self.headers["webhook-id"]

    @property
    def payload(self) -> Any:
        """The JSON body: {type, timestamp, data}."""
        return json.loads(self.body)

    @property
    def type(self) -> str:
        event_type: str = self.payload["type"]
        return event_type


class Receiver:
    """Use as `async with Receiver(secret) as receiver`, or call start() and stop().

    Every request is verified against `secret` ("whsec_…"), which may be set later: often it is known only after the
    URL was registered. Requests are answered 200 unless answer() says otherwise.
    """

    def __init__(self, secret: str | None = None) -> None:
        self.secret = secret
        self.requests: list[Received] = []
        self._default_reply = Reply()
        self._replies: deque[Reply] = deque()
        self._changed = asyncio.Condition()
        self._server: asyncio.Server | None = None
        self._port = 0
        self._connections: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.stop()
        give_back(self._port)

    @property
    def url(self) -> str:
        return self.url_for("/webhooks")

    def url_for(self, path: str) -> str:
        """Any path is answered; different ones tell endpoints apart in `requests`."""
        assert self._port, "not started"
        return f"http://127.0.0.1:{self._port}{path}"

    async def start(self) -> None:
        """Listen; a second start() after stop() takes the same port again."""
        self._port = self._port or free_port()
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self._port)

    async def stop(self) -> None:
        """Refuse connections and break the open ones; harmless when it is not running."""
        if self._server is None:
            return
        self._server.close()
        for connection in self._connections:
            connection.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)
        await self._server.wait_closed()
        self._server = None

    def answer(self, *replies: int | Reply, then: int | Reply | None = None) -> None:
        """Answer the next requests with these, one each, and from then on with `then` (unchanged where None).

        answer(500, 503) fails twice and then succeeds; answer(then=HANG) never answers again.
        """
        self._replies.extend(_reply(reply) for reply in replies)
        if then is not None:
            self._default_reply = _reply(then)

    async def wait_for(
        self, predicate: Callable[[Sequence[Received]], bool], timeout_s: float = WAIT_TIMEOUT_S
    ) -> list[Received]:
        """The requests so far, once `predicate` of them is true. Raises TimeoutError with what did arrive."""
        try:
            async with asyncio.timeout(timeout_s), self._changed:
                await self._changed.wait_for(lambda: predicate(self.requests))
        except TimeoutError:
            arrived = [
                (request.path, request.headers.get("webhook-id"), request.body[:80]) for request in self.requests
            ]
            raise TimeoutError(f"not within {timeout_s} s; arrived: {arrived}") from None
        return list(self.requests)

    async def wait_for_count(self, count: int, timeout_s: float = WAIT_TIMEOUT_S) -> list[Received]:
        return await self.wait_for(lambda requests: len(requests) >= count, timeout_s)

    async def wait_for_type(self, event_type: str, timeout_s: float = WAIT_TIMEOUT_S) -> Received:
        """The first request that carries an event of this type."""
        requests = await self.wait_for(lambda them: any(it.type == event_type for it in them), timeout_s)
        return next(request for request in requests if request.type == event_type)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            # The sender may hang up at any moment; stop() cancels. Neither is an error of the receiver's.
            with suppress(ConnectionError, h11.RemoteProtocolError, asyncio.CancelledError):
                await self._serve(reader, writer)
        finally:
            self._connections.discard(task)
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        http = h11.Connection(h11.SERVER)
        body = b""
        head: h11.Request | None = None
        while True:
            event = http.next_event()
            if event is h11.NEED_DATA:
                http.receive_data(await reader.read(READ_BYTES))
            elif isinstance(event, h11.Request):
                head, body = event, b""
            elif isinstance(event, h11.Data):
                body += event.data
            elif isinstance(event, h11.EndOfMessage):
                assert head is not None
                reply = await self._record(head, body)
                if reply.hangs:
                    await reader.read()  # ends when the sender hangs up
                    return
                writer.write(_render(http, reply))
                await writer.drain()
                if http.our_state is h11.MUST_CLOSE:
                    return
                http.start_next_cycle()
            else:  # the sender closed the connection
                return

    async def _record(self, head: h11.Request, body: bytes) -> Reply:
        headers = {name.decode().lower(): value.decode() for name, value in head.headers}
        problem = self._judge(headers, body)
        reply = self._replies.popleft() if self._replies else self._default_reply
        request = Received(
            method=head.method.decode(),
            path=head.target.decode(),
            headers=headers,
            body=body,
            verified=problem is None,
            problem=problem,
            reply=reply,
        )
        async with self._changed:
            self.requests.append(request)
            self._changed.notify_all()
        return reply

    def _judge(self, headers: dict[str, str], body: bytes) -> str | None:
        if self.secret is None:
            return "the receiver has no secret"
        try:
            Webhook(self.secret).verify(body, headers)
        except (WebhookVerificationError, ValueError) as error:  # ValueError: not even well formed
            return str(error) or "not verified"
        return None


def _reply(reply: int | Reply) -> Reply:
    return reply if isinstance(reply, Reply) else Reply(status=reply)


def _render(http: h11.Connection, reply: Reply) -> bytes:
    headers = [*reply.headers.items(), ("content-length", str(len(reply.body)))]
    head = h11.Response(status_code=reply.status, headers=headers, reason=HTTPStatus(reply.status).phrase)
    events = [head, h11.Data(data=reply.body), h11.EndOfMessage()]
    return b"".join(http.send(event) or b"" for event in events)
