"""The tests' merchant is the devnet's."""

from devnet.receiver import HANG, Received, Receiver, Reply

__all__ = ["HANG", "Received", "Receiver", "Reply"]
