"""This folder's tests run on a whole gateway."""

from tests.support.gateway_fixtures import client, devnet, gateway, plain_logging, sender

__all__ = ["client", "devnet", "gateway", "plain_logging", "sender"]
