"""Goal: whatever the OpenAPI document allows or forbids, no request is answered 5xx, and every answer is as documented.

`make test` asks a few times per operation, always the same; `make explore` asks thousands of other times.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis import Case, GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from app.core import limits
from app.core.chains import FixedRates, Rates
from app.core.evm import NATIVE_ASSET
from app.services.gateway import Gateway
from server import create_app
from tests.api.test_sweeps import add_sweep
from tests.support.gateway import API_KEY, client_of, create_payment, serving

CHECKS = [
    not_a_server_error,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
]
FEW, MANY = 8, 250  # cases per operation
RATES = Rates(120.0, (FixedRates({"USDC/USD": Decimal(1)}),))
# What a made-up text never is, by the name of its field: with it a request comes further than to its first check.
KNOWN = {
    "chain": "devnet",
    "token": "USDC",
    "amount": "1.5",
    "currency": "USD",
    "tolerance": "1%",
    "up_to": "100",
    "url": "http://127.0.0.1:9/",
    "webhook_url": "http://127.0.0.1:9/",
    "redirect_url": "https://shop.example.com/",
}
DOCUMENT = create_app().openapi()
OPERATIONS = [each.ok() for each in schemathesis.openapi.from_dict(DOCUMENT).get_all_operations()]


@pytest.fixture
async def base_url(gateway: Gateway) -> AsyncIterator[str]:
    context = gateway.context
    with_rates = replace(gateway, context=replace(context, chains=replace(context.chains, rates=RATES)))
    async with serving(with_rates) as url:
        yield url


@pytest.fixture
async def known_ids(gateway: Gateway) -> dict[str, str]:
    """Things that are there, for parameters that would otherwise name nothing."""
    async with client_of(gateway) as client:
        endpoint = (await client.post("/v1/webhook_endpoints", json={"url": "http://127.0.0.1:9/"})).json()
        payment = await create_payment(client, order_id="A-1")
        key = (await client.post("/v1/keys", json={"name": "x", "scopes": ["payments:read"]})).json()
        [delivery] = (await client.get("/v1/webhook_deliveries")).json()["data"]
    return {
        "payment_id": payment["id"],
        "order_id": payment["order_id"],
        "address": payment["address"],
        "endpoint_id": endpoint["id"],
        "key_id": key["id"],
        "delivery_id": delivery["id"],
        "sweep_id": await add_sweep(gateway, 1, NATIVE_ASSET, payment),
    }


def with_known(value: Any, known: dict[str, str]) -> Any:
    """The value with each text in it replaced whose field has something known."""
    if isinstance(value, list):
        new = [with_known(each, known) for each in value]
        return [each for number, each in enumerate(new) if each not in new[:number]]  # nothing is accepted twice
    if not isinstance(value, dict):
        return value
    return {
        name: known[name]
        if name in known and isinstance(each, str)
        else each
        if name == "metadata"
        else with_known(each, known)
        for name, each in value.items()
    }


@pytest.mark.timeout(900)  # for hundreds of requests on a busy machine
@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.label)
async def test_every_answer_is_as_documented(
    operation: Any, base_url: str, known_ids: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "STREAM_LIFE_S", 0.0)  # a stream that ends at once
    monkeypatch.setattr(limits, "DNS_TIMEOUT_S", 0.2)  # of the names that it makes up
    session = requests.Session()
    session.trust_env = False
    explore = settings.get_current_profile_name() == "explore"

    # what the document allows, and where it asks for anything, what it forbids
    answered: Counter[int] = Counter()
    modes = list(GenerationMode) if operation.path.startswith("/v1/") else [GenerationMode.POSITIVE]

    @given(case=st.one_of([operation.as_strategy(generation_mode=mode) for mode in modes]), is_known=st.booleans())
    @settings(
        max_examples=MANY if explore else FEW,
        suppress_health_check=list(HealthCheck),
        database=None,
    )
    def ask(case: Case, is_known: bool) -> None:
        if is_known:
            case.path_parameters = with_known(case.path_parameters, known_ids)
            case.query = with_known(case.query, known_ids | KNOWN)
            case.body = with_known(case.body, KNOWN)
        response = case.call(base_url=base_url, session=session, headers={"Authorization": f"Bearer {API_KEY}"})
        answered[response.status_code] += 1
        case.validate_response(response, checks=CHECKS)

    with session:
        await asyncio.to_thread(ask)
    print(f"{answered.total()} answers: {dict(answered)}")  # noqa: T201 shown by `make explore ARGS="-k conformance -rP"`
