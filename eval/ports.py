"""Ports for a service that listens some seconds later."""

from __future__ import annotations

import random
import socket
from contextlib import ExitStack, suppress

# Not of those that the system gives to whoever asks for any, most of a Ray's processes among them: one of these was
# taken before the service listened.
CANDIDATES = range(3000, 7000)


def free_ports(count: int) -> list[int]:
    """Different ones, free on every interface now. Raises OSError when there are too few."""
    found: list[int] = []
    with ExitStack() as held:
        for port in random.SystemRandom().sample(CANDIDATES, len(CANDIDATES)):
            with suppress(OSError):
                held.enter_context(socket.create_server(("", port)))
                found.append(port)
            if len(found) == count:
                return found
    raise OSError(f"of the ports {CANDIDATES[0]} to {CANDIDATES[-1]} only {len(found)} are free")
