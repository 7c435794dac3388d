"""Forward packets between two links with a delay: `python delay.py LINK LINK SECONDS`.

The kernel's own way, netem, is missing from many kernels.
"""

from __future__ import annotations

import select
import socket
import sys
import time
from collections import deque

ETH_P_ALL = 3

SOL_PACKET, PACKET_VNET_HDR, PACKET_IGNORE_OUTGOING = 263, 15, 23

FRAME_BYTES = (1 << 16) + 64


def main(first: str, second: str, seconds: float) -> None:
    links = [_open(first), _open(second)]
    print("ready", flush=True)
    waiting = deque[tuple[float, socket.socket, bytes]]()
    while True:
        left = waiting[0][0] - time.monotonic() if waiting else None
        ready, _, _ = select.select(links, [], [], None if left is None else max(0, left))
        for link in ready:
            other = links[1 - links.index(link)]
            waiting.append((time.monotonic() + seconds, other, link.recv(FRAME_BYTES)))
        while waiting and waiting[0][0] <= time.monotonic():
            _, other, frame = waiting.popleft()
            other.send(frame)


def _open(link: str) -> socket.socket:
    packets = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
    # Frames carry what the kernel has put off: checksums, and the cutting of long ones.
    packets.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
    packets.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
    packets.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 26)
    packets.bind((link, 0))
    return packets


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], float(sys.argv[3]))
