"""Goal: what is sent is verified by the official libraries, also while a secret is being replaced, and only with a
secret that is valid at that time."""

import asyncio
import base64
import json
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import update
from standardwebhooks import Webhook, WebhookVerificationError

from app.core import limits
from app.core.clock import rfc3339, utc_now
from app.db.models import Merchant, WebhookEndpoint
from app.services.context import open_context
from app.services.gateway import Gateway
from app.services.merchants import ensure_first_merchant
from tests.support.gateway import WEBHOOK_SECRET, create_payment
from tests.support.outbox import attempts, rows, send_due
from tests.support.problems import read_problem
from tests.support.receiver import Received, Receiver

ROOT = Path(__file__).parents[2]
ENDPOINTS = "/v1/webhook_endpoints"
OTHER_SECRET = "whsec_" + "QUFB" * 8

JAVASCRIPT = """
const { Webhook } = require("standardwebhooks");
let input = "";
process.stdin.on("data", (chunk) => (input += chunk));
process.stdin.on("end", () => {
  const verdicts = JSON.parse(input).map(({ secret, headers, body }) => {
    try {
      return new Webhook(secret).verify(Buffer.from(body, "base64"), headers).type;
    } catch (error) {
      return error.name + ": " + error.message;
    }
  });
  console.log(JSON.stringify(verdicts));
});
"""


def verifies(secret: str, request: Received) -> bool:
    try:
        Webhook(secret).verify(request.body, dict(request.headers))
    except WebhookVerificationError:
        return False
    return True


async def javascript(*cases: tuple[str, Mapping[str, str], bytes]) -> list[str]:
    """What the official JavaScript library says of (secret, headers, body): the event's type, or its error."""
    wanted = [
        {"secret": secret, "headers": dict(headers), "body": base64.b64encode(body).decode()}
        for secret, headers, body in cases
    ]
    node = await asyncio.create_subprocess_exec(
        *("node", "-e", JAVASCRIPT),
        cwd=ROOT,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, error = await node.communicate(json.dumps(wanted).encode())
    assert node.returncode == 0, error.decode()
    verdicts: list[str] = json.loads(out)
    return verdicts


async def add_endpoint(client: httpx.AsyncClient, url: str) -> dict[str, Any]:
    endpoint: dict[str, Any] = (await client.post(ENDPOINTS, json={"url": url})).json()
    return endpoint


async def rotate(client: httpx.AsyncClient, endpoint: dict[str, Any]) -> str:
    response = await client.post(f"{ENDPOINTS}/{endpoint['id']}/rotate_secret")
    assert response.status_code == 200, response.text
    return str(response.json()["secret"])


async def sent(
    gateway: Gateway, client: httpx.AsyncClient, sender: httpx.AsyncClient, receiver: Receiver, **payment: Any
) -> Received:
    """The next event's request."""
    await create_payment(client, **payment)
    assert await send_due(gateway.context, sender) == 1
    return receiver.requests[-1]


async def test_the_official_javascript_library_verifies_what_is_sent(
    gateway: Gateway, client: httpx.AsyncClient, sender: httpx.AsyncClient, receiver: Receiver
) -> None:
    endpoint = await add_endpoint(client, receiver.url)
    request = await sent(gateway, client, sender, receiver, description="Mugs ☕", metadata={"1e3": "\u2028"})
    new = await rotate(client, endpoint)
    while_rotating = await sent(gateway, client, sender, receiver)
    stale = request.headers | {"webhook-timestamp": str(int(request.headers["webhook-timestamp"]) - 301)}
    verdicts = await javascript(
        (endpoint["secret"], request.headers, request.body),
        (endpoint["secret"], while_rotating.headers, while_rotating.body),
        (new, while_rotating.headers, while_rotating.body),
        (new, request.headers, request.body),
        (OTHER_SECRET, request.headers, request.body),
        (endpoint["secret"], request.headers, request.body.replace(b'"25"', b'"26"')),
        (endpoint["secret"], stale, request.body),
    )
    assert verdicts[:3] == ["payment.created"] * 3
    assert "payment.created" not in verdicts[3:]


async def test_the_old_secret_signs_beside_the_new_one_for_a_day(
    gateway: Gateway, client: httpx.AsyncClient, sender: httpx.AsyncClient, receiver: Receiver
) -> None:
    endpoint = await add_endpoint(client, receiver.url)
    new = await rotate(client, endpoint)
    assert new.startswith("whsec_")
    assert new != endpoint["secret"]
    request = await sent(gateway, client, sender, receiver)
    signatures = request.headers["webhook-signature"].split(" ")
    assert len(signatures) == 2
    assert all(signature.startswith("v1,") for signature in signatures)
    assert verifies(new, request)
    assert verifies(endpoint["secret"], request)
    assert not verifies(OTHER_SECRET, request)

    shown = (await client.get(f"{ENDPOINTS}/{endpoint['id']}")).json()
    in_a_day = rfc3339(utc_now() + timedelta(seconds=limits.WEBHOOK_OLD_SECRET_S))
    assert rfc3339(utc_now() + timedelta(hours=23)) < shown["old_secret_valid_until"] < in_a_day
    assert "secret" not in shown

    async with gateway.context.db.write() as session:  # a day later
        row = await session.get_one(WebhookEndpoint, endpoint["id"])
        row.old_secrets = [one | {"until": rfc3339(utc_now())} for one in row.old_secrets]
    request = await sent(gateway, client, sender, receiver)
    assert len(request.headers["webhook-signature"].split(" ")) == 1
    assert verifies(new, request)
    assert not verifies(endpoint["secret"], request)
    assert (await client.get(f"{ENDPOINTS}/{endpoint['id']}")).json()["old_secret_valid_until"] is None


async def test_every_secret_of_a_day_signs_and_there_is_a_bound(
    gateway: Gateway, client: httpx.AsyncClient, sender: httpx.AsyncClient, receiver: Receiver
) -> None:
    endpoint = await add_endpoint(client, receiver.url)
    secrets = [endpoint["secret"]] + [await rotate(client, endpoint) for _ in range(limits.WEBHOOK_OLD_SECRETS)]
    read_problem(await client.post(f"{ENDPOINTS}/{endpoint['id']}/rotate_secret"), 409, "conflict")
    request = await sent(gateway, client, sender, receiver)
    assert all(verifies(secret, request) for secret in secrets)


async def test_rotated_secrets_are_stored_encrypted_and_shown_nowhere(
    gateway: Gateway, client: httpx.AsyncClient
) -> None:
    endpoint = await add_endpoint(client, "http://127.0.0.1:9/")
    headers = {"Idempotency-Key": "rotate-1"}
    path = f"{ENDPOINTS}/{endpoint['id']}/rotate_secret"
    first = await client.post(path, headers=headers)
    again = await client.post(path, headers=headers)  # the answer was lost: the same secret, not a third one
    assert again.json() == first.json()
    assert again.headers["idempotent-replayed"] == "true"
    secrets = [endpoint["secret"], first.json()["secret"]]
    stored = ""
    async with gateway.context.db.read() as session:
        for table in ("webhook_endpoints", "idempotency_keys", "events"):
            found = await (await session.connection()).exec_driver_sql(f"SELECT * FROM {table}")
            stored += repr(found.all())
    for response in (await client.get(ENDPOINTS), await client.get("/v1/events")):
        stored += response.text
    assert len(secrets) == len(set(secrets)) == 2
    assert not any(secret.removeprefix("whsec_") in stored for secret in secrets)


async def test_a_changed_secret_of_the_settings_leaves_the_old_one_signing_for_a_day(
    gateway: Gateway, client: httpx.AsyncClient, sender: httpx.AsyncClient, receiver: Receiver
) -> None:
    settings = gateway.context.settings
    changed = settings.model_copy(update={"webhook_secret": type(settings.webhook_secret)(OTHER_SECRET)})
    restarted = open_context(changed, gateway.context.chains)
    try:
        for _ in range(2):  # a second start changes nothing
            await ensure_first_merchant(restarted)
    finally:
        await restarted.close()
    request = await sent(gateway, client, sender, receiver, webhook_url=receiver.url)
    assert len(request.headers["webhook-signature"].split(" ")) == 2
    assert verifies(OTHER_SECRET, request)
    assert verifies(WEBHOOK_SECRET, request)


async def test_a_secret_that_cannot_be_decrypted_is_our_failure_and_not_the_receivers(
    gateway: Gateway, client: httpx.AsyncClient, sender: httpx.AsyncClient, receiver: Receiver
) -> None:
    await create_payment(client, webhook_url=receiver.url)
    async with gateway.context.db.write() as session:
        await session.execute(update(Merchant).values(webhook_secret=b"not of this key"))
    await send_due(gateway.context, sender)
    [row], [attempt] = await rows(gateway), await attempts(gateway)
    assert (row.status, attempt.error) == ("pending", "signing_failed")
    assert receiver.requests == []
    async with gateway.context.db.read() as session:
        found = await (await session.connection()).exec_driver_sql("SELECT * FROM webhook_receivers")
        assert found.all() == []


@pytest.mark.parametrize("secret", [WEBHOOK_SECRET, OTHER_SECRET])
async def test_the_javascript_check_can_fail(secret: str) -> None:
    now = utc_now()
    body = '{"type":"payment.created"}'
    signature = Webhook(WEBHOOK_SECRET).sign("evt_1", now, body)
    headers = {
        "webhook-id": "evt_1",
        "webhook-timestamp": str(int(now.timestamp())),
        "webhook-signature": signature,
    }
    [verdict] = await javascript((secret, headers, body.encode()))
    assert (verdict == "payment.created") is (secret == WEBHOOK_SECRET)
