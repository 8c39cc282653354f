"""What was sent to the node, with places to interfere."""

import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Requests:
    """One entry of `bodies` for each HTTP request: its JSON-RPC calls.

    `on_request` runs before a request is sent; `on_answer` may change the answer's body. Each is called with the
    request's methods.
    """

    bodies: list[list[dict[str, Any]]] = field(default_factory=list)
    on_request: Callable[[set[str]], Awaitable[None]] | None = None
    on_answer: Callable[[set[str], bytes], Awaitable[bytes]] | None = None

    def calls(self, method: str) -> list[dict[str, Any]]:
        return [call for body in self.bodies for call in body if call["method"] == method]

    async def before(self, payload: bytes) -> None:
        self.bodies.append(_calls(payload))
        if self.on_request is not None:
            await self.on_request(_methods(payload))

    async def after(self, payload: bytes, body: bytes) -> bytes:
        return body if self.on_answer is None else await self.on_answer(_methods(payload), body)


def _calls(payload: bytes) -> list[dict[str, Any]]:
    document = json.loads(payload)
    return document if isinstance(document, list) else [document]


def _methods(payload: bytes) -> set[str]:
    return {call["method"] for call in _calls(payload)}
