"""Goal: whatever a caller sends, the answer is a 4xx problem that says what is wrong, and nothing is written."""

import json
import re
from typing import Any

import httpx
import pytest

from server import create_app
from tests.support.gateway import Devnet
from tests.support.problems import read_problem

GOOD = {"chain": "devnet", "token": "USDC", "amount": "25"}
JSON = {"content-type": "application/json"}
LISTS = [
    *("/v1/payments", "/v1/events", "/v1/sweeps", "/v1/webhook_endpoints", "/v1/webhook_deliveries"),
    *("/v1/chains", "/v1/keys"),
]

OPERATIONS = [
    (method.upper(), path)
    for path, methods in create_app().openapi()["paths"].items()
    for method in methods
    if path.startswith("/v1/")
]


def wrong(code: str, **changed: Any) -> Any:
    """A case: a good payment with some fields changed, and the code it must be answered with."""
    name, value = next(iter(changed.items()))
    return pytest.param(GOOD | changed, name, code, id=f"{name}={str(value)[:24]!r}")


@pytest.mark.parametrize(
    ("body", "field", "code"),
    [
        wrong("unknown_chain", chain="nowhere"),
        wrong("unknown_chain", chain=""),
        wrong("unknown_chain", chain=" devnet"),
        wrong("validation_error", chain=None),
        wrong("validation_error", chain=31337),
        wrong("validation_error", chain="x" * 65),
        wrong("unknown_token", token="DOGE"),
        wrong("unknown_token", token=""),
        wrong("unknown_token", token="0x" + "00" * 19),
        wrong("unknown_token", token="0x" + "11" * 20),
        wrong("validation_error", token=["USDC"]),
        wrong("invalid_amount", amount="0.0000001"),
        wrong("invalid_amount", amount="25.0000000"),
        wrong("invalid_amount", amount="0"),
        wrong("invalid_amount", amount="0.000000"),
        wrong("invalid_amount", amount="-1"),
        wrong("invalid_amount", amount="+1"),
        wrong("invalid_amount", amount=25),
        wrong("invalid_amount", amount=25.5),
        wrong("invalid_amount", amount=True),
        wrong("invalid_amount", amount=None),
        wrong("invalid_amount", amount=["25"]),
        wrong("invalid_amount", amount={"value": "25"}),
        wrong("invalid_amount", amount="NaN"),
        wrong("invalid_amount", amount="Infinity"),
        wrong("invalid_amount", amount="1" + "0" * 80),
        wrong("invalid_amount", amount=str(2**256)),
        wrong("invalid_amount", amount="9" * 161),
        wrong("invalid_amount", amount="1e5"),
        wrong("invalid_amount", amount="0x10"),
        wrong("invalid_amount", amount=""),
        wrong("invalid_amount", amount=" 1"),
        wrong("invalid_amount", amount="1 "),
        wrong("invalid_amount", amount="1\n"),
        wrong("invalid_amount", amount="1,5"),
        wrong("invalid_amount", amount="1_000"),
        wrong("invalid_amount", amount="1.2.3"),
        wrong("invalid_amount", amount="."),
        wrong("invalid_amount", amount=".5"),
        wrong("invalid_amount", amount="5."),
        wrong("invalid_amount", amount="١٢"),
        wrong("invalid_amount", amount="\uff11\uff12"),
        wrong("invalid_amount", amount="²"),
        wrong("invalid_amount", amount="25\x00"),
        wrong("validation_error", chain="devnet\x00"),
        wrong("validation_error", token="USDC\x00"),
        wrong("validation_error", order_id="A\x00"),
        wrong("validation_error", order_id="\ud800"),
        wrong("validation_error", order_id=""),
        wrong("validation_error", order_id="x" * 129),
        wrong("validation_error", order_id=7),
        wrong("validation_error", description="\x00"),
        wrong("validation_error", description="\udfff"),
        wrong("validation_error", description="x" * 501),
        wrong("validation_error", expires_in=59),
        wrong("validation_error", expires_in=2_592_001),
        wrong("validation_error", expires_in=0),
        wrong("validation_error", expires_in=-60),
        wrong("validation_error", expires_in=10**400),
        wrong("validation_error", expires_in="3600"),
        wrong("validation_error", expires_in=3600.0),
        wrong("validation_error", expires_in=True),
        wrong("validation_error", expires_in=None),
        wrong("validation_error", confirmations_required=0),
        wrong("validation_error", confirmations_required=-1),
        wrong("validation_error", confirmations_required=10_001),
        wrong("validation_error", confirmations_required="3"),
        wrong("validation_error", metadata={"k": "x" * (4097 - len('{"k": ""}'))}),
        wrong("validation_error", metadata={"k": "☕" * 1400}),
        wrong("validation_error", metadata={"k": "\x00"}),
        wrong("validation_error", metadata={"\x00": 1}),
        wrong("validation_error", metadata={"k": ["\ud800"]}),
        wrong("validation_error", metadata={"\ud800": 1}),
        wrong("validation_error", metadata=[1]),
        wrong("validation_error", metadata="text"),
        wrong("validation_error", metadata=None),
        wrong("validation_error", metadata={"k": float("nan")}),
        wrong("validation_error", metadata={"k": float("inf")}),
        wrong("validation_error", tolerance="25"),
        wrong("validation_error", tolerance="100%"),
        wrong("validation_error", tolerance="-1"),
        wrong("validation_error", tolerance="0.0000001"),
        wrong("validation_error", tolerance="1e-3"),
        wrong("validation_error", tolerance=0.5),
        wrong("validation_error", redirect_url="javascript:alert(1)"),
        wrong("validation_error", redirect_url="//shop.example.com"),
        wrong("validation_error", redirect_url="https://"),
        wrong("validation_error", redirect_url="https://[::1"),
        wrong("validation_error", redirect_url="https://shop.example.com/\x00"),
        wrong("validation_error", redirect_url="https://shop.example.com/\n"),
        wrong("validation_error", redirect_url="https://shop.example.com/thank you"),
        wrong("validation_error", webhook_url="https://shop.example.com/\thooks"),
        wrong("validation_error", redirect_url="https://shop.example.com/" + "x" * 2000),
        wrong("validation_error", webhook_url="ftp://shop.example.com/"),
        wrong("validation_error", webhook_url="not a url"),
        wrong("validation_error", webhook_url=5),
        wrong("blocked_url", webhook_url="https://10.0.0.1/"),
        wrong("blocked_url", webhook_url="https://169.254.169.254/latest/meta-data"),
        wrong("blocked_url", webhook_url="https://[::1]:99999/"),
        wrong("blocked_url", webhook_url="https://user:secret@127.0.0.1/"),
        wrong("blocked_url", webhook_url="https://127.0.0.1/\x7f"),
        wrong("validation_error", amout="25"),
        wrong("validation_error", path=1),
        wrong("validation_error", id="pay_01J00000000000000000000000"),
    ],
)
async def test_a_wrong_field_is_named_and_nothing_is_written(
    shared_client: httpx.AsyncClient, body: dict[str, Any], field: str, code: str
) -> None:
    response = await shared_client.post("/v1/payments", content=json.dumps(body), headers=JSON)
    problem = read_problem(response, 422, code)
    if code in ("validation_error", "invalid_amount", "blocked_url"):
        assert problem["errors"], problem
        assert {error["path"].partition(".")[0] for error in problem["errors"]} == {field}


@pytest.mark.parametrize("field", GOOD)
async def test_a_missing_field_is_named(shared_client: httpx.AsyncClient, field: str) -> None:
    body = {name: value for name, value in GOOD.items() if name != field}
    problem = read_problem(await shared_client.post("/v1/payments", json=body), 422)
    assert [error["path"] for error in problem["errors"]] == [field]


PRICED = {"price": {"amount": "25", "currency": "USD"}, "accept": [{"chain": "devnet", "token": "USDC"}]}
USDC_WAY = {"chain": "devnet", "token": "USDC"}


def mispriced(paths: str, code: str = "validation_error", **changed: Any) -> Any:
    """A case: a good price with some fields changed (None takes one away), the wrong paths and the code."""
    body = {name: value for name, value in (PRICED | changed).items() if value is not None}
    return pytest.param(body, paths, code, id=str(changed)[:60])


@pytest.mark.parametrize(
    ("body", "paths", "code"),
    [
        mispriced("price accept", chain="devnet", token="USDC", amount="25"),
        mispriced("price accept", amount="25"),
        mispriced("price", chain="devnet", token="USDC", amount="25", accept=None),
        mispriced("accept", chain="devnet", token="USDC", amount="25", price=None),
        mispriced("price", price=None),
        mispriced("accept", accept=None),
        mispriced("chain token amount", price=None, accept=None),
        mispriced("chain token", price=None, accept=None, amount="25"),
        mispriced("amount", "invalid_amount", price=None, accept=None, chain="devnet", token="USDC"),
        mispriced("price", price="25 USD"),
        mispriced("price.currency", price={"amount": "25"}),
        mispriced("price.amount", "invalid_amount", price={"currency": "USD"}),
        mispriced("price.amount", "invalid_amount", price={"amount": 25, "currency": "USD"}),
        mispriced("price.amount", "invalid_amount", price={"amount": "0.00", "currency": "USD"}),
        mispriced("price.amount", "invalid_amount", price={"amount": "-1", "currency": "USD"}),
        mispriced("price.amount", "invalid_amount", price={"amount": "1e3", "currency": "USD"}),
        mispriced("price.amount", "invalid_amount", price={"amount": "9" * 161, "currency": "USD"}),
        mispriced("price.currency", price={"amount": "25", "currency": ""}),
        mispriced("price.currency", price={"amount": "25", "currency": "US/D"}),
        mispriced("price.currency", price={"amount": "25", "currency": "USD\n"}),
        mispriced("price.currency", price={"amount": "25", "currency": "ÜSD"}),
        mispriced("price.currency", price={"amount": "25", "currency": "A" * 11}),
        mispriced("price.rate", price={"amount": "25", "currency": "USD", "rate": "1"}),
        mispriced("accept", accept=[]),
        mispriced("accept", accept=[USDC_WAY] * 21),
        mispriced("accept", accept="USDC"),
        mispriced("accept.1", accept=[USDC_WAY, {"chain": "devnet", "token": "usdc"}]),
        mispriced("accept.0.token", accept=[{"chain": "devnet"}]),
        mispriced("accept.0.amount", accept=[USDC_WAY | {"amount": "1"}]),
        mispriced("accept.1.chain", "unknown_chain", accept=[USDC_WAY, {"chain": "nowhere", "token": "USDC"}]),
        mispriced("accept.1.token", "unknown_token", accept=[USDC_WAY, {"chain": "devnet", "token": "DOGE"}]),
        mispriced("tolerance", tolerance="25.00"),
        mispriced("tolerance", tolerance="100%"),
    ],
)
async def test_a_wrong_price_is_named_and_nothing_is_written(
    shared_client: httpx.AsyncClient, body: dict[str, Any], paths: str, code: str
) -> None:
    problem = read_problem(await shared_client.post("/v1/payments", json=body), 422, code)
    assert [error["path"] for error in problem["errors"]] == paths.split()


async def test_a_token_and_its_contract_are_the_same_way_to_pay(
    shared_client: httpx.AsyncClient, devnet: Devnet
) -> None:
    body = PRICED | {"accept": [USDC_WAY, {"chain": "devnet", "token": devnet.usdc}]}
    problem = read_problem(await shared_client.post("/v1/payments", json=body), 422, "validation_error")
    assert [error["path"] for error in problem["errors"]] == ["accept.1"]


def nested(levels: int) -> str:
    return json.dumps(GOOD)[:-1] + ', "metadata": {"k": ' + "[" * levels + "]" * levels + "}}"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"not json",
        b'{"chain": "devnet",}',
        b"{'chain': 'devnet'}",
        b'{"chain": "\xff"}',
        b'{"chain": "\xed\xa0\x80"}',
        b"\x00",
        b"\xff\xfe\x00",
        b"null",
        b"[]",
        b'"text"',
        b"25",
        b"NaN",
        b"9" * 5000,
        b"[" * 60_000,
        b'{"a":' * 10_000,
        b"[" * 30_000 + b"]" * 30_000,
        nested(33).encode(),
        nested(300).encode(),
        nested(900).encode(),
        nested(2_000).encode(),
        nested(30_000).encode(),
        b'{"\\ud800": 1}',
        b'{"\\u0000": 1}',
        json.dumps(GOOD | {"amount": 0}).replace("0", "1e999").encode(),
        json.dumps(GOOD | {"amount": 0}).replace("0", "NaN").encode(),
        json.dumps(GOOD | {"amount": 0}).replace("0", "1" + "0" * 80).encode(),
        json.dumps(GOOD | {"amount": 0}).replace("0", "1" * 10_000).encode(),
    ],
    ids=lambda body: repr(body[:24] if len(body) < 400 else (body[:16], len(body))),
)
async def test_a_malformed_body_is_refused(shared_client: httpx.AsyncClient, body: bytes) -> None:
    problem = read_problem(await shared_client.post("/v1/payments", content=body, headers=JSON))
    assert problem["status"] in (400, 422)


@pytest.mark.parametrize(
    "content_type", [None, "text/plain", "application/x-www-form-urlencoded", "multipart/form-data"]
)
async def test_a_body_that_is_not_called_json_is_refused(
    shared_client: httpx.AsyncClient, content_type: str | None
) -> None:
    headers = {"content-type": content_type} if content_type else {}
    response = await shared_client.post("/v1/payments", content=json.dumps(GOOD).encode(), headers=headers)
    assert "application/json" in read_problem(response, 415, "unsupported_media_type")["detail"]


@pytest.mark.parametrize(
    "authorization",
    [
        None,
        "",
        "Bearer",
        "Bearer ",
        "Bearer wrong",
        "Bearer pwk_of_the_first_merchan",
        "Bearer pwk_of_the_first_merchant2",
        "bearer",
        "Basic cHdrX29mX3RoZV9maXJzdF9tZXJjaGFudDo=",
        "pwk_of_the_first_merchant",
        "Bearer " + "x" * 8000,
        "Bearer ключ".encode(),
        b"Bearer \xff\xfe",
        "Bearer ' OR 1=1 --",
    ],
    ids=lambda value: repr(value)[:30],
)
@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_without_a_known_key_nothing_is_answered(
    shared_client: httpx.AsyncClient, method: str, authorization: str | bytes | None
) -> None:
    del shared_client.headers["authorization"]
    headers = [] if authorization is None else [("Authorization", authorization)]
    body = json.dumps(GOOD).encode() if method == "POST" else None
    response = await shared_client.request(
        method, "/v1/payments", content=body, headers=[*headers, ("content-type", "application/json")]
    )
    read_problem(response, 401, "unauthorized")
    assert response.headers["www-authenticate"] == "Bearer"


WEIRD_IDS = [
    *("%00", "pay_%00", "%ff", "%ed%a0%80", "%2e%2e", "%2F", "pay_01J0000000000000000000000%00", "pay_"),
    *("pay_01J00000000000000000000000", "PAY_01J00000000000000000000000", "evt_01J00000000000000000000000"),
    *("'; DROP TABLE payments; --", "x" * 5000, "☕", "0", "-1", "null", "pay_01J0000000000000000000000%0A"),
]


@pytest.mark.parametrize("weird", WEIRD_IDS, ids=lambda text: text[:24])
async def test_a_weird_id_is_not_found(shared_client: httpx.AsyncClient, weird: str) -> None:
    for method, path in [
        ("GET", f"/v1/payments/{weird}"),
        ("GET", f"/v1/payments/{weird}/events"),
        ("POST", f"/v1/payments/{weird}/cancel"),
        ("GET", f"/v1/sweeps/{weird}"),
        ("GET", f"/v1/webhook_endpoints/{weird}"),
        ("PATCH", f"/v1/webhook_endpoints/{weird}"),
        ("DELETE", f"/v1/webhook_endpoints/{weird}"),
    ]:
        body = b"{}" if method == "PATCH" else None
        read_problem(await shared_client.request(method, path, content=body, headers=JSON), 404, "not_found")


@pytest.mark.parametrize("path", LISTS)
@pytest.mark.parametrize(
    "query",
    [
        *("limit=0", "limit=-1", "limit=101", "limit=x", "limit=1e1", "limit=", "limit=1.5", "limit=%D9%A3"),
        "limit=" + "9" * 30,
        *("cursor=", "cursor=x", "cursor=%00", "cursor=%ff", "cursor=1", "cursor=pay_"),
        "cursor=abc_01J00000000000000000000000",
        *("cursor=" + "x" * 101, "cursor=%F0%9F%98%80", "cursor=pay_01J0000000000000000000000%0A"),
    ],
    ids=lambda query: query[:30],
)
async def test_a_weird_page_is_refused(shared_client: httpx.AsyncClient, path: str, query: str) -> None:
    read_problem(await shared_client.get(f"{path}?{query}"), 422, "validation_error")


@pytest.mark.parametrize(
    "query",
    [
        *("status=nothing", "status=", "status=PENDING", "status=%00"),
        *("order_id=%00", "order_id=" + "x" * 129, "chain=%00", "chain=" + "x" * 65, "token=%00", "token=0x12"),
        *("address=", "address=0x12", "address=%00", "address=0x" + "g" * 40),
        "address=0x70997970c51812dc3A010C7d01b50e0d17dc79C8",  # a wrong checksum
        *("created_after=", "created_after=yesterday", "created_after=nan", "created_after=1e300"),
        *("created_after=-99999999999999999999", "created_after=99999999999999999999", "created_after=%00"),
        *("created_after=1700000000", "created_before=-1"),  # of seconds, or of milliseconds?
        *("created_after=2026-13-01", "created_before=0001-01-01T00:00:00%2B23:59"),
        "created_after=9999-12-31T23:59:59-23:59",
    ],
    ids=lambda query: query[:40],
)
async def test_a_weird_filter_is_refused(shared_client: httpx.AsyncClient, query: str) -> None:
    problem = read_problem(await shared_client.get(f"/v1/payments?{query}"), 422, "validation_error")
    assert [error["path"] for error in problem["errors"]] == [query.partition("=")[0]]


@pytest.mark.parametrize(("method", "path"), OPERATIONS)
async def test_a_parameter_that_a_call_does_not_have_is_refused(
    shared_client: httpx.AsyncClient, method: str, path: str
) -> None:
    # A mistyped filter that is ignored finds everything: `?orderid=A-1` would show whatever payment is the newest.
    url = re.sub("{.*?}", "pay_01J00000000000000000000000", path)
    response = await shared_client.request(method, f"{url}?orderid=A-1")
    problem = read_problem(response, 422, "validation_error")
    assert [error["path"] for error in problem["errors"]] == ["orderid"]
    del shared_client.headers["authorization"]
    read_problem(await shared_client.request(method, f"{url}?orderid=A-1"), 401)


@pytest.mark.parametrize("query", ["status=pending&status=expired", "limit=1&limit=1", "order_id=A&order_id=B"])
async def test_a_filter_that_comes_twice_is_refused(shared_client: httpx.AsyncClient, query: str) -> None:
    problem = read_problem(await shared_client.get(f"/v1/payments?{query}"), 422, "validation_error")
    assert problem["errors"] == [{"path": query.partition("=")[0], "message": "is given twice"}]


async def test_an_unknown_event_type_is_told_by_the_parameters_name(shared_client: httpx.AsyncClient) -> None:
    problem = read_problem(await shared_client.get("/v1/events?type=payment.paid"), 422, "validation_error")
    [error] = problem["errors"]
    assert error["path"] == "type"
    assert "'payment.settled'" in error["message"]
    assert "'webhook_endpoint.disabled'" in error["message"]


@pytest.mark.parametrize(
    ("content", "status", "detail"),
    [
        (b"", 422, "the body: is missing"),
        (b"[]", 422, "the body: must be a JSON object"),
        (b'{"chain":', 400, "the body is not JSON: Expecting value at character 9"),
        (b"\xff", 400, "the body is not JSON"),
        (b'{"order_id": ""}', 422, "order_id: must not be empty"),
        (json.dumps({"order_id": "x" * 129}).encode(), 422, "order_id: must have at most 128 characters"),
        (b'{"metadata": "x"}', 422, "metadata: must be a JSON object"),
        (b'{"metadata": {"a": "\\u0000"}}', 422, "metadata: must not contain NUL"),
        (b'{"accept": []}', 422, "accept: must not be empty"),
        (json.dumps({"accept": [GOOD] * 21}).encode(), 422, "accept: must have at most 20 items"),
    ],
    ids=lambda value: value[:30] if isinstance(value, bytes) else None,
)
async def test_a_refusal_says_what_is_wrong_in_the_callers_words(
    shared_client: httpx.AsyncClient, content: bytes, status: int, detail: str
) -> None:
    problem = read_problem(await shared_client.post("/v1/payments", content=content, headers=JSON), status)
    assert detail in problem["detail"].split("; ")
    assert problem["title"] == ("Invalid request" if status == 422 else "Malformed JSON")


@pytest.mark.parametrize("amount", [25, 25.5, "-1", None])
async def test_a_wrong_amount_has_one_title(shared_client: httpx.AsyncClient, amount: Any) -> None:
    problem = read_problem(await shared_client.post("/v1/payments", json=GOOD | {"amount": amount}), 422)
    assert (problem["code"], problem["title"]) == ("invalid_amount", "Invalid amount")


@pytest.mark.parametrize("cursor", ["x", "-1", "1.5", "9" * 19, "%00", "%D9%A3", "", "pay_01J00000000000000000000000"])
async def test_a_weird_cursor_of_a_payments_events_is_refused(shared_client: httpx.AsyncClient, cursor: str) -> None:
    path = f"/v1/payments/pay_01J00000000000000000000000/events?cursor={cursor}"
    read_problem(await shared_client.get(path), 422, "validation_error")


@pytest.mark.parametrize("key", ["", "x" * 256], ids=["empty", "too long"])
async def test_a_weird_idempotency_key_is_refused(shared_client: httpx.AsyncClient, key: str) -> None:
    response = await shared_client.post("/v1/payments", json=GOOD, headers={"Idempotency-Key": key})
    problem = read_problem(response, 422, "validation_error")
    assert [error["path"].lower() for error in problem["errors"]] == ["idempotency-key"]


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({}, "validation_error"),
        ({"url": None}, "validation_error"),
        ({"url": "http://example.com:99999/"}, "blocked_url"),
        ({"url": "https://10.0.0.1/"}, "blocked_url"),
        ({"url": "https://127.0.0.1/", "event_types": []}, "validation_error"),
        ({"url": "https://127.0.0.1/", "event_types": ["payment.exploded"]}, "validation_error"),
        ({"url": "https://127.0.0.1/", "event_types": "payment.created"}, "validation_error"),
        ({"url": "https://127.0.0.1/", "secret": "whsec_mine"}, "validation_error"),
    ],
    ids=str,
)
async def test_a_wrong_endpoint_is_refused(shared_client: httpx.AsyncClient, body: dict[str, Any], code: str) -> None:
    read_problem(await shared_client.post("/v1/webhook_endpoints", json=body), 422, code)
