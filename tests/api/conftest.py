"""This folder's tests run on a whole gateway."""

from tests.support.gateway_fixtures import (
    client,
    devnet,
    gateway,
    plain_logging,
    sender,
    shared_backend,
    shared_client,
    shared_gateway,
)

__all__ = [
    "client",
    "devnet",
    "gateway",
    "plain_logging",
    "sender",
    "shared_backend",
    "shared_client",
    "shared_gateway",
]
