"""Exchange gradients between the workers of several nodes, over connections in a ring.

Each worker sends to the next rank and receives from the previous rank. Slices of the gradient go
round once and are summed on the way; updated slices of the parameters go round once more.
"""

from __future__ import annotations

import hmac
import secrets
import select
import socket
from contextlib import suppress

import torch
import torch.distributed as dist
from torch import Tensor

from pipeline.training.kernels.gradient_sync import GradientSync
from pipeline.training.process_group import own_address

SPINS = 2000
"""Attempts to send or receive before this thread sleeps: waking it takes longer than many."""

BUFFER_BYTES = 1 << 20
"""Buffer of a connection: a slice that fits is sent without waiting for the other side."""

KEY_TIMEOUT_S = 5
"""Time for a connection to send the key."""


class RingSync(GradientSync):
    """Sums gradients on their way round the ring, so all workers have the same bits."""

    def __init__(self, parameters: Tensor) -> None:
        self._rank, self._world_size = dist.get_rank(), dist.get_world_size()
        self._next, self._previous = _connect(self._rank, self._world_size)
        self.parameters = parameters
        self.gradient = torch.zeros_like(parameters)
        self._slices = [
            slice(
                len(parameters) * rank // self._world_size,
                len(parameters) * (rank + 1) // self._world_size,
            )
            for rank in range(self._world_size)
        ]
        self.own_slice = self._slices[self._rank]
        self.reduced = torch.zeros_like(parameters[self.own_slice])
        self._received = torch.zeros_like(parameters)

    def reduce(self) -> None:
        # A slice starts at the rank after its owner, and each rank on the way adds its own part.
        for hop in range(1, self._world_size):
            sent = self._slices[(self._rank - hop) % self._world_size]
            received = self._slices[(self._rank - hop - 1) % self._world_size]
            self._exchange(self.gradient[sent], self._received[received])
            self.gradient[received] += self._received[received]
        self.reduced.copy_(self.gradient[self.own_slice])

    def all_gather(self) -> None:
        for hop in range(self._world_size - 1):
            sent = self._slices[(self._rank - hop) % self._world_size]
            received = self._slices[(self._rank - hop - 1) % self._world_size]
            self._exchange(self.parameters[sent], self.parameters[received])

    def _exchange(self, sent: Tensor, received: Tensor) -> None:
        """Send a vector to the next rank while another comes from the previous rank."""
        to_send, to_receive = _bytes(sent), _bytes(received)
        spins = 0
        while to_send or to_receive:
            spins += 1
            if spins > SPINS:
                readers = [self._previous] if to_receive else []
                select.select(readers, [self._next] if to_send else [], [])
            try:
                if to_send:
                    to_send = to_send[self._next.send(to_send) :]
                    spins = 0
            except BlockingIOError:
                pass
            try:
                if to_receive:
                    count = self._previous.recv_into(to_receive)
                    if count == 0:
                        raise ConnectionError("The previous rank closed its connection.")
                    to_receive = to_receive[count:]
                    spins = 0
            except BlockingIOError:
                pass


def _bytes(vector: Tensor) -> memoryview:
    view: memoryview = vector.numpy().data
    return view.cast("B")


def _connect(rank: int, world_size: int) -> tuple[socket.socket, socket.socket]:
    """Connect the ranks in a ring; return the connections to the next and from the previous."""
    address = own_address()
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.create_server((address, 0), family=family, backlog=world_size) as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER_BYTES)
        # The key that the previous rank must send, because anyone may connect to the port.
        key = secrets.token_bytes(32)
        own = (*server.getsockname()[:2], key)
        everyone: list[tuple[str, int, bytes]] = [own] * world_size
        dist.all_gather_object(everyone, own)
        host, port, key_of_next = everyone[(rank + 1) % world_size]
        to_next = socket.create_connection((host, port))
        to_next.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER_BYTES)
        to_next.sendall(key_of_next)
        from_previous = _accept(server, key)
    for connection in (to_next, from_previous):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.setblocking(False)
    return to_next, from_previous


def _accept(server: socket.socket, key: bytes) -> socket.socket:
    """Return the first connection that sends the key; close others."""
    while True:
        connection, _ = server.accept()
        connection.settimeout(KEY_TIMEOUT_S)
        with suppress(OSError):
            # A file waits for all bytes of the key, as a socket with a timeout does not.
            with connection.makefile("rb", buffering=len(key)) as file:
                sent = file.read(len(key))
            if hmac.compare_digest(sent, key):
                return connection
        connection.close()
