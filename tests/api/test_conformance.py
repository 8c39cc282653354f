"""Goal: whatever the OpenAPI document allows or forbids, no request is answered 5xx, and every answer is as documented.

`make test` asks a few times per operation, always the same; `make explore` asks thousands of other times.
"""

import asyncio
from collections.abc import AsyncIterator
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
from app.services.gateway import Gateway
from server import create_app
from tests.support.gateway import API_KEY, client_of, create_payment, serving

CHECKS = [
    not_a_server_error,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
]
FEW, MANY = 8, 250  # cases per operation
DOCUMENT = create_app().openapi()
OPERATIONS = [each.ok() for each in schemathesis.openapi.from_dict(DOCUMENT).get_all_operations()]


@pytest.fixture(scope="module")
async def base_url(shared_gateway: Gateway) -> AsyncIterator[str]:
    async with serving(shared_gateway) as url:
        yield url


@pytest.fixture(scope="module")
async def known_ids(shared_gateway: Gateway) -> dict[str, str]:
    """Things that are there, for paths that would otherwise name nothing."""
    async with client_of(shared_gateway) as client:
        payment = await create_payment(client)
        endpoint = (await client.post("/v1/webhook_endpoints", json={"url": "http://127.0.0.1:9/"})).json()
        key = (await client.post("/v1/keys", json={"name": "x", "scopes": ["payments:read"]})).json()
    return {"payment_id": payment["id"], "endpoint_id": endpoint["id"], "key_id": key["id"]}


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
    modes = list(GenerationMode) if operation.path.startswith("/v1/") else [GenerationMode.POSITIVE]

    @given(case=st.one_of([operation.as_strategy(generation_mode=mode) for mode in modes]), is_known=st.booleans())
    @settings(
        max_examples=MANY if explore else FEW,
        suppress_health_check=list(HealthCheck),
        database=None,
    )
    def ask(case: Case, is_known: bool) -> None:
        if is_known:
            case.path_parameters.update({name: known_ids[name] for name in case.path_parameters if name in known_ids})
        response = case.call(base_url=base_url, session=session, headers={"Authorization": f"Bearer {API_KEY}"})
        case.validate_response(response, checks=CHECKS)

    with session:
        await asyncio.to_thread(ask)
