"""The API server: `create_app()` and the entry point. In embedded mode it runs Redis and the workers too."""

import asyncio
import gc
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager

import uvicorn
from fastapi import FastAPI
from fastapi_offline import FastAPIOffline

from app.api import errors, health, openapi
from app.api.deps import Gateway, running_gateway
from app.api.hooks import webhook_router
from app.api.middleware import RequestMiddleware
from app.api.v1 import chains, events, keys, merchant, payments, streams, sweeps, webhooks
from app.core import limits
from app.core.chains import ChainsFile, load_chains
from app.core.config import Settings, load_settings, read_environment
from app.core.errors import ConfigError, PaywatchError
from app.core.logger import configure_logging, get_logger, report_error
from app.core.loop_lag import LoopLag
from app.core.queue import ROLES
from app.core.shutdown import stop_on_signals
from app.workers.embedded import embedded_redis, told_redis_url
from app.workers.runner import run_workers

log = get_logger(__name__)


def create_app(gateway: Gateway | None = None) -> FastAPI:
    """The ASGI application over a running gateway; without one it makes its own from the environment."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            if gateway is None:
                settings, chains_file = load()
                app.state.gateway = await stack.enter_async_context(
                    running_gateway(settings, chains_file, settings.redis_url)
                )
            yield

    app = FastAPIOffline(
        title="Paywatch",
        version="1",
        summary="Self-hosted crypto payments on EVM chains",
        lifespan=lifespan,
        docs_url="/docs",
        redoc_url=None,
        static_url="/docs/files",
        swagger_ui_parameters={"validatorUrl": None},  # else the document's address goes to validator.swagger.io
        webhooks=webhook_router(),
        generate_unique_id_function=lambda route: route.name,  # what generated clients call it
        redirect_slashes=False,  # its Location would have the scheme that we see, which behind a proxy is plain http
    )
    app.state.gateway = gateway
    app.add_middleware(RequestMiddleware)
    errors.install(app)
    for router in (
        payments.router,
        events.router,
        sweeps.router,
        streams.router,
        chains.router,
        webhooks.router,
        keys.router,
        merchant.router,
        health.router,
    ):
        app.include_router(router)
    openapi.install(app)
    return app


def load() -> tuple[Settings, ChainsFile]:
    """Settings and chains of this process, checked for a server. Raises ConfigError.

    Embedded without a private key nobody sweeps: there the chains' `sweep.mode` is off, and final transfers settle.
    In production the key is on another host, of which this one knows nothing.
    """
    settings = load_settings()
    configure_logging(settings.log_format, settings.log_level)
    settings.check_server()
    chains_file = load_chains(settings.chains_file, read_environment())
    if settings.embedded and not settings.has_private_key:
        chains_file = _without_sweeping(chains_file)
    return settings, chains_file


def _without_sweeping(chains_file: ChainsFile) -> ChainsFile:
    swept = [chain.name for chain in chains_file.enabled if chain.sweep.mode != "off"]
    if swept:
        log.warning(
            "nothing is swept, and final transfers are settled: there is no private key; "
            "set PAYWATCH_MNEMONIC or PAYWATCH_KEYSTORE_FILE, or sweep.mode to off",
            chains=swept,
        )
    return chains_file.without_sweeping()


class _Server(uvicorn.Server):
    """uvicorn without its own signal handlers: it raises the signal again, and ends with 143 instead of 0."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def serve(settings: Settings, chains_file: ChainsFile) -> None:
    """Serve until SIGTERM or SIGINT. Raises ConfigError."""
    stop = stop_on_signals()
    async with AsyncExitStack() as stack:
        redis_url = settings.redis_url
        if settings.embedded:
            redis_url = await stack.enter_async_context(embedded_redis())
            stack.enter_context(told_redis_url(settings, redis_url))
        gateway = await stack.enter_async_context(running_gateway(settings, chains_file, redis_url))
        config = uvicorn.Config(
            create_app(gateway),
            host=settings.host,
            port=settings.port,
            log_config=None,
            access_log=False,
            proxy_headers=False,
            timeout_graceful_shutdown=int(limits.WORKER_STOP_S),
        )
        server = _Server(config)
        async with asyncio.TaskGroup() as group:
            served = group.create_task(_until_stopped(server, stop))
            lag = group.create_task(LoopLag().measure())
            if settings.embedded:
                group.create_task(run_workers(settings, chains_file, redis_url, ROLES, stop))
            _spare_collector()
            log.info("paywatch started", url=settings.effective_public_url, embedded=settings.embedded)
            await stop.wait()
            lag.cancel()
            gateway.streams.close()  # otherwise they would be waited for
            server.should_exit = True
    if not served.result():
        where = f"{settings.host}, port {settings.port}"
        raise ConfigError(f"PAYWATCH_HOST, PAYWATCH_PORT: cannot listen on {where}; is another server there?")
    log.info("stopped")


def _spare_collector() -> None:
    """Leave what was imported and made so far out of the search for garbage: measured, a tenth of a request's CPU."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*limits.GC_THRESHOLDS)


async def _until_stopped(server: uvicorn.Server, stop: asyncio.Event) -> bool:
    """Serve until told to stop; False when the port is taken. Either way the workers stop in their own time."""
    try:
        await server.serve()
    except SystemExit:  # uvicorn's way to say so
        return False
    else:
        return True
    finally:
        stop.set()


def main() -> int:
    configure_logging(None, "INFO")  # until the settings say how
    code = 0
    try:
        asyncio.run(serve(*load()))
    except* PaywatchError as failures:
        sys.stderr.write("".join(f"{failure}\n" for failure in failures.exceptions))
        code = 1
    except* Exception as failures:  # noqa: BLE001 it is reported
        report_error(log, failures)
        code = 1
    return code


if __name__ == "__main__":
    sys.exit(main())
