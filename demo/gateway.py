"""A gateway of the demo's own: `python server.py` in embedded mode, in a folder that is gone afterwards."""

import asyncio
import os
import sys
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import httpx

from devnet.process import ChildProcess

SERVER: Final = Path(__file__).resolve().parents[1] / "server.py"
API_KEY: Final = "demo-key"
# The words of the BIP-39 test vectors: everybody has them. Embedded, the gateway is its own sweeper.
MNEMONIC: Final = "abandon " * 11 + "about"
GAS_ACCOUNT: Final = "0x78839F6054d7ed13918bAe0473BA31b1Ca9D7265"  # m/44'/60'/1'/0/0 of the words
TREASURY: Final = "0x" + "7e" * 20
INHERITED: Final = ("PATH", "HOME", "TMPDIR", "LANG", "LC_ALL", "SYSTEMROOT")  # and no PAYWATCH_ of the operator's
CHAIN: Final = "devnet"
CONFIRMATIONS: Final = 3
FINALITY_DEPTH: Final = 6
POLL_INTERVAL_S: Final = 0.2
REQUEST_TIMEOUT_S: Final = 30.0  # a busy machine takes a while
STOP_TIMEOUT_S: Final = 12.0  # it promises to end within 10
LOG_LINES: Final = 20


class GatewayError(Exception):
    """It ended, or answered what it should not have; the message holds the end of its log."""


class Gateway:
    """Use as `async with Gateway(…) as gateway`; then it is ready for requests."""

    def __init__(self, folder: Path, port: int, node_url: str, token_address: str) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self._client = httpx.AsyncClient(
            base_url=self.url,
            headers={"authorization": f"Bearer {API_KEY}"},
            timeout=REQUEST_TIMEOUT_S,
            trust_env=False,
        )
        chains = folder / "chains.yaml"
        chains.write_text(_chains_yaml(node_url, token_address))
        environment = {name: os.environ[name] for name in INHERITED if name in os.environ} | {
            "PAYWATCH_DATABASE_URL": f"sqlite+aiosqlite:///{folder / 'data' / 'paywatch.db'}",
            "PAYWATCH_CHAINS_FILE": str(chains),
            "PAYWATCH_PORT": str(port),
            "PAYWATCH_MNEMONIC": MNEMONIC,
            "PAYWATCH_API_KEY": API_KEY,
            "PAYWATCH_WEBHOOK_ALLOW_NETWORKS": "127.0.0.0/8",  # the merchant is on this machine
        }
        # In its own folder, so that it reads no .env either.
        self._process = ChildProcess(
            [sys.executable, str(SERVER)], env=environment, cwd=folder, stop_timeout_s=STOP_TIMEOUT_S
        )

    async def __aenter__(self) -> Self:
        try:
            await self._wait_until_ready()
        except BaseException:
            await self._stop()
            raise
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._stop()

    @property
    def log_path(self) -> Path:
        return self._process.log_path

    async def post(self, path: str, body: dict[str, Any], **headers: str) -> Any:
        """The answer to a POST. Raises GatewayError for anything but 2xx."""
        return await self._ask("POST", path, json=body, headers=headers)

    async def get(self, path: str) -> Any:
        return await self._ask("GET", path)

    async def _ask(self, method: str, path: str, **request: Any) -> Any:
        try:
            response = await self._client.request(method, path, **request)
        except httpx.TransportError as error:
            raise self._error(f"{method} {path}: {type(error).__name__}") from error
        if not response.is_success:
            raise self._error(f"{method} {path} was answered {response.status_code}: {response.text}")
        return response.json()

    async def _wait_until_ready(self) -> None:
        while True:
            if not self._process.is_running:
                raise self._error("the gateway ended at once")
            try:
                if (await self._client.get("/health/ready")).is_success:
                    return
            except httpx.TransportError:
                pass  # it does not listen yet
            await asyncio.sleep(POLL_INTERVAL_S)

    async def _stop(self) -> None:
        try:
            await self._client.aclose()
        finally:
            self._process.stop()

    def _error(self, message: str) -> GatewayError:
        log = "\n".join(self._process.log().splitlines()[-LOG_LINES:])
        return GatewayError(f"{message}\nThe end of the gateway's log:\n{log}")


def _chains_yaml(node_url: str, token_address: str) -> str:
    return f"""\
chains:
  - name: {CHAIN}
    chain_id: 31337
    rpc_url: "{node_url}"
    confirmations_required: {CONFIRMATIONS}
    finality: {{depth: {FINALITY_DEPTH}}}
    poll_interval: {POLL_INTERVAL_S}
    native: {{symbol: ETH, decimals: 18}}
    tokens:
      - {{symbol: USDC, address: "{token_address}", decimals: 6}}
    sweep: {{mode: auto, treasury: "{TREASURY}", interval: {POLL_INTERVAL_S}}}
"""
