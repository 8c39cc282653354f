"""Ports on loopback, for servers that must know their port before they listen, or take it again after an outage."""

import os
import socket
import sys
from typing import Final

# Bound and never listening. A server that sets SO_REUSEADDR, as all do, may listen there nevertheless; the system gives
# the port to nobody who asks for any, neither to listen nor for a connection of its own.
_RESERVED: Final[dict[int, int]] = {}  # file descriptors by port


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do: a port that only lingers is free
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def free_port() -> int:
    """A port that nobody has. On Linux nobody else is given it until give_back() or the end of this process, whoever
    stops and starts there meanwhile; elsewhere two sockets cannot be bound to one port, and somebody may take it.
    """
    probe = socket.socket()
    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    probe.bind(("127.0.0.1", 0))
    port: int = probe.getsockname()[1]
    if sys.platform == "linux":
        _RESERVED[port] = probe.detach()
    else:
        probe.close()
    return port


def give_back(port: int) -> None:
    """Let others have it; harmless where it was not reserved."""
    if (held := _RESERVED.pop(port, None)) is not None:
        os.close(held)
