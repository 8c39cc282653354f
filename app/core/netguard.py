"""Keeps requests that strangers' URLs cause away from networks that are not public (SSRF)."""

import asyncio
import socket
from collections.abc import Iterable, Sequence
from http.cookiejar import CookieJar, DefaultCookiePolicy
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Any, Final
from urllib.parse import urlsplit

import httpcore
import httpx

from app.core import limits
from app.core.config import Network
from app.core.errors import InvalidRequest

IPAddress = IPv4Address | IPv6Address

# IPv6 networks that carry an IPv4 address inside (RFC 3056, RFC 4380, RFC 6052, RFC 8215): the inner one is unknown
# to the router that would be asked, so none of them is dialled.
_CARRIERS: Final = tuple(IPv6Network(net) for net in ("2002::/16", "2001::/32", "64:ff9b::/96", "64:ff9b:1::/48"))
# What Python's `is_global` does not know: 6to4 relays (RFC 7526), documentation (RFC 9637), site-local (RFC 3879).
_NOT_GLOBAL: Final = tuple(ip_network(net) for net in ("192.88.99.0/24", "3fff::/20", "fec0::/10"))


class BlockedAddress(InvalidRequest):
    """The URL leads, by its name or its spelling, to an address that is not public."""

    code = "blocked_url"
    title = "URL not allowed"


class NetGuard:
    """Decides which addresses may be dialled: public ones, and those in the operator's `allowed` networks."""

    def __init__(self, allowed: Iterable[Network]) -> None:
        self._allowed = tuple(allowed)

    def permits(self, address: IPAddress) -> bool:
        if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
            address = address.ipv4_mapped
        if any(address in network for network in self._allowed if network.version == address.version):
            return True
        if any(address in network for network in (*_CARRIERS, *_NOT_GLOBAL)):
            return False
        return address.is_global and not address.is_multicast and not address.is_reserved

    def allows_plain_http(self, addresses: Iterable[IPAddress]) -> bool:
        """http:// is for the operator's own networks only; on the open internet a webhook goes by https."""
        return all(any(a in net for net in self._allowed if net.version == a.version) for a in addresses)

    async def resolve(self, host: str, port: int) -> list[IPAddress]:
        """Addresses of a host, each of them permitted. Raises BlockedAddress, or OSError when it has none."""
        answers = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        addresses = [ip_address(str(answer[4][0]).partition("%")[0]) for answer in answers]
        for address in addresses:
            if not self.permits(address):
                raise BlockedAddress(f"{host} leads to {address}, which is not a public address")
        return addresses

    async def check_url(self, url: str) -> None:
        """Raises BlockedAddress when a webhook must not go there now; it is asked again at every delivery."""
        try:
            httpx.URL(url)  # is stricter than urlsplit, and is what the request will be made of
            parts = urlsplit(url)
        except (httpx.InvalidURL, ValueError) as error:
            raise BlockedAddress("a webhook URL must be a valid URL") from error
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.password:
            raise BlockedAddress("a webhook URL must be https:// with a host and without credentials")
        try:
            port = parts.port or (443 if parts.scheme == "https" else 80)
            async with asyncio.timeout(limits.DNS_TIMEOUT_S):
                addresses = await self.resolve(parts.hostname, port)
        except (OSError, ValueError, TimeoutError) as error:
            raise BlockedAddress(f"{parts.hostname} cannot be resolved") from error
        if parts.scheme == "http" and not self.allows_plain_http(addresses):
            raise BlockedAddress("a webhook URL must be https://")


class _GuardedBackend(httpcore.AsyncNetworkBackend):
    """Resolves once, vets, and dials the vetted address: a name that changes in between has no window."""

    def __init__(self, guard: NetGuard) -> None:
        self._guard = guard
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
                addresses = await self._guard.resolve(host, port)
        except TimeoutError as error:
            raise httpcore.ConnectTimeout(f"resolving {host} took too long") from error
        except OSError as error:
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
    transport = httpx.AsyncHTTPTransport(trust_env=False)
    # httpx has no parameter for the network backend; its pool is replaced by an equal one that has ours.
    transport._pool = httpcore.AsyncConnectionPool(
        ssl_context=httpx.create_ssl_context(trust_env=False),
        max_connections=limits.WEBHOOK_CONNECTIONS,
        max_keepalive_connections=limits.WEBHOOK_KEEPALIVE_CONNECTIONS,
        network_backend=_GuardedBackend(guard),
    )
    timeout = httpx.Timeout(limits.WEBHOOK_TIMEOUT_S, connect=limits.WEBHOOK_CONNECT_TIMEOUT_S)
    no_cookies = CookieJar(DefaultCookiePolicy(allowed_domains=[]))
    return httpx.AsyncClient(
        transport=transport, timeout=timeout, follow_redirects=False, trust_env=False, cookies=no_cookies
    )
