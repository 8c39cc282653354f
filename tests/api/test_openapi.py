"""Goal: a storefront can be built from the OpenAPI document alone: it is whole, it is right, and it has examples."""

import re
from collections.abc import Iterator
from typing import Any

import httpx
import jsonschema_rs
import pytest

from app.api.errors import titles
from app.api.examples import EXAMPLES
from app.api.openapi import api_routes, scope_of
from app.services.keys import SCOPES
from server import create_app

DOCUMENT = create_app().openapi()
OPERATIONS = [
    pytest.param(path, method, operation, id=f"{method.upper()} {path}")
    for path, methods in DOCUMENT["paths"].items()
    for method, operation in methods.items()
]
PUBLIC = {"/health/live", "/health/ready", "/health", "/metrics"}


def codes_of(operation: dict[str, Any]) -> dict[str, set[str]]:
    """The problem codes that an operation documents, by status."""
    return {
        status: set(answer["content"]["application/problem+json"]["schema"]["allOf"][1]["properties"]["code"]["enum"])
        for status, answer in operation["responses"].items()
        if "application/problem+json" in answer.get("content", {})
    }


async def test_the_document_and_its_page_need_no_key(shared_client: httpx.AsyncClient) -> None:
    del shared_client.headers["authorization"]
    response = await shared_client.get("/openapi.json")
    assert response.json() == DOCUMENT
    assert DOCUMENT["openapi"].startswith("3.1.")
    assert "/openapi.json" in (await shared_client.get("/docs")).text


async def test_the_page_loads_nothing_from_strangers(shared_client: httpx.AsyncClient) -> None:
    """API keys are typed into it, and the gateway may have no way out."""
    del shared_client.headers["authorization"]
    page = await shared_client.get("/docs")
    urls = re.findall(r"""(?:src|href|url)\s*[=:]\s*['"](.*?)['"]""", page.text)
    assert len(urls) == 4, page.text
    for url in urls:
        assert url.startswith("/"), url
        assert (await shared_client.get(url)).status_code == 200, url


def test_every_call_of_the_contract_is_there() -> None:
    calls = {f"{method.upper()} {path}" for path, methods in DOCUMENT["paths"].items() for method in methods}
    assert calls >= {
        *("POST /v1/payments", "GET /v1/payments", "GET /v1/payments/{payment_id}", "GET /v1/events", "GET /v1/chains"),
        *("POST /v1/payments/{payment_id}/cancel", "GET /v1/payments/{payment_id}/events"),
        *("GET /v1/payments/{payment_id}/stream", "GET /v1/keys", "POST /v1/keys", "DELETE /v1/keys/{key_id}"),
        *("GET /v1/merchant", "PATCH /v1/merchant", "GET /v1/sweeps", "GET /v1/sweeps/{sweep_id}"),
        *(f"{method} /v1/webhook_endpoints" for method in ("POST", "GET")),
        *(f"{method} /v1/webhook_endpoints/{{endpoint_id}}" for method in ("GET", "PATCH", "DELETE")),
        *(f"POST /v1/webhook_endpoints/{{endpoint_id}}/{what}" for what in ("rotate_secret", "test")),
        *("GET /v1/webhook_deliveries", "POST /v1/webhook_deliveries/replay"),
        *("POST /v1/webhook_deliveries/{delivery_id}/replay", "GET /health", "GET /health/live", "GET /health/ready"),
        "GET /metrics",
    }


@pytest.mark.parametrize(("path", "method", "operation"), OPERATIONS)
def test_each_operation_says_what_can_go_wrong(path: str, method: str, operation: dict[str, Any]) -> None:
    codes = codes_of(operation)
    known = set(titles())
    assert set().union(*codes.values()) <= known
    if path in PUBLIC:
        assert "security" not in operation
        return
    [security] = operation["security"]
    assert set(security["HTTPBearer"]) <= set(SCOPES)
    assert security["HTTPBearer"][0] in operation["description"]
    assert codes["401"] == {"unauthorized"}
    assert codes["403"] == {"forbidden"}
    assert codes["429"] == {"rate_limited"}
    assert codes["500"] == {"internal_error"}
    assert codes["503"] >= {"service_unavailable"}
    assert "404" in codes or "{" not in path
    assert ("requestBody" in operation) == ("400" in codes) == ("415" in codes)
    assert "422" in codes
    assert (method != "get") == ("413" in codes)
    assert operation["summary"]


def test_a_call_that_may_be_retried_says_how_its_answers_tell() -> None:
    retried = {
        f"{method.upper()} {path}": operation
        for path, methods in DOCUMENT["paths"].items()
        for method, operation in methods.items()
        if any(each["name"] == "Idempotency-Key" for each in operation.get("parameters", ()))
    }
    posts = {f"POST {path}" for path, methods in DOCUMENT["paths"].items() if "post" in methods}
    assert set(retried) == posts - {"POST /v1/webhook_endpoints/{endpoint_id}/test"}
    for operation in retried.values():
        [success] = [answer for status, answer in operation["responses"].items() if status.startswith("2")]
        assert "Idempotent-Replayed" in success["headers"]
        assert ("idempotency_key_reused" in codes_of(operation)["422"]) == ("requestBody" in operation)


def test_creating_a_payment_documents_every_code_of_its_own() -> None:
    codes = codes_of(DOCUMENT["paths"]["/v1/payments"]["post"])
    assert codes["422"] == {
        *("validation_error", "unknown_chain", "unknown_token", "invalid_amount", "blocked_url"),
        "idempotency_key_reused",
    }
    assert codes["409"] == {"duplicate_order_id"}
    assert codes["503"] == {"service_unavailable", "chain_unavailable", "rate_unavailable"}
    assert codes_of(DOCUMENT["paths"]["/v1/payments/{payment_id}/cancel"]["post"])["409"] == {"not_cancellable"}


def test_every_route_of_the_api_names_its_scope() -> None:
    for route in api_routes(create_app()):
        assert (scope_of(route) is None) == (not route.path.startswith("/v1/")), route.path


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_is_right(name: str) -> None:
    schema = {"$ref": f"#/components/schemas/{name}", "components": DOCUMENT["components"]}
    validator = jsonschema_rs.Draft202012Validator(schema)
    assert validator.is_valid(EXAMPLES[name]), list(validator.iter_errors(EXAMPLES[name]))
    if name.endswith("View"):
        assert set(EXAMPLES[name]) == set(DOCUMENT["components"]["schemas"][name]["properties"])


@pytest.mark.parametrize(
    ("name", "body"),
    [
        ("PaymentCreate", {"chain": "devnet", "token": "USDC", "amount": "-1"}),
        ("PaymentCreate", {"chain": "devnet", "token": "USDC", "amount": "1e3"}),
        ("PaymentCreate", {"chain": "devnet", "token": "USDC", "amount": "1", "tolerance": "5 %"}),
        ("PriceAsked", {"amount": "25.", "currency": "USD"}),
        ("PriceAsked", {"amount": "25", "currency": "US dollars"}),
        ("MerchantUpdate", {"tolerance": "a tenth"}),
        ("ConfirmationTier", {"up_to": "100", "currency": "", "confirmations": 1}),
    ],
)
def test_the_document_forbids_money_that_the_api_refuses(name: str, body: dict[str, Any]) -> None:
    # The API's own refusals are in test_bad_input, test_pricing and test_merchant.
    schema = {"$ref": f"#/components/schemas/{name}", "components": DOCUMENT["components"]}
    assert not jsonschema_rs.Draft202012Validator(schema).is_valid(body)


def test_whoever_sends_or_gets_a_body_finds_an_example() -> None:
    schemas = DOCUMENT["components"]["schemas"]
    for content in bodies():
        name = content["schema"].get("$ref", "").rpartition("/")[2]
        if name.startswith("Page_"):
            name = schemas[name]["properties"]["data"]["items"]["$ref"].rpartition("/")[2]
        if name:
            assert schemas[name].get("examples"), name


def bodies() -> Iterator[dict[str, Any]]:
    for methods in DOCUMENT["paths"].values():
        for operation in methods.values():
            for holder in (operation.get("requestBody", {}), *operation["responses"].values()):
                for media_type, content in holder.get("content", {}).items():
                    if media_type == "application/json":
                        yield content
