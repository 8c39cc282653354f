"""This folder's tests run on a whole gateway."""

from tests.support.gateway_fixtures import client, devnet, gateway, other, plain_logging, sender

__all__ = ["client", "devnet", "gateway", "other", "plain_logging", "sender"]
