"""Goal: what docs/webhooks.md and OpenAPI tell a merchant is what Paywatch sends."""

import asyncio
import json
import os
import re
import sys
from pathlib import Path
from typing import Any, get_args

import httpx
import pytest
from pydantic import ValidationError

from app.api.hooks import body_model
from app.core.evm import checksum, to_bytes20
from app.services.decide import EventType
from app.services.endpoints import TEST_EVENT, EndpointView
from app.services.gateway import Gateway
from app.services.views import PaymentView
from devnet.ports import free_port
from server import create_app
from tests.support.gateway import WEBHOOK_SECRET, create_payment
from tests.support.outbox import add_events, make_due, rows, send_all
from tests.support.receiver import Receiver

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "docs/webhooks.md").read_text()
BODIES = (ROOT / "docs/webhook-bodies.md").read_text()
TYPES = get_args(EventType)


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)


def examples() -> dict[str, Any]:
    bodies = [json.loads(block) for block in blocks(BODIES, "json")]
    return {body["type"]: body for body in bodies}


def check(body: dict[str, Any]) -> None:
    """A body holds what its schema names, no less and no more. Raises ValidationError or AssertionError."""
    data = EndpointView if body["type"] == TEST_EVENT else PaymentView
    model = body_model(body["type"], data)
    assert model.model_validate(body).model_dump(mode="json", by_alias=True) == body


def shape(value: Any) -> Any:
    """The names in a body, without what they hold."""
    if isinstance(value, dict):
        return {name: shape(inner) for name, inner in value.items()}
    return [shape(value[0])] if isinstance(value, list) and value and isinstance(value[0], dict) else None


def test_every_type_has_an_entry_in_openapi_with_its_headers() -> None:
    spec = create_app(None).openapi()
    assert spec["openapi"].startswith("3.1")
    assert set(spec["webhooks"]) == {*TYPES, "webhook_endpoint.test"}
    for event, path in spec["webhooks"].items():
        names = {(parameter["name"], parameter["in"]) for parameter in path["post"]["parameters"]}
        assert names == {(f"webhook-{name}", "header") for name in ("id", "timestamp", "signature")}
        reference = path["post"]["requestBody"]["content"]["application/json"]["schema"]["$ref"]
        schema = spec["components"]["schemas"][reference.rpartition("/")[2]]
        assert schema["properties"]["type"]["const"] == event


@pytest.mark.parametrize("event", [*TYPES, "webhook_endpoint.test"])
def test_every_type_has_an_example_that_is_valid_by_its_schema(event: str) -> None:
    check(examples()[event])
    wrong = examples()[event]
    del wrong["data"]["created_at"]
    with pytest.raises(ValidationError):
        check(wrong)
    assert f"## {event}\n" in BODIES
    assert event == "webhook_endpoint.test" or f"| `{event}` |" in GUIDE


@pytest.mark.parametrize("event", TYPES)
def test_an_example_is_consistent_in_itself(event: str) -> None:
    payment = examples()[event]["data"]
    received = sum(int(each["amount_units"]) for each in payment["transactions"] if each["status"] == "canonical")
    assert int(payment["amount_received_units"]) == received
    assert int(payment["options"][0]["amount_received_units"]) == received
    addresses = [payment["address"], payment["token_address"], *(each["from"] for each in payment["transactions"])]
    assert all(address == checksum(to_bytes20(address)) for address in addresses)


async def test_the_examples_have_the_fields_of_what_is_really_sent(
    gateway: Gateway, client: httpx.AsyncClient, sender: httpx.AsyncClient, receiver: Receiver
) -> None:
    endpoint = (await client.post("/v1/webhook_endpoints", json={"url": receiver.url})).json()
    await create_payment(client)
    await send_all(gateway.context, sender)
    await client.post(f"/v1/webhook_endpoints/{endpoint['id']}/test")
    for request in receiver.requests:
        check(request.payload)
        assert shape(examples()[request.type]) == shape(request.payload)
    assert [request.type for request in receiver.requests] == ["payment.created", "webhook_endpoint.test"]


@pytest.mark.parametrize(
    ("language", "name", "program"),
    [("python", "receiver.py", [sys.executable]), ("javascript", "receiver.mjs", ["node"])],
    ids=["python", "javascript"],
)
async def test_the_receivers_of_the_guide_verify_order_and_refuse(
    gateway: Gateway,
    client: httpx.AsyncClient,
    sender: httpx.AsyncClient,
    tmp_path: Path,
    language: str,
    name: str,
    program: list[str],
) -> None:
    [code] = blocks(GUIDE, language)
    (tmp_path / name).write_text(code)
    (tmp_path / "node_modules").symlink_to(ROOT / "node_modules")
    port = free_port()
    process = await asyncio.create_subprocess_exec(
        *(*program, str(tmp_path / name)),
        env=os.environ | {"PORT": str(port), "WEBHOOK_SECRET": WEBHOOK_SECRET},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    assert process.stdout is not None
    try:
        await _answers(port)
        payment = await create_payment(client, webhook_url=f"http://127.0.0.1:{port}/webhooks", description="Mugs ☕")
        await add_events(gateway, payment["id"], 2)
        await send_all(gateway.context, sender)
        await make_due(gateway)
        assert {row.status for row in await rows(gateway)} == {"delivered"}
        for row in await rows(gateway):  # all of them again, and in order: the receiver knows them
            assert (await client.post(f"/v1/webhook_deliveries/{row.id}/replay")).status_code == 200
        await send_all(gateway.context, sender)
        forged = {"webhook-id": "evt_1", "webhook-timestamp": "1", "webhook-signature": "v1,AAAA"}
        async with httpx.AsyncClient(timeout=60.0) as stranger:
            answer = await stranger.post(f"http://127.0.0.1:{port}/", content=b'{"type": "x"}', headers=forged)
        assert answer.status_code == 401
    finally:
        process.terminate()
        out, _ = await process.communicate()
    assert out.decode().splitlines() == [
        f"{event} {payment['id']} pending" for event in ("payment.created", "payment.underpaid", "payment.underpaid")
    ]


async def _answers(port: int) -> None:
    async with asyncio.timeout(60):
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                await asyncio.sleep(0.05)
            else:
                writer.close()
                await writer.wait_closed()
                return
