"""A JSON page that a test writes: what an HTTP source of rates answers."""

import asyncio
from typing import Any, Self

from aiohttp import web


class RatePage:
    """Answers `GET /{base}-{quote}` with `body`, under `status` and `headers`; each asked path is in `asked`.

    While `held` is set, answers wait until `release` is.
    """

    def __init__(self, body: str = '{"data": {"amount": "2500.00"}}') -> None:
        self.body = body
        self.status = 200
        self.headers: dict[str, str] = {}
        self.asked: list[str] = []
        self.held = False
        self.release = asyncio.Event()
        self.url = ""
        self._runner: web.AppRunner | None = None

    async def __aenter__(self) -> Self:
        application = web.Application()
        application.router.add_get("/{path:.*}", self._answer)
        self._runner = web.AppRunner(application, shutdown_timeout=0.1, handler_cancellation=True)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}/" + "{base}-{quote}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self.release.set()
        await self.stop()

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def _answer(self, request: web.Request) -> web.Response:
        self.asked.append(request.path.lstrip("/"))
        if self.held:
            await self.release.wait()
        headers: Any = {"content-type": "application/json", **self.headers}
        return web.Response(body=self.body.encode(), status=self.status, headers=headers)
