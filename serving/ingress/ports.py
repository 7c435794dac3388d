"""Free ports of this machine."""

from __future__ import annotations

import random
import socket
from contextlib import suppress
from itertools import islice

from pipeline.errors import SettingError

PORTS = range(21_000, 30_000)
"""Below the ephemeral ports of Linux (from 32,768), which the kernel assigns to connections."""


def free_ports(host: str, number: int) -> list[int]:
    """Return ports on which nothing listens, and that the kernel assigns to no connection.

    Ray opens many connections between the choice of a port and its use, so an ephemeral port
    could be taken meanwhile. Raise SettingError if there are too few.
    """
    candidates = random.sample(PORTS, len(PORTS))
    ports = list(islice((port for port in candidates if _is_free(host, port)), number))
    if len(ports) < number:
        raise SettingError(
            f"{host} has fewer than {number} free ports from {PORTS[0]} to {PORTS[-1]}."
        )
    return ports


def _is_free(host: str, port: int) -> bool:
    with suppress(OSError), socket.create_server((host, port)):
        return True
    return False
