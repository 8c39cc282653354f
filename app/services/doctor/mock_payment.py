"""A real payment through a running installation, on a devnet: created, paid, detected, confirmed, told, settled."""

import asyncio
import json
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final

import httpx
from standardwebhooks import Webhook, WebhookVerificationError

from app.blockchain.devnet import mine, send_coin
from app.blockchain.errors import NodeError
from app.blockchain.identity import fetch_chain_id
from app.blockchain.rpc import Endpoint
from app.core import limits
from app.core.chains import Chain
from app.core.errors import PaywatchError
from app.core.evm import to_bytes20
from app.services.doctor.configuration import admit
from app.services.doctor.finding import Finding, Patient, failed, ok
from app.services.doctor.nodes import DEVNET_CHAIN_ID
from app.services.merchants import webhook_secret

_AMOUNT: Final = "0.01"
_POLL_S: Final = 0.1
_RANK: Final = {"pending": 0, "detected": 1, "confirmed": 2, "settled": 3}


class _StoppedError(Exception):
    """A step did not come to pass; carries its finding."""

    def __init__(self, finding: Finding) -> None:
        super().__init__(finding.found)
        self.finding = finding


async def mock_payment(chain_name: str | None, api_key: str) -> list[Finding]:
    """One finding for each step; the last says where it stopped, if it did. Without `api_key` the settings' is used."""
    patient, findings = admit()
    wrong = [each for each in findings if each.result == "failed"]
    if patient is None:
        return wrong
    try:
        if wrong:
            return wrong
        configured = patient.context.settings.api_key
        return await _pay(patient, chain_name, api_key or (configured.get_secret_value() if configured else ""))
    finally:
        await patient.context.close()


async def _pay(patient: Patient, chain_name: str | None, api_key: str) -> list[Finding]:
    done: list[Finding] = []
    try:
        chain = _devnet(patient, chain_name)
        endpoint = await _node(patient, chain)
        done.append(ok("devnet", f"{chain.name}, chain id {chain.chain_id}, {endpoint.name}"))
        if not api_key:
            remedy = "set PAYWATCH_API_KEY or give --api-key; paywatch keys create makes one"
            raise _StoppedError(failed("api key", "none is given", remedy))
        with _Receiver.listening(await _secret(patient)) as receiver:
            base = _local_url(patient)
            headers = {"authorization": f"Bearer {api_key}"}
            async with httpx.AsyncClient(
                base_url=base, headers=headers, timeout=limits.RPC_TIMEOUT_S, trust_env=False
            ) as api:
                await _Run(patient, chain, endpoint, api, receiver, done).all()
    except _StoppedError as stopped:
        done.append(stopped.finding)
    return done


@dataclass
class _Run:
    patient: Patient
    chain: Chain
    endpoint: Endpoint
    api: httpx.AsyncClient
    receiver: "_Receiver"
    done: list[Finding]
    mined: int = 0
    payment: dict[str, Any] = field(default_factory=dict)

    async def all(self) -> None:
        await self._create()
        await self._send()
        listen = f"{self.patient.start_worker('listener')}; paywatch doctor says what keeps {self.chain.name}"
        await self._reaches("detected", listen)
        await self._reaches("confirmed", listen)
        told = f"{self.patient.start_worker('webhook')}, with PAYWATCH_WEBHOOK_ALLOW_NETWORKS=127.0.0.0/8"
        await self._told(told)
        if self.chain.sweep.mode != "off":
            await self._reaches(
                "settled", f"{self.patient.start_worker('sweeper')}; paywatch sweep --dry-run says what waits"
            )

    async def _create(self) -> None:
        body = {
            "chain": self.chain.name,
            "token": self.chain.native.symbol,
            "amount": _AMOUNT,
            "description": "paywatch doctor --mock-payment",
            "webhook_url": self.receiver.url,
        }
        try:
            response = await self.api.post("/v1/payments", json=body)
        except httpx.HTTPError as error:
            found = f"{self.api.base_url}: {type(error).__name__}"
            raise _StoppedError(failed("created", found, self.patient.start_server)) from None
        if response.status_code != 201:
            raise _StoppedError(failed("created", _problem(response), _remedy(response)))
        self.payment = response.json()
        self.done.append(
            ok("created", f"{self.payment['id']}: {_AMOUNT} {self.payment['token']} to {self.payment['address']}")
        )

    async def _send(self) -> None:
        try:
            tx_hash = await send_coin(
                self.endpoint, to_bytes20(self.payment["address"]), int(self.payment["amount_units"])
            )
        except NodeError as error:
            raise _StoppedError(
                failed("paid", str(error), "use a devnet with unlocked accounts: Anvil or Hardhat")
            ) from None
        self.done.append(ok("paid", f"transaction 0x{tx_hash.hex()}"))

    async def _reaches(self, status: str, remedy: str) -> None:
        async def there() -> str | None:
            await self._mine()
            response = await self.api.get(f"/v1/payments/{self.payment['id']}")
            if response.status_code != 200:
                return None
            self.payment = response.json()
            return self.payment["status"] if _RANK.get(self.payment["status"], 0) >= _RANK[status] else None

        await self._wait(status, there, remedy, lambda: f"it is {self.payment['status']}")
        self.done.append(ok(status, f"{status}_at {self.payment[f'{status}_at']}"))

    async def _mine(self) -> None:
        """A block, where nobody else mines; on one that mines by itself one more does no harm."""
        if self.mined < limits.MOCK_BLOCKS:
            self.mined += 1
            try:
                await mine(self.endpoint)
            except NodeError:
                self.mined = limits.MOCK_BLOCKS  # it mines by itself, or not at all

    async def _told(self, remedy: str) -> None:
        async def there() -> str | None:
            return self.receiver.refused or ("told" if "payment.confirmed" in self.receiver.verified else None)

        came = await self._wait(
            "webhook", there, remedy, lambda: f"verified so far: {', '.join(self.receiver.verified) or 'none'}"
        )
        if came != "told":
            found = f"a webhook came whose signature does not verify: {came}"
            raise _StoppedError(
                failed("webhook", found, "run it where PAYWATCH_SECRET_KEY and the database are the server's")
            )
        self.done.append(ok("webhook", f"verified: {', '.join(self.receiver.verified)}"))

    async def _wait(
        self, step: str, probe: Callable[[], Awaitable[str | None]], remedy: str, state: Callable[[], str]
    ) -> str:
        deadline = time.monotonic() + limits.MOCK_STEP_S
        while True:
            try:
                answer = await probe()
            except httpx.HTTPError as error:
                raise _StoppedError(
                    failed(step, f"the API is away: {type(error).__name__}", self.patient.start_server)
                ) from None
            if answer:
                return answer
            if time.monotonic() > deadline:
                raise _StoppedError(failed(step, f"not within {limits.MOCK_STEP_S:.0f} s: {state()}", remedy))
            await asyncio.sleep(_POLL_S)


class _Receiver(ThreadingHTTPServer):
    """Verifies webhooks. `verified`: types, in the order in which they came; `refused`: why one was not believed."""

    def __init__(self, secret: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.webhook = Webhook(secret)
        self.verified: list[str] = []
        self.refused: str | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/"

    @classmethod
    @contextmanager
    def listening(cls, secret: str) -> Iterator["_Receiver"]:
        with cls(secret) as receiver:
            thread = threading.Thread(target=receiver.serve_forever, daemon=True)
            thread.start()
            try:
                yield receiver
            finally:
                receiver.shutdown()
                thread.join()


class _Handler(BaseHTTPRequestHandler):
    server: _Receiver
    protocol_version = "HTTP/1.1"
    timeout = 10  # seconds for a sender that stops in the middle

    def do_POST(self) -> None:
        length = self.headers.get("content-length", "")
        body = self.rfile.read(min(int(length) if length.isdecimal() else 0, limits.RATE_ANSWER_BYTES))
        try:
            event = self.server.webhook.verify(body, dict(self.headers))
            self.server.verified.append(str(event["type"]))
            status = 204
        except (WebhookVerificationError, ValueError, KeyError, TypeError) as error:
            self.server.refused = str(error) or type(error).__name__
            status = 401
        self.send_response(status)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_args: Any) -> None:
        """The findings say it."""


def _devnet(patient: Patient, name: str | None) -> Chain:
    """The devnet chain that is meant. Only chain id 31337 is one: anywhere else money would be real."""
    devnets = [chain for chain in patient.chains if chain.chain_id == DEVNET_CHAIN_ID]
    chosen = [chain for chain in patient.chains if chain.name == name] if name is not None else devnets[:1]
    if not chosen:
        found = (
            f"no enabled chain is named {name!r}"
            if name
            else f"no enabled chain has the devnet's chain id {DEVNET_CHAIN_ID}"
        )
        raise _StoppedError(
            failed("devnet", found, "enable the devnet in chains.yaml and start Anvil, or make demo KEEP=1")
        )
    [chain] = chosen
    if chain.chain_id != DEVNET_CHAIN_ID:
        found = f"{chain.name} has chain id {chain.chain_id}: a mock payment is for a devnet ({DEVNET_CHAIN_ID}) alone"
        raise _StoppedError(failed("devnet", found, "name a devnet with --chain, or send a small real payment by hand"))
    return chain


async def _node(patient: Patient, chain: Chain) -> Endpoint:
    endpoint = patient.context.nodes.nodes(chain).endpoints[0]
    try:
        chain_id = await fetch_chain_id(endpoint)
    except NodeError as error:
        raise _StoppedError(failed("devnet", f"{endpoint.name}: {error}", "start the devnet's node")) from None
    if chain_id != DEVNET_CHAIN_ID:
        found = f"{endpoint.name} is of chain id {chain_id}, no devnet's: nothing is paid there"
        raise _StoppedError(failed("devnet", found, f"mend rpc_urls of {chain.name} in chains.yaml"))
    return endpoint


async def _secret(patient: Patient) -> str:
    """What signs webhooks to a payment's own URL."""
    try:
        if "database" in patient.down:
            raise _StoppedError(failed("webhook secret", patient.down["database"], patient.start_server))
        return await webhook_secret(patient.context, None)
    except PaywatchError as error:
        raise _StoppedError(failed("webhook secret", str(error), patient.start_server)) from None


def _local_url(patient: Patient) -> str:
    settings = patient.context.settings
    return settings.model_copy(update={"public_url": None}).effective_public_url


def _problem(response: httpx.Response) -> str:
    try:
        problem = response.json()
        return f"HTTP {response.status_code} {problem['code']}: {problem['detail']}"
    except (json.JSONDecodeError, KeyError, TypeError):
        return f"HTTP {response.status_code}"


def _remedy(response: httpx.Response) -> str:
    if response.status_code in (401, 403):
        return "give the key of the first merchant with --api-key; paywatch keys create makes one"
    if response.status_code == 503:
        return "paywatch doctor says what is away"
    return "paywatch doctor; the server's log has the request"
