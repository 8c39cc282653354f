"""Goal: a failing endpoint is left alone for a while, another serves meanwhile, and the preferred one comes back."""

import pytest

from app.blockchain.errors import RateLimitedError, TransientError
from app.blockchain.manager import Breaker, ChainNodes
from app.core import limits
from tests.support.clock import Clock


@pytest.fixture
def nodes() -> ChainNodes:
    return ChainNodes([f"http://{name}.example/v2/key" for name in ("first", "second", "third")])


DOWN = TransientError("no answer")


# --- one breaker


def test_a_breaker_opens_half_opens_and_closes(clock: Clock) -> None:
    breaker = Breaker()
    assert breaker.state == "closed"
    breaker.failed(None)
    assert (breaker.state, breaker.open_for_s) == ("open", limits.BREAKER_MIN_S)
    clock.now += limits.BREAKER_MIN_S - 0.01
    assert breaker.state == "open"
    clock.now += 0.01
    assert breaker.state == "half_open"
    breaker.succeeded()
    assert (breaker.state, breaker.open_for_s) == ("closed", 0)


def test_each_failure_of_a_half_open_breaker_doubles_its_rest(clock: Clock) -> None:
    breaker = Breaker()
    rests = []
    for _ in range(8):
        breaker.failed(None)
        rests.append(breaker.open_for_s)
        clock.now += breaker.open_for_s
        assert breaker.state == "half_open"
    assert rests[:5] == [2, 4, 8, 16, 32]
    assert rests[5:] == [limits.BREAKER_MAX_S] * 3
    breaker.succeeded()
    breaker.failed(None)
    assert breaker.open_for_s == limits.BREAKER_MIN_S


def test_years_of_failures_overflow_nothing(clock: Clock) -> None:
    breaker = Breaker()
    breaker.failures = 10_000
    breaker.failed(None)
    assert breaker.open_for_s == limits.BREAKER_MAX_S


@pytest.mark.parametrize(
    ("asked_s", "rest_s"), [(30.0, 30.0), (0.5, limits.BREAKER_MIN_S), (86_400.0, limits.RETRY_AFTER_MAX_S)]
)
def test_a_node_may_ask_for_a_longer_rest_within_reason(clock: Clock, asked_s: float, rest_s: float) -> None:
    breaker = Breaker()
    breaker.failed(asked_s)
    assert breaker.open_for_s == rest_s


# --- the endpoints of a chain


def test_the_preferred_endpoint_serves_until_it_fails_and_again_when_it_has_rested(
    clock: Clock, nodes: ChainNodes
) -> None:
    first, second, third = nodes.endpoints
    assert nodes.pick() is first
    nodes.failed(first, DOWN)
    assert nodes.pick() is second
    nodes.failed(second, DOWN)
    assert nodes.pick() is third
    nodes.succeeded(third)
    assert nodes.pick() is third
    clock.now += limits.BREAKER_MIN_S
    assert nodes.pick() is first  # half-open: one step tries it
    nodes.failed(first, DOWN)
    assert nodes.pick() is second
    clock.now += 2 * limits.BREAKER_MIN_S
    nodes.succeeded(first)
    assert nodes.pick() is first


def test_what_a_rate_limit_asks_for_is_given(clock: Clock, nodes: ChainNodes) -> None:
    first, second, _ = nodes.endpoints
    nodes.failed(first, RateLimitedError("HTTP 429", 120.0))
    clock.now += 119
    assert nodes.pick() is second
    clock.now += 1
    assert nodes.pick() is first


def test_with_every_breaker_open_the_one_that_rests_least_is_asked(clock: Clock, nodes: ChainNodes) -> None:
    first, second, third = nodes.endpoints
    nodes.failed(first, DOWN)
    nodes.failed(first, DOWN)
    nodes.failed(second, DOWN)
    nodes.failed(third, RateLimitedError("HTTP 429", 60.0))
    assert nodes.pick() is second
    assert nodes.pick(other_than=second) is None


def test_another_one_is_never_the_same_nor_one_that_rests(clock: Clock, nodes: ChainNodes) -> None:
    first, second, third = nodes.endpoints
    assert nodes.pick(other_than=first) is second
    assert nodes.pick(other_than=second) is first
    nodes.failed(second, DOWN)
    assert nodes.pick(other_than=first) is third
    nodes.failed(third, DOWN)
    assert nodes.pick(other_than=first) is None
    assert ChainNodes(["http://only.example"]).pick(other_than=first) is not None
    only = ChainNodes(["http://only.example"])
    assert only.pick(other_than=only.endpoints[0]) is None


def test_a_refused_endpoint_is_never_asked_and_says_why(clock: Clock, nodes: ChainNodes) -> None:
    first, second, third = nodes.endpoints
    nodes.refused[first] = "has chain id 1"
    assert nodes.pick() is second
    assert nodes.pick(other_than=second) is third
    nodes.failed(second, DOWN)
    nodes.failed(third, DOWN)
    assert nodes.pick() in (second, third)
    states = nodes.states()
    assert states[0] == ("http://first.example", "has chain id 1")
    assert [state for _, state in states[1:]] == ["open", "open"]
    assert "key" not in str(states)


def test_with_all_refused_there_is_none(nodes: ChainNodes) -> None:
    nodes.refused = dict.fromkeys(nodes.endpoints, "another chain")
    assert nodes.pick() is None
    assert not nodes.has_healthy


def test_healthy_is_what_did_not_fail_last(clock: Clock, nodes: ChainNodes) -> None:
    first, second, third = nodes.endpoints
    nodes.refused[third] = "another chain"
    nodes.failed(first, DOWN)
    assert nodes.has_healthy
    nodes.failed(second, DOWN)
    clock.now += limits.BREAKER_MAX_S
    assert not nodes.has_healthy  # half-open is a hope, not an answer
    nodes.succeeded(second)
    assert nodes.has_healthy
