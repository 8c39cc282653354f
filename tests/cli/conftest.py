"""This folder's tests of the sweeper run on a watch whose money is swept."""

from tests.services.blockchain.conftest import open_swept, opened, requests, signer, usdc, watch

__all__ = ["open_swept", "opened", "requests", "signer", "usdc", "watch"]
