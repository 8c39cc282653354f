"""Whose request it is when no key says so: the client's address, through proxies that are trusted."""

from collections.abc import Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

from starlette.requests import HTTPConnection

from app.core import limits
from app.core.config import Network


def client_address(request: HTTPConnection, trusted: Sequence[Network]) -> str:
    """The address that limits are counted by: an IPv4 address, or an IPv6 network of 64 bits, which one host has whole.

    `X-Forwarded-For` grows to the right, so it is read from there for as long as the one who wrote it is trusted.
    """
    peer = request.client.host if request.client else ""
    forwarded = ",".join(request.headers.getlist("x-forwarded-for")) if trusted else ""
    client = _parse(peer)
    for hop in reversed(forwarded.split(",")[-limits.FORWARDED_HOPS :]):
        further = _parse(hop)
        if client is None or further is None or not any(client in network for network in trusted):
            break
        client = further
    if client is None:
        return "unknown"
    return str(ip_network((client, 64), strict=False)) if client.version == 6 else str(client)


def _parse(text: str) -> IPv4Address | IPv6Address | None:
    try:
        address = ip_address(text.strip())
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return mapped or address
