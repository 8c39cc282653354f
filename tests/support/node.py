"""Nodes that misbehave on command: one that says what a test scripted, and one that stands before a real one."""

import json
from collections.abc import Awaitable, Callable
from typing import Any, Self

from aiohttp import ClientSession, web

from devnet.anvil import CALL_TIMEOUT
from devnet.ports import free_port, give_back
from tests.support.anvil import Anvil

Call = dict[str, Any]
Respond = Callable[[Any], Awaitable[web.Response]]


def calls_of(payload: Any) -> list[Call]:
    return payload if isinstance(payload, list) else [payload]


class _Server:
    """A JSON-RPC server on loopback; one entry of `bodies` for each HTTP request. stop() plays its end, and start() its
    return at the same URL.
    """

    def __init__(self) -> None:
        self.bodies: list[Any] = []
        self.url = ""
        self._port = 0
        self._runner: web.AppRunner | None = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()
        give_back(self._port)

    async def start(self) -> None:
        if self._runner is not None:
            return
        application = web.Application()
        application.router.add_post("/{path:.*}", self._handle)
        # One cut off leaves its connection open; what still waits for a client that has gone must not wait for ever.
        self._runner = web.AppRunner(application, shutdown_timeout=2.0, handler_cancellation=True)
        await self._runner.setup()
        self._port = self._port or free_port()
        await web.TCPSite(self._runner, "127.0.0.1", self._port).start()
        self.url = f"http://127.0.0.1:{self._port}"

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    def calls(self, method: str) -> list[Call]:
        return [call for body in self.bodies for call in calls_of(body) if call["method"] == method]

    async def _handle(self, request: web.Request) -> web.Response:
        payload = json.loads(await request.read())
        self.bodies.append(payload)
        return await self.respond(payload)

    async def respond(self, payload: Any) -> web.Response:
        raise NotImplementedError


class ScriptedNode(_Server):
    """Answers with what `script` makes of a request, a list of calls or one call."""

    def __init__(self, script: Callable[[Any], web.Response]) -> None:
        super().__init__()
        self.script = script

    async def respond(self, payload: Any) -> web.Response:
        return self.script(payload)


class ProxyNode(_Server):
    """Hands every call to the node at `target`; `change` makes something else of a call's answer."""

    def __init__(self, target: str, change: Callable[[Call, Call], Call] | None = None) -> None:
        super().__init__()
        self.target = target
        self.change = change

    async def respond(self, payload: Any) -> web.Response:
        answers = await ask(self.target, payload)
        if self.change is not None:
            made = {answer["id"]: answer for answer in calls_of(answers)}
            changed = [self.change(call, made[call["id"]]) for call in calls_of(payload)]
            answers = changed if isinstance(payload, list) else changed[0]
        return web.json_response(answers)


class Balancer(_Server):
    """One URL before two nodes: `head` tells the newest block, `final` says that its block at `final_height` is final,
    and `blocks` answers everything else.
    """

    def __init__(self, node: Anvil, final_height: int) -> None:
        super().__init__()
        self.head = self.final = self.blocks = node
        self.final_height = final_height

    async def respond(self, payload: Any) -> web.Response:
        answers = [await self._answer(call) for call in calls_of(payload)]
        return web.json_response(answers if isinstance(payload, list) else answers[0])

    async def _answer(self, call: Call) -> Call:
        name = call["params"][0] if call["method"] == "eth_getBlockByNumber" else None
        if name == "finalized":
            return await ask(self.final.url, call | {"params": [hex(self.final_height), False]})
        return await ask((self.head if name == "latest" else self.blocks).url, call)


async def ask(url: str, payload: Any) -> Any:
    async with ClientSession(timeout=CALL_TIMEOUT) as session, session.post(url, json=payload) as response:
        return await response.json()


def result(call: Call, value: Any) -> Call:
    return {"jsonrpc": "2.0", "id": call["id"], "result": value}


def failure(call: Call, code: int, message: str) -> Call:
    return {"jsonrpc": "2.0", "id": call["id"], "error": {"code": code, "message": message}}


def answered(payload: Any, value: Callable[[Call], Any]) -> web.Response:
    """A well-behaved answer: `value` of each call."""
    answers = [result(call, value(call)) for call in calls_of(payload)]
    return web.json_response(answers if isinstance(payload, list) else answers[0])


def hides_payments(call: Call, answer: Call) -> Call:
    """A change for `ProxyNode`: no logs, no transactions in blocks, and blooms that promise nothing."""
    value = answer.get("result")
    if call["method"] == "eth_getLogs":
        return answer | {"result": []}
    if call["method"] == "eth_getBlockByNumber" and value is not None and call["params"][1]:
        return answer | {"result": value | {"transactions": [], "logsBloom": "0x" + "00" * 256}}
    return answer
