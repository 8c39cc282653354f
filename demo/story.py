"""The demo from beginning to end: a chain, a gateway, a shop with two orders, and its customers."""

import asyncio
import tempfile
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Final

import aiohttp
import httpx

from demo.customer import pay
from demo.gateway import CHAIN, CONFIRMATIONS, GAS_ACCOUNT, POLL_INTERVAL_S, TREASURY, Gateway, GatewayError
from demo.invitation import invitation
from demo.order import STATUSES, Order
from demo.timeline import Timeline
from devnet.anvil import Anvil, AnvilError
from devnet.ports import free_port, is_free
from devnet.receiver import Received, Receiver

DEADLINE_S: Final = 90.0  # it takes about 15
BLOCK_TIME_S: Final = 1
NODE_PORT: Final = 8545
GATEWAY_PORT: Final = 8000
CUSTOMER_UNITS: Final = 1_000 * 10**6
OPERATOR_INDEX: Final = 9
GAS_WEI: Final = 10**17
SHOWN_STEPS: Final = ("created", "paid", *STATUSES)
COLOURS: Final = {"webhook": "cyan", "confirmed": "green", "settled": "green"}


class DemoError(Exception):
    """A step that was not seen, or that should not have been."""


class Story:
    """`succeeded`: every step was seen, and what follows is only for the spectator."""

    def __init__(self, timeline: Timeline) -> None:
        self.succeeded = False
        self._heard = 0
        self._timeline = timeline
        self._orders = {
            order.id: order
            for order in (
                Order("A-1001", token="ETH", amount="0.05", account_index=1),
                Order("A-1002", token="USDC", amount="25", account_index=2),
            )
        }

    async def play(self, keep: bool) -> None:
        """Raises DemoError. Whatever was started is ended before it returns, or is cancelled."""
        async with AsyncExitStack() as stack:
            deadline = asyncio.timeout(DEADLINE_S)
            try:
                async with deadline:
                    stage = await self._set_stage(stack)
                    await self._run_orders(*stage)
            except (AnvilError, GatewayError, aiohttp.ClientError, httpx.HTTPError, OSError, RuntimeError) as error:
                reason = f"not done within {DEADLINE_S:.0f} s" if deadline.expired() else f"{error}"
                raise DemoError(f"{reason or type(error).__name__}\n{self._missing()}") from error
            self.succeeded = True
            self._summarize()
            if keep:
                await self._keep(*stage)

    async def _set_stage(self, stack: AsyncExitStack) -> tuple[Anvil, Gateway, Receiver]:
        tell = self._timeline.tell
        node = await stack.enter_async_context(Anvil(automine=True, port=NODE_PORT if is_free(NODE_PORT) else 0))
        token = await node.deploy("TestToken", "USD Coin", "USDC", 6)
        for order in self._orders.values():
            await node.transact(token, "mint(address,uint256)", node.accounts[order.account_index], CUSTOMER_UNITS)
        await node.send_ether(OPERATOR_INDEX, GAS_ACCOUNT, GAS_WEI)
        await node.mine_every(BLOCK_TIME_S)
        tell("devnet", "started", f"{node.url}, a block every {BLOCK_TIME_S} s; test token USDC at {token}")
        tell("operator", "funds", f"the gas account {GAS_ACCOUNT}; the treasury is {TREASURY}")

        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="paywatch-demo-"))
        port = GATEWAY_PORT if is_free(GATEWAY_PORT) else free_port()
        gateway = await stack.enter_async_context(Gateway(Path(folder), port, node.url, token))
        tell("gateway", "ready", f"{gateway.url}, embedded: SQLite, its own Redis, workers")

        merchant = await stack.enter_async_context(Receiver())
        endpoint = await gateway.post("/v1/webhook_endpoints", {"url": merchant.url})
        merchant.secret = endpoint["secret"]
        tell("merchant", "listens", f"{merchant.url}")
        return node, gateway, merchant

    async def _run_orders(self, node: Anvil, gateway: Gateway, merchant: Receiver) -> None:
        for order in self._orders.values():
            await self._create(gateway, order)
        while any("payment.created" not in order.seen for order in self._orders.values()):
            await self._look(gateway, merchant)
        for order in self._orders.values():
            tx_hash = await pay(node, order.payment["payment_uri"], order.account_index)
            self._see(order, "paid", "paid", f"{order.amount} {order.token} by its customer, transaction {tx_hash}")
        while any(order.missing for order in self._orders.values()):
            await self._look(gateway, merchant)

    async def _create(self, gateway: Gateway, order: Order) -> None:
        body = {"chain": CHAIN, "token": order.token, "amount": order.amount, "order_id": order.id}
        order.payment = await gateway.post("/v1/payments", body, **{"Idempotency-Key": order.id})
        payment = order.payment
        self._see(order, "created", "pending", f"{payment['id']}: {order.amount} {order.token} to {payment['address']}")

    async def _look(self, gateway: Gateway, merchant: Receiver) -> None:
        """Tell what is new: at the gateway, and at the merchant."""
        await asyncio.sleep(POLL_INTERVAL_S)
        for order in self._orders.values():
            self._tell_progress(order, await gateway.get(f"/v1/payments/{order.payment['id']}"))
        for request in merchant.requests[self._heard :]:
            self._heard += 1
            self._hear(request)

    def _tell_progress(self, order: Order, payment: dict[str, Any]) -> None:
        before, order.payment = order.confirmations, payment
        block, count = payment["detected_in_block"], order.confirmations
        reached = [status for status in STATUSES if payment[f"{status}_at"] and status not in order.seen]
        for status in reached:
            detail = f"block {block}, {_confirmations(count)}"
            if status == "settled":
                sweep = payment["sweeps"][-1]
                detail = f"{sweep['amount']} {sweep['token']} in the treasury, transaction {sweep['tx_hash']}"
            self._see(order, status, status, detail)
        if not reached and count != before and "confirmed" not in order.seen:
            self._timeline.tell(order.id, "", f"block {block}, {_confirmations(count)}")

    def _hear(self, request: Received) -> None:
        """Raises DemoError for a webhook that a merchant must not believe, or that came out of order."""
        if not request.verified:
            raise DemoError(f"a webhook was not to be verified: {request.problem}")
        payment = request.payload["data"]
        order = self._orders.get(payment["order_id"])
        text = f"{request.type}, version {payment['version']}, signature verified"
        if order is None or request.webhook_id in order.webhook_ids:
            self._timeline.tell(payment["order_id"] or "yours", "webhook", f"{text} ({payment['id']})", "cyan")
            return
        order.webhook_ids.add(request.webhook_id)
        if payment["version"] <= order.version:
            raise DemoError(f"order {order.id}: {text} came after version {order.version}")
        order.version = payment["version"]
        self._see(order, request.type, "webhook", text)

    def _see(self, order: Order, step: str, what: str, detail: str) -> None:
        order.seen[step] = self._timeline.tell(order.id, what, detail, COLOURS.get(what, ""))

    def _missing(self) -> str:
        lines = [f"order {order.id}: {', '.join(order.missing)}" for order in self._orders.values() if order.missing]
        return "\n".join(["Not seen:", *lines])

    def _summarize(self) -> None:
        header = ["order", "amount", *SHOWN_STEPS, "webhooks"]
        rows = [
            [
                order.id,
                f"{order.amount} {order.token}",
                *(f"{order.seen[step]:.1f} s" for step in SHOWN_STEPS),
                f"{len(order.webhook_ids)}, all verified",
            ]
            for order in self._orders.values()
        ]
        first = min(order.seen["confirmed"] for order in self._orders.values())
        self._timeline.summarize(
            header, rows, f"Every step was seen. From start to the first confirmed payment: {first:.1f} s."
        )

    async def _keep(self, node: Anvil, gateway: Gateway, merchant: Receiver) -> None:
        """Until it is cancelled: everything runs on, and webhooks are told."""
        self._timeline.say(invitation(node, gateway))
        while True:
            await asyncio.sleep(POLL_INTERVAL_S)
            for request in merchant.requests[self._heard :]:
                self._heard += 1
                if request.verified:
                    self._hear(request)
                else:
                    self._timeline.tell("merchant", "refused", f"a webhook: {request.problem}", "red")


def _confirmations(count: int) -> str:
    return f"{count} of {CONFIRMATIONS} confirmations" if count <= CONFIRMATIONS else f"{count} confirmations"
