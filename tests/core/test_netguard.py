"""Goal: a stranger's URL never makes us talk to a network that is not public, however it is spelled or resolved."""

import asyncio
import socket
import threading
from collections.abc import AsyncIterator
from ipaddress import ip_address, ip_network
from typing import Any

import httpx
import pytest

from app.core import limits
from app.core.netguard import BlockedAddress, NetGuard, guarded_client
from tests.support.receiver import Receiver, Reply

LOOPBACK = (ip_network("127.0.0.0/8"), ip_network("::1/128"))
PUBLIC = "93.184.215.14"

NOT_PUBLIC = {
    "loopback": "127.0.0.1",
    "loopback, not .1": "127.8.9.10",
    "this network": "0.0.0.0",
    "private 10": "10.0.0.1",
    "private 172.16": "172.31.255.255",
    "private 192.168": "192.168.1.1",
    "link-local, the clouds' metadata": "169.254.169.254",
    "carrier-grade NAT": "100.64.0.1",
    "multicast": "224.0.0.1",
    "multicast, administrative": "239.1.1.1",
    "reserved": "240.0.0.1",
    "broadcast": "255.255.255.255",
    "documentation 1": "192.0.2.1",
    "documentation 2": "198.51.100.1",
    "documentation 3": "203.0.113.1",
    "benchmarking": "198.18.0.1",
    "protocol assignments, dummy": "192.0.0.8",
    "protocol assignments, anycast": "192.0.0.9",
    "protocol assignments, free": "192.0.0.50",
    "protocol assignments, NAT64": "192.0.0.170",
    "protocol assignments, last": "192.0.0.255",
    "6to4 relays": "192.88.99.1",
    "v6 loopback": "::1",
    "v6 unspecified": "::",
    "v6 link-local": "fe80::1",
    "v6 site-local": "fec0::1",
    "v6 unique-local": "fd00::1",
    "v6 multicast": "ff02::1",
    "v6 multicast, global scope": "ff0e::1",
    "v6 documentation": "2001:db8::1",
    "v6 documentation, the new one": "3fff::1",
    "v6 discard": "100::1",
    "v6 segment routing": "5f00::1",
    "IPv4-mapped loopback": "::ffff:127.0.0.1",
    "IPv4-mapped private": "::ffff:10.0.0.1",
    "IPv4-compatible loopback": "::127.0.0.1",
    "6to4 of loopback": "2002:7f00:1::",
    "6to4 of a public address": "2002:5db8:d70e::1",
    "NAT64 of loopback": "64:ff9b::127.0.0.1",
    "NAT64, local prefix": "64:ff9b:1::127.0.0.1",
    "Teredo": "2001::1",
}

SPELLINGS_OF_LOOPBACK = [
    "2130706433",  # decimal
    "0x7f000001",
    "0x7f.1",
    "0177.0.0.1",  # octal
    "127.1",
    "127.0.1",
    "127.0.0.1.",
    "localhost",
    "LOCALHOST",
    "127.0.0.1",
    "①②⑦.⓪.⓪.①",
    "[::1]",
    "[0:0:0:0:0:0:0:1]",
    "[::ffff:127.0.0.1]",
    "[::ffff:7f00:1]",
    "0",
    "0.0.0.0",
    "[::]",
]


class Listener:
    """Counts connections to loopback."""

    def __init__(self) -> None:
        self.connections = 0
        self.port = 0
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> "Listener":
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        await self._server.wait_closed()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        writer.close()


@pytest.fixture
async def listener() -> AsyncIterator[Listener]:
    async with Listener() as server:
        yield server


class Resolver:
    """Stands in for getaddrinfo and nothing else: gives the next answer each time it is asked, the last one for ever.
    An empty answer is no such name.

    What it is not told of, the system answers.
    """

    def __init__(self, host: str, *answers: list[str]) -> None:
        self.host = host
        self.answers = list(answers)
        self.asked = 0
        self._system = socket.getaddrinfo

    def __call__(self, host: Any, port: Any, *args: Any, **named: Any) -> Any:
        if host not in (self.host, self.host.encode()):
            return self._system(host, port, *args, **named)
        self.asked += 1
        addresses = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if not addresses:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [
            (socket.AF_INET6 if ":" in one else socket.AF_INET, socket.SOCK_STREAM, 6, "", (one, int(port or 0)))
            for one in addresses
        ]


def resolve_as(monkeypatch: pytest.MonkeyPatch, host: str, *answers: list[str]) -> Resolver:
    resolver = Resolver(host, *answers)
    monkeypatch.setattr(socket, "getaddrinfo", resolver)
    return resolver


@pytest.mark.parametrize("address", NOT_PUBLIC.values(), ids=NOT_PUBLIC.keys())
def test_an_address_that_is_not_public_is_not_permitted(address: str) -> None:
    assert not NetGuard(()).permits(ip_address(address))


@pytest.mark.parametrize("address", [PUBLIC, "1.1.1.1", "2606:4700::1111", f"::ffff:{PUBLIC}"])
def test_a_public_address_is_permitted(address: str) -> None:
    assert NetGuard(()).permits(ip_address(address))


@pytest.mark.parametrize("address", ["127.0.0.1", "::1", "::ffff:127.0.0.1"])
def test_an_allowed_network_is_permitted_and_no_other(address: str) -> None:
    guard = NetGuard(LOOPBACK)
    assert guard.permits(ip_address(address))
    assert not guard.permits(ip_address("10.0.0.1"))
    assert not guard.permits(ip_address("fd00::1"))


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize("host", SPELLINGS_OF_LOOPBACK)
async def test_no_spelling_of_loopback_gets_through(host: str, scheme: str, listener: Listener) -> None:
    url = f"{scheme}://{host}:{listener.port}/"
    guard = NetGuard(())
    with pytest.raises(BlockedAddress):
        await guard.check_url(url)
    async with guarded_client(guard) as client:
        with pytest.raises((BlockedAddress, httpx.ConnectError, httpx.InvalidURL)):
            await client.post(url)
    assert listener.connections == 0


@pytest.mark.parametrize("address", NOT_PUBLIC.values(), ids=NOT_PUBLIC.keys())
async def test_a_name_that_leads_to_such_an_address_is_refused(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    resolve_as(monkeypatch, "hooks.test", [address])
    guard = NetGuard(())
    with pytest.raises(BlockedAddress, match=r"^hooks\.test leads to an address that is not public$"):
        await guard.check_url("https://hooks.test/")
    async with guarded_client(guard) as client:
        with pytest.raises(BlockedAddress):
            await client.post("https://hooks.test/")


async def test_one_bad_address_among_good_ones_refuses_the_name(monkeypatch: pytest.MonkeyPatch) -> None:
    resolve_as(monkeypatch, "hooks.test", [PUBLIC, "10.0.0.1"])
    with pytest.raises(BlockedAddress, match="not public"):
        await NetGuard(()).check_url("https://hooks.test/")


async def test_a_public_https_url_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    resolve_as(monkeypatch, "hooks.test", [PUBLIC])
    await NetGuard(()).check_url("https://hooks.test:8443/path?query=1")


@pytest.mark.parametrize(
    "url",
    [
        "http://hooks.test/",  # in the clear, over the open internet
        "ftp://hooks.test/",
        "file:///etc/passwd",
        "gopher://hooks.test/",
        "https:///path",
        "https://",
        "hooks.test",
        "https://user:password@hooks.test/",
        "https://user@hooks.test/",
        "https://hooks.test:99999/",
        "https://hooks.test:port/",
        "https://[::1/",
        "https://hooks.test/\x7f",
        "https://hooks.test/\x00",
        "https://ho\x00oks.test/",
        "https://" + "a" * 64 + ".test/",
        "https://[fe80::1%25eth0]/",
    ],
)
async def test_a_url_that_cannot_be_a_webhook_is_refused(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    resolve_as(monkeypatch, "hooks.test", [PUBLIC])
    with pytest.raises(BlockedAddress):
        await NetGuard(()).check_url(url)


async def test_a_name_that_has_no_address_now_may_be_given_and_is_not_dialled(monkeypatch: pytest.MonkeyPatch) -> None:
    resolve_as(monkeypatch, "hooks.test", [])
    guard = NetGuard(LOOPBACK)
    await guard.check_url("https://hooks.test/")
    with pytest.raises(BlockedAddress, match="cannot be resolved"):
        await guard.check_url("http://hooks.test/")
    async with guarded_client(guard) as client:
        with pytest.raises(httpx.ConnectError):
            await client.post("https://hooks.test/")


@pytest.mark.parametrize("host", ["127.0.0.1.", "0x7f.1", "0x7f.0x1", "1.2.3.4.5", "999.1.1.1", "a.0x", "①②⑦.⓪.⓪.①."])
async def test_a_spelling_of_an_address_is_refused_although_nothing_resolves_it(
    host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolve_as(monkeypatch, host, [])
    with pytest.raises(BlockedAddress):
        await NetGuard(()).check_url(f"https://{host}/")


async def test_a_name_that_hangs_holds_one_thread_and_keeps_no_other_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two threads, and 40 who ask for the dead name and leave again."""
    monkeypatch.setattr(limits, "DNS_THREADS", 2)
    resolver, answer = resolve_as(monkeypatch, "hooks.test", [PUBLIC]), threading.Event()
    asked = []

    def hang(host: Any, *args: Any, **named: Any) -> Any:
        if host != "dead.test":
            return resolver(host, *args, **named)
        asked.append(host)
        answer.wait(60)
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    guard = NetGuard(())
    try:
        left = [asyncio.create_task(guard.resolve("dead.test")) for _ in range(40)]
        await asyncio.sleep(0)
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
        assert await asyncio.wait_for(guard.resolve("hooks.test"), 30) == [ip_address(PUBLIC)]
        monkeypatch.setattr(limits, "DNS_TIMEOUT_S", 0.05)
        await guard.check_url("https://dead.test/")  # an API call does not wait for it either
        assert asked == ["dead.test"]
    finally:
        answer.set()


async def test_an_address_needs_no_resolver(monkeypatch: pytest.MonkeyPatch, receiver: Receiver) -> None:
    def unasked(host: Any, *args: Any, **named: Any) -> Any:
        raise AssertionError(f"the resolver was asked for {host}")

    monkeypatch.setattr(socket, "getaddrinfo", unasked)
    guard = NetGuard(LOOPBACK)
    monkeypatch.setattr(limits, "DNS_TIMEOUT_S", 0.0)
    await guard.check_url(receiver.url)
    assert await guard.resolve("::1") == [ip_address("::1")]


async def test_of_a_names_addresses_those_that_are_allowed_are_dialled(
    monkeypatch: pytest.MonkeyPatch, receiver: Receiver
) -> None:
    """`localhost` is ::1 too, and only 127.0.0.0/8 is allowed."""
    resolve_as(monkeypatch, "hooks.test", ["::1", "127.0.0.1"])
    guard, url = NetGuard(LOOPBACK[:1]), receiver.url.replace("127.0.0.1", "hooks.test")
    await guard.check_url(url)
    assert await guard.resolve("hooks.test") == [ip_address("127.0.0.1")]
    async with guarded_client(guard) as client:
        assert (await client.post(url)).status_code == 200


async def test_a_name_that_turns_public_is_not_dialled_in_the_clear(monkeypatch: pytest.MonkeyPatch) -> None:
    resolve_as(monkeypatch, "hooks.test", ["127.0.0.1"], [PUBLIC])
    guard = NetGuard(LOOPBACK)
    await guard.check_url("http://hooks.test/")
    async with guarded_client(guard) as client:
        with pytest.raises(BlockedAddress, match="must be https"):
            await client.post("http://hooks.test/")


async def test_an_allowed_network_may_be_reached_in_the_clear(receiver: Receiver) -> None:
    guard = NetGuard(LOOPBACK)
    await guard.check_url(receiver.url)
    async with guarded_client(guard) as client:
        response = await client.post(receiver.url, content=b"{}")
    assert response.status_code == 200
    assert len(receiver.requests) == 1


async def test_a_name_that_turns_to_loopback_after_the_check_is_not_dialled(
    monkeypatch: pytest.MonkeyPatch, listener: Listener
) -> None:
    resolver = resolve_as(monkeypatch, "rebind.test", [PUBLIC], ["127.0.0.1"])
    guard = NetGuard(())
    url = f"https://rebind.test:{listener.port}/"
    await guard.check_url(url)
    async with guarded_client(guard) as client:
        with pytest.raises(BlockedAddress):
            await client.post(url)
    assert resolver.asked == 2
    assert listener.connections == 0


async def test_the_address_that_was_vetted_is_the_one_that_is_dialled(
    monkeypatch: pytest.MonkeyPatch, listener: Listener
) -> None:
    """Whoever resolves a second time in order to dial reaches the listener: 127.0.0.2 is allowed, and refuses."""
    resolver = resolve_as(monkeypatch, "rebind.test", ["127.0.0.2"], ["127.0.0.1"])
    async with guarded_client(NetGuard((ip_network("127.0.0.2/32"),))) as client:
        with pytest.raises(httpx.ConnectError):
            await client.post(f"http://rebind.test:{listener.port}/")
    assert resolver.asked == 1
    assert listener.connections == 0


async def test_the_next_address_of_a_host_is_tried_when_one_refuses(
    monkeypatch: pytest.MonkeyPatch, receiver: Receiver
) -> None:
    resolve_as(monkeypatch, "hooks.test", ["127.0.0.2", "127.0.0.1"])
    async with guarded_client(NetGuard(LOOPBACK)) as client:
        response = await client.post(receiver.url.replace("127.0.0.1", "hooks.test"))
    assert response.status_code == 200


async def test_a_redirect_to_loopback_is_not_followed(listener: Listener, receiver: Receiver) -> None:
    receiver.answer(Reply(status=302, headers={"location": f"http://127.0.0.1:{listener.port}/"}))
    async with guarded_client(NetGuard(LOOPBACK)) as client:
        response = await client.post(receiver.url)
    assert response.status_code == 302
    assert listener.connections == 0


async def test_a_proxy_of_the_environment_is_not_used(
    monkeypatch: pytest.MonkeyPatch, listener: Listener, receiver: Receiver
) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{listener.port}")
    monkeypatch.delenv("NO_PROXY", raising=False)
    async with guarded_client(NetGuard(LOOPBACK)) as client:
        assert (await client.post(receiver.url)).status_code == 200
    assert listener.connections == 0


async def test_a_cookie_that_one_receiver_sets_is_told_to_no_other(receiver: Receiver) -> None:
    receiver.answer(Reply(headers={"set-cookie": "session=secret; Path=/"}))
    async with guarded_client(NetGuard(LOOPBACK)) as client:
        await client.post(receiver.url_for("/one"))
        await client.post(receiver.url_for("/another"))
    assert "cookie" not in receiver.requests[1].headers
