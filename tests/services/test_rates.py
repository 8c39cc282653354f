"""Goal: a rate is fresh and told by a source in its order, or there is none; and nobody waits or asks twice for it."""

import asyncio
import gzip
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from decimal import Decimal
from typing import Any

import pytest

from app.core import limits
from app.core.chains import ChainlinkRates, FixedRates, HttpRates, Rates
from app.core.clock import utc_now
from app.core.config import Settings
from app.core.evm import to_bytes20
from app.core.rates import Rate, RateSource
from app.services.context import Context, open_context
from app.services.rates import find_rates
from tests.support.anvil import Anvil
from tests.support.gateway import Devnet, chains_of
from tests.support.node import Call, ProxyNode, failure
from tests.support.pages import RatePage
from tests.support.secrets import SECRET_KEY

Open = Callable[..., AbstractAsyncContextManager[Context]]


@pytest.fixture
def opened(devnet: Devnet, tmp_path: Any) -> Open:
    """Opens a context with these sources of rates; `max_age_s`, and the chain's `rpc_urls`, may be given."""

    @asynccontextmanager
    async def it(*sources: RateSource, max_age_s: float = 120.0, **changed: Any) -> AsyncIterator[Context]:
        settings = Settings(
            _env_file=None,
            database_url=f"sqlite+aiosqlite:///{tmp_path / 'unused.db'}",
            redis_url="redis://never-asked",
            secret_key=SECRET_KEY,
        )
        context = open_context(settings, chains_of(devnet.chain(**changed), rates=Rates(max_age_s, sources)))
        yield context
        await context.close()

    return it


@pytest.fixture
async def page() -> AsyncIterator[RatePage]:
    async with RatePage() as it:
        yield it


def values(found: dict[str, Rate]) -> dict[str, str]:
    return {pair: rate.text for pair, rate in found.items()}


async def test_fixed_rates_are_what_they_say_and_nothing_is_derived(opened: Open) -> None:
    fixed = FixedRates({"USDC/USD": Decimal("1.000"), "USD/EUR": Decimal("0.9"), "EUR/ETH": Decimal("0.0004")})
    async with opened(fixed) as context:
        before = utc_now()
        found = await find_rates(context, ["USDC/USD", "USD/USDC", "USDC/EUR", "ETH/EUR", "USD/USD"])
        assert values(found) == {"USDC/USD": "1"}
        assert found["USDC/USD"].source == "fixed"
        assert before <= found["USDC/USD"].at <= utc_now()


async def test_without_sources_there_is_no_rate(opened: Open) -> None:
    async with opened() as context:
        assert await find_rates(context, ["USDC/USD"]) == {}


async def test_the_first_source_that_has_a_rate_gives_it(opened: Open, page: RatePage) -> None:
    first = FixedRates({"USDC/USD": Decimal(1)})
    last = FixedRates({"USDC/USD": Decimal(2), "ETH/USD": Decimal(2), "DAI/USD": Decimal(2)})
    async with opened(first, HttpRates(page.url, "data.amount"), last) as context:
        found = await find_rates(context, ["USDC/USD", "ETH/USD"])
        assert values(found) == {"USDC/USD": "1", "ETH/USD": "2500"}
        assert found["ETH/USD"].source == "http:127.0.0.1"
        assert page.asked == ["ETH-USD"]
        page.status = 500
        assert values(await find_rates(context, ["DAI/USD"])) == {"DAI/USD": "2"}


# --- HTTP


@pytest.mark.parametrize(
    ("body", "path", "expected"),
    [
        ('{"data": {"amount": "2500.00"}}', "data.amount", "2500"),
        ('{"price": 0.1}', "price", "0.1"),
        ('{"price": 2500}', "price", "2500"),
        ('{"price": 1E-7}', "price", "0.0000001"),
        ('{"price": 0.1234567890123456789012345678901234567890}', "price", "0.123456789012345678901234567890123456789"),
        ('{"bids": [["7.5", "1"], ["7.4", "1"]]}', "bids.1.0", "7.4"),
        ('{"0": {"7": "5"}}', "0.7", "5"),
        ('[{"p": "5"}]', "0.p", "5"),
    ],
)
async def test_a_page_is_read_at_its_path_and_never_as_a_float(
    opened: Open, page: RatePage, body: str, path: str, expected: str
) -> None:
    page.body = body
    async with opened(HttpRates(page.url, path)) as context:
        assert values(await find_rates(context, ["ETH/USD"])) == {"ETH/USD": expected}


@pytest.mark.parametrize(
    "body",
    [
        *("", "{", "null", "[]", '{"p": null}', '{"p": true}', '{"p": 0}', '{"p": -1}', '{"p": "-1"}', '{"p": ""}'),
        *('{"p": NaN}', '{"p": Infinity}', '{"p": "NaN"}', '{"p": "1e5"}', '{"p": "1,5"}', '{"p": " 1"}', '{"p": []}'),
        *('{"p": 1e999999999}', '{"p": 1e-999999999}', '{"p": 1e99999999999999999999}', '{"p": 1e79}', '{"p": 1e-79}'),
        '{"p": ' + "1" * 5_000 + "}",
        '{"p": 0.' + "1" * 5_000 + "}",
        "[" * 100_000,
        '{"p": "5", "padding": "' + "x" * limits.RATE_ANSWER_BYTES + '"}',
        '{"q": "5"}',
    ],
    ids=lambda body: body[:24],
)
async def test_a_page_without_a_price_gives_none(opened: Open, page: RatePage, body: str) -> None:
    page.body = body
    async with opened(HttpRates(page.url, "p")) as context:
        assert await find_rates(context, ["ETH/USD"]) == {}


async def test_a_page_elsewhere_is_not_followed(opened: Open, page: RatePage) -> None:
    async with RatePage() as other, opened(HttpRates(page.url, "data.amount")) as context:
        page.status, page.headers = 302, {"location": other.url.format(base="ETH", quote="USD")}
        assert await find_rates(context, ["ETH/USD"]) == {}
        assert other.asked == []


async def test_a_compressed_page_is_not_unpacked(opened: Open, page: RatePage) -> None:
    page.headers = {"content-encoding": "gzip"}
    page.body = gzip.compress(b'{"p": "5"}').decode("latin-1")
    async with opened(HttpRates(page.url, "p")) as context:
        assert await find_rates(context, ["ETH/USD"]) == {}


async def test_a_page_that_hangs_or_is_away_is_left_for_the_next_source(
    opened: Open, page: RatePage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "RATE_TIMEOUT_S", 2.0)  # long enough to arrive on a busy machine
    away = RatePage()
    async with away:
        pass
    page.held = True
    sources = (HttpRates(away.url, "p"), HttpRates(page.url, "p"), FixedRates({"ETH/USD": Decimal(7)}))
    async with opened(*sources) as context:
        assert values(await find_rates(context, ["ETH/USD"])) == {"ETH/USD": "7"}
        assert page.asked == ["ETH-USD"]


async def test_many_that_want_a_rate_ask_once_and_again_when_it_is_old(opened: Open, page: RatePage) -> None:
    page.held = True
    async with opened(HttpRates(page.url, "data.amount", max_age_s=1.0)) as context:
        first = asyncio.create_task(find_rates(context, ["ETH/USD"]))
        impatient = asyncio.create_task(find_rates(context, ["ETH/USD"]))
        others = [asyncio.create_task(find_rates(context, ["ETH/USD", "DAI/USD"])) for _ in range(20)]
        await until(lambda: len(page.asked) == 2)
        first.cancel()
        impatient.cancel()
        page.release.set()
        found = await asyncio.gather(*others)
        assert [values(each) for each in found] == [{"ETH/USD": "2500", "DAI/USD": "2500"}] * 20
        assert sorted(page.asked) == ["DAI-USD", "ETH-USD"]
        page.body = '{"data": {"amount": "2600"}}'

        async def renewed() -> bool:
            return values(await find_rates(context, ["ETH/USD"])) == {"ETH/USD": "2600"}

        deadline = time.monotonic() + 60
        while not await renewed():
            assert time.monotonic() < deadline
            await asyncio.sleep(0.02)


async def test_a_rate_is_used_again_for_a_small_part_of_its_age_only(opened: Open, page: RatePage) -> None:
    for max_age_s, reused_s in ((100.0, 10.0), (86_400.0, limits.RATE_REUSED_MAX_S)):
        async with opened(HttpRates(page.url, "data.amount"), max_age_s=max_age_s) as context:
            before = utc_now()
            rate = (await find_rates(context, ["ETH/USD"]))["ETH/USD"]
            assert reused_s <= (rate.reusable_until - before).total_seconds() <= reused_s + 30
            asked = len(page.asked)
            assert await find_rates(context, ["ETH/USD"]) == {"ETH/USD": rate}
            assert len(page.asked) == asked


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.01)


# --- Chainlink


async def set_feed(anvil: Anvil, feed: str, answer: int, age_s: int = 0) -> None:
    call = "set(uint80,int256,uint256,uint80)"
    told_at = int(time.time()) - age_s
    await anvil.wait_for_receipt(await anvil.transact(feed, call, 1, answer, told_at, 1))


@pytest.fixture
async def feed(devnet: Devnet) -> str:
    """ETH/USD with 8 decimals, on the devnet."""
    return await devnet.anvil.deploy("PriceFeed", 8)


async def test_a_feeds_rate_is_fresh_by_the_time_that_it_was_told(opened: Open, devnet: Devnet, feed: str) -> None:
    source = ChainlinkRates("devnet", {"ETH/USD": to_bytes20(feed)})
    for age_s, max_age_s, is_fresh in [
        (0, 120.0, True),
        (60, 120.0, True),
        (300, 120.0, False),
        (300, 3600.0, True),
        (-300, 120.0, False),
    ]:
        await set_feed(devnet.anvil, feed, 2_512_34000000, age_s)
        async with opened(source, max_age_s=max_age_s) as context:
            found = await find_rates(context, ["ETH/USD", "ETH/EUR"])
            assert values(found) == ({"ETH/USD": "2512.34"} if is_fresh else {}), age_s
            if is_fresh:
                rate = found["ETH/USD"]
                assert rate.source == "chainlink:devnet"
                assert age_s - 1 <= (utc_now() - rate.at).total_seconds() <= age_s + 60
    async with opened(ChainlinkRates("devnet", source.feeds, max_age_s=600.0), max_age_s=1.0) as context:
        await set_feed(devnet.anvil, feed, 100000000, 300)
        assert values(await find_rates(context, ["ETH/USD"])) == {"ETH/USD": "1"}


async def test_a_feed_without_a_price_leaves_it_to_the_next_source(opened: Open, devnet: Devnet, feed: str) -> None:
    other = await devnet.anvil.deploy("PriceFeed", 8)
    await set_feed(devnet.anvil, feed, 0)
    await set_feed(devnet.anvil, other, 99000000)
    feeds = {"ETH/USD": to_bytes20(feed), "USDC/USD": to_bytes20(other)}
    async with opened(ChainlinkRates("devnet", feeds), FixedRates({"ETH/USD": Decimal(9)})) as context:
        found = await find_rates(context, ["ETH/USD", "USDC/USD"])
        assert values(found) == {"ETH/USD": "9", "USDC/USD": "0.99"}


async def test_a_failing_node_is_replaced_by_the_chains_next_and_rests(opened: Open, devnet: Devnet, feed: str) -> None:
    await set_feed(devnet.anvil, feed, 100000000)
    source = ChainlinkRates("devnet", {"ETH/USD": to_bytes20(feed)})

    def down(call: Call, _answer: Call) -> Call:
        return failure(call, -32000, "internal error: the database is closed")

    async with (
        ProxyNode(devnet.anvil.url, down) as broken,
        ProxyNode(devnet.anvil.url) as good,
        opened(source, rpc_urls=(broken.url, good.url)) as context,
    ):
        assert values(await find_rates(context, ["ETH/USD"])) == {"ETH/USD": "1"}
        assert good.calls("eth_call")
        nodes = context.nodes.nodes(context.by_name["devnet"])
        assert [state for _, state in nodes.states()] == ["open", "closed"]


async def test_a_node_of_another_chain_is_not_believed(opened: Open, devnet: Devnet, feed: str) -> None:
    await set_feed(devnet.anvil, feed, 100000000)
    source = ChainlinkRates("devnet", {"ETH/USD": to_bytes20(feed)})
    async with opened(source, chain_id=5) as context:
        assert await find_rates(context, ["ETH/USD"]) == {}


async def test_a_node_that_hangs_is_left_for_the_next_source(
    opened: Open, anvil: Anvil, monkeypatch: pytest.MonkeyPatch
) -> None:
    feed = await anvil.deploy("PriceFeed", 8)
    await set_feed(anvil, feed, 100000000)
    monkeypatch.setattr(limits, "RATE_TIMEOUT_S", 0.5)
    sources = (ChainlinkRates("devnet", {"ETH/USD": to_bytes20(feed)}), FixedRates({"ETH/USD": Decimal(3)}))
    async with opened(*sources, rpc_urls=(anvil.url,)) as context:
        anvil.pause()
        try:
            assert values(await find_rates(context, ["ETH/USD"])) == {"ETH/USD": "3"}
        finally:
            anvil.resume()
        nodes = context.nodes.nodes(context.by_name["devnet"])
        assert [state for _, state in nodes.states()] == ["open"]
