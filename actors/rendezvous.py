"""Where the ranks of the learner meet: at one address of rank 0's node.

torch's store, which asks for no token, listens on all interfaces of its machine if left to itself. Here it is
given a socket that is bound to the address the ranks are told, which on a laptop is 127.0.0.1.
"""

from __future__ import annotations

import importlib
import socket
from dataclasses import dataclass
from typing import Any

from ray.train.backend import Backend
from ray.train.torch import TorchConfig
from ray.train.torch.config import _TorchBackend
from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]


@dataclass
class AtOneAddress(TorchConfig):
    """`TorchConfig` with such a store."""

    @property
    def backend_cls(self) -> type[Backend]:
        return _Backend


class _Backend(_TorchBackend):
    def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
        worker_group.execute_single(0, meet_at_one_address)
        super().on_start(worker_group, backend_config)


def meet_at_one_address() -> None:
    """From now on `init_process_group` of this process, if it is rank 0, listens on MASTER_ADDR alone."""
    # torch.distributed exports a function of the module's name.
    rendezvous: Any = importlib.import_module("torch.distributed.rendezvous")
    rendezvous.TCPStore = store_at_one_address


def store_at_one_address(*, host_name: str, port: int, is_master: bool, **options: Any) -> TCPStore:
    """A TCPStore; the one that listens does so on `host_name`."""
    if is_master:
        family = socket.AF_INET6 if ":" in host_name else socket.AF_INET
        options["master_listen_fd"] = socket.create_server((host_name, port), family=family).detach()
    return TCPStore(host_name=host_name, port=port, is_master=is_master, **options)
