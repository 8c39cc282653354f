"""The client talks to a whole gateway."""

from tests.support.gateway_fixtures import devnet, gateway, plain_logging

__all__ = ["devnet", "gateway", "plain_logging"]
