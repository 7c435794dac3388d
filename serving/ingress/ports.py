"""Free ports of this machine."""

from __future__ import annotations

import random
import socket
from contextlib import suppress
from itertools import islice

from pipeline.errors import SettingError

PORTS = range(21_000, 30_000)


def free_ports(host: str, number: int) -> list[int]:
    """Ports on which nothing listens, and that no connection is given meanwhile.

    Those that systems give to connections begin above these, and Ray makes many connections
    between the choice of a port and its use.
    """
    found = list(islice((p for p in random.sample(PORTS, len(PORTS)) if _is_free(host, p)), number))
    if len(found) < number:
        raise SettingError(f"{host} has no {number} free ports from {PORTS[0]} to {PORTS[-1]}.")
    return found


def _is_free(host: str, port: int) -> bool:
    with suppress(OSError), socket.create_server((host, port)):
        return True
    return False
