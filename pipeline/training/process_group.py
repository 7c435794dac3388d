"""Connect the workers of several nodes by the addresses that Ray knows."""

from __future__ import annotations

import os
from typing import Any

import psutil
import ray.util
from ray.train.torch import TorchConfig

INTERFACE_VARIABLES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")


class OwnAddressConfig(TorchConfig):
    """A TorchConfig whose workers are reached at the addresses of their nodes in Ray.

    By default gloo is reached at the address of the host's name, which on Debian is loopback.
    """

    @property
    def backend_cls(self) -> type[Any]:
        return _with_own_address(super().backend_cls)


def _with_own_address(backend: type[Any]) -> type[Any]:
    class OwnAddressBackend(backend):  # type: ignore[misc]
        def on_start(self, worker_group: Any, backend_config: Any) -> None:
            worker_group.execute(use_interface_of_node)
            super().on_start(worker_group, backend_config)

    return OwnAddressBackend


def use_interface_of_node() -> None:
    """Let gloo and nccl use the network interface of the node's address, unless the user chose."""
    interface = interface_of(own_address())
    for variable in INTERFACE_VARIABLES:
        if interface and variable not in os.environ:
            os.environ[variable] = interface


def own_address() -> str:
    """Return the address of this node in Ray, at which other nodes reach it."""
    return str(ray.util.get_node_ip_address())


def interface_of(address: str) -> str | None:
    """Return the network interface that has this address, or None."""
    for name, addresses in psutil.net_if_addrs().items():
        if any(own.address.partition("%")[0] == address for own in addresses):
            return name
    return None
