"""The tests' child processes are the devnet's."""

from devnet.process import ChildProcess

__all__ = ["ChildProcess"]
