"""Which network gloo talks over: the one that the node has its address in Ray on.

Left alone, gloo takes the interface that the host's name resolves to. On many images and in containers
that is the loopback, and workers on two hosts never meet: the run fails as an error of Ray Train's own, which
`max_failures` does not cover.
"""

import os
from typing import Any

from ray.train.torch import TorchConfig
from ray.train.torch.config import _TorchBackend


class _Backend(_TorchBackend):
    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        worker_group.execute(name_interface)
        super().on_start(worker_group, backend_config)


class Gloo(TorchConfig):
    """Ray Train's gloo backend, with every worker on its node's own interface."""

    def __init__(self) -> None:
        super().__init__(backend="gloo")

    @property
    def backend_cls(self) -> type[_Backend]:
        return _Backend


def name_interface() -> None:
    """Set GLOO_SOCKET_IFNAME, where nobody has, to the interface of this node's address in Ray."""
    import psutil
    import ray.util

    here = ray.util.get_node_ip_address()
    for name, addresses in psutil.net_if_addrs().items():
        if any(address.address == here for address in addresses):
            os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
