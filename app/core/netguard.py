"""Keeps requests that strangers' URLs cause away from networks that are not public (SSRF)."""

import asyncio
import re
import socket
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import cache
from http.cookiejar import CookieJar, DefaultCookiePolicy
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address, ip_network
from ssl import SSLContext
from typing import Any, Final
from urllib.parse import urlsplit

import httpcore
import httpx

from app.core import limits
from app.core.config import Network
from app.core.errors import FieldError, InvalidRequest

IPAddress = IPv4Address | IPv6Address

# IPv6 networks that carry an IPv4 address inside (RFC 3056, RFC 4380, RFC 6052, RFC 8215): the inner one is unknown
# to the router that would be asked, so none of them is dialled.
_CARRIERS: Final = tuple(IPv6Network(net) for net in ("2002::/16", "2001::/32", "64:ff9b::/96", "64:ff9b:1::/48"))
# What Python's `is_global` does not know, or not in every version: protocol assignments (RFC 6890), 6to4 relays
# (RFC 7526), documentation (RFC 9637), site-local (RFC 3879).
_NOT_GLOBAL: Final = tuple(ip_network(net) for net in ("192.0.0.0/24", "192.88.99.0/24", "3fff::/20", "fec0::/10"))
_NUMBER: Final = re.compile(r"[0-9]*|0[xX][0-9a-fA-F]*")


class BlockedAddress(InvalidRequest):
    """The URL leads, by its name or its spelling, to an address that is not public."""

    code = "blocked_url"
    title = "URL not allowed"


class NetGuard:
    """Decides which addresses may be dialled: public ones, and those in the operator's `allowed` networks."""

    def __init__(self, allowed: Iterable[Network]) -> None:
        self._allowed = tuple(allowed)
        # Threads of its own: a lookup that hangs goes on after its asker has left, and the loop's own few threads serve
        # everybody. One lookup at a time for a name, so that a dead one holds one of them.
        self._threads = ThreadPoolExecutor(limits.DNS_THREADS, thread_name_prefix="dns")
        self._lookups: dict[str, Future[list[IPAddress]]] = {}

    def permits(self, address: IPAddress) -> bool:
        if self._is_allowed(address):
            return True
        address = _unmapped(address)
        if any(address in network for network in (*_CARRIERS, *_NOT_GLOBAL)):
            return False
        return address.is_global and not address.is_multicast and not address.is_reserved

    async def resolve(self, host: str, plain_http: bool = False) -> list[IPAddress]:
        """The addresses of a host that may be dialled: those in the operator's networks, else all, if all are public.

        http:// is for the operator's own networks only. Raises BlockedAddress, which does not tell the addresses: an
        API client learns nothing of our network; OSError or ValueError when the host has none.
        """
        addresses = await self._look_up(host)
        allowed = [address for address in addresses if self._is_allowed(address)]
        if allowed:
            return allowed
        if plain_http:
            raise BlockedAddress("a webhook URL must be https://")
        if not all(self.permits(address) for address in addresses):
            raise BlockedAddress(f"{host} leads to an address that is not public")
        return addresses

    async def check_url(self, url: str, field: str = "url") -> None:
        """Raises BlockedAddress, which names `field`, when a webhook must not go there now.

        It is asked again at every delivery. A name that has no address at this moment, or none within `DNS_TIMEOUT_S`,
        may have one by then.
        """
        try:
            await self._check(url)
        except BlockedAddress as error:
            raise BlockedAddress(error.detail, [FieldError(field, error.detail)]) from error

    async def _check(self, url: str) -> None:
        scheme, host = read_url(url)
        try:
            async with asyncio.timeout(limits.DNS_TIMEOUT_S):
                await self.resolve(host, plain_http=scheme == "http")
        except (OSError, ValueError, TimeoutError) as error:
            if scheme == "http" or not _is_name(host):
                raise BlockedAddress(f"{host} cannot be resolved") from error

    def _is_allowed(self, address: IPAddress) -> bool:
        address = _unmapped(address)
        return any(address in network for network in self._allowed if network.version == address.version)

    async def _look_up(self, host: str) -> list[IPAddress]:
        with suppress(ValueError):
            return [ip_address(host)]  # nothing to ask, so no resolver that is slow or full can refuse it
        lookup = self._lookups.get(host)
        if lookup is None:
            lookup = self._lookups[host] = self._threads.submit(_addresses, host)
            lookup.add_done_callback(lambda _: self._lookups.pop(host))
        return await asyncio.shield(asyncio.wrap_future(lookup))  # it is others' too


def read_url(url: str) -> tuple[str, str]:
    """Scheme and host of a webhook's URL. Raises BlockedAddress when it cannot be one, wherever its host leads."""
    try:
        httpx.URL(url)  # is stricter than urlsplit, and is what the request will be made of
        parts = urlsplit(url)
        _ = parts.port  # raises for one that is none
    except (httpx.InvalidURL, ValueError) as error:
        raise BlockedAddress("a webhook URL must be a valid URL") from error
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.password:
        raise BlockedAddress("a webhook URL must be https:// with a host and without credentials")
    return parts.scheme, parts.hostname


def _addresses(host: str) -> list[IPAddress]:
    answers = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return [ip_address(str(answer[4][0]).partition("%")[0]) for answer in answers]


def _unmapped(address: IPAddress) -> IPAddress:
    return getattr(address, "ipv4_mapped", None) or address


def _is_name(host: str) -> bool:
    """Whether DNS could know it: it is no spelling of an address, which ends in a number, or in hexadecimal."""
    try:
        last = host.encode("idna").decode().rstrip(".").rpartition(".")[2]
    except UnicodeError:
        return False
    return _NUMBER.fullmatch(last) is None and ":" not in host


class _GuardedBackend(httpcore.AsyncNetworkBackend):
    """Resolves once, vets, and dials the vetted address: a name that changes in between has no window."""

    def __init__(self, guard: NetGuard, plain_http: bool) -> None:
        self._guard = guard
        self._plain_http = plain_http
        self._dialler = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        try:
            async with asyncio.timeout(timeout):
                addresses = await self._guard.resolve(host, self._plain_http)
        except TimeoutError as error:
            raise httpcore.ConnectTimeout(f"resolving {host} took too long") from error
        except (OSError, ValueError) as error:
            raise httpcore.ConnectError(f"{host} cannot be resolved") from error
        return await self._dial_first(addresses, port, timeout, local_address, socket_options)

    async def _dial_first(
        self,
        addresses: Sequence[IPAddress],
        port: int,
        timeout: float | None,
        local_address: str | None,
        socket_options: Iterable[Any] | None,
    ) -> httpcore.AsyncNetworkStream:
        failure: Exception = httpcore.ConnectError("the host has no address")
        for address in addresses[: limits.DIAL_ADDRESSES]:
            try:
                return await self._dialler.connect_tcp(str(address), port, timeout, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failure = error
        raise failure

    async def connect_unix_socket(
        self, path: str, timeout: float | None = None, socket_options: Iterable[Any] | None = None
    ) -> httpcore.AsyncNetworkStream:
        raise httpcore.ConnectError("unix sockets are not dialled")

    async def sleep(self, seconds: float) -> None:
        await self._dialler.sleep(seconds)


def guarded_client(guard: NetGuard) -> httpx.AsyncClient:
    """An HTTP client for strangers' URLs: guarded dialling, no redirects, cookies or environment proxies."""
    timeout = httpx.Timeout(limits.WEBHOOK_TIMEOUT_S, connect=limits.WEBHOOK_CONNECT_TIMEOUT_S)
    no_cookies = CookieJar(DefaultCookiePolicy(allowed_domains=[]))
    return httpx.AsyncClient(
        transport=_transport(guard, plain_http=False),
        mounts={"http://": _transport(guard, plain_http=True)},
        timeout=timeout,
        follow_redirects=False,
        trust_env=False,
        cookies=no_cookies,
    )


@cache
def _trusted() -> SSLContext:
    """Made once: reading all certificate authorities takes tens of milliseconds, in which nothing else runs."""
    return httpx.create_ssl_context(trust_env=False)


def _transport(guard: NetGuard, plain_http: bool) -> httpx.AsyncHTTPTransport:
    transport = httpx.AsyncHTTPTransport(verify=_trusted(), trust_env=False)
    # httpx has no parameter for the network backend; its pool is replaced by an equal one that has ours.
    transport._pool = httpcore.AsyncConnectionPool(
        ssl_context=_trusted(),
        max_connections=limits.WEBHOOK_CONNECTIONS,
        max_keepalive_connections=limits.WEBHOOK_KEEPALIVE_CONNECTIONS,
        network_backend=_GuardedBackend(guard, plain_http),
    )
    return transport
