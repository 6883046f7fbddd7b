"""Several nodes on one machine, on loopback, with Ray's own test cluster; the harness owns what it starts."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import ray._private.ray_constants as ray_constants
from ray._common.utils import reset_ray_address

from benchmarks.chaos.beacon import started_at

LOOPBACK = "127.0.0.1"
ROOT = str(Path(__file__).parents[2])
STORE_BYTES = 100 * 2**20
HEAD_S = 8
STARTS = 3  # of one node


class Machines:
    """A head and `workers` further nodes. `environment`: of all of Ray's processes and workers."""

    def __init__(
        self,
        workers: int = 2,
        cpus: int = 4,
        store_bytes: int = STORE_BYTES,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        # Ray replaces a loopback address by the machine's own unless clusters are switched off.
        ray_constants.ENABLE_RAY_CLUSTER = False
        told = {
            ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR: "0",
            # How long a driver waits for a lost head before Ray ends it; 60 s by default.
            "RAY_gcs_rpc_server_reconnect_timeout_s": str(HEAD_S),
            "PYTHONPATH": os.pathsep.join([ROOT, os.environ.get("PYTHONPATH", "")]),
            **(environment or {}),
        }
        # Drivers and further nodes read it too, so it holds until `stop`, and not a moment longer.
        self._before = {name: os.environ.get(name) for name in told}
        os.environ.update(told)
        from ray.cluster_utils import Cluster

        self._cpus, self._store_bytes = cpus, store_bytes
        self._cluster: Any = Cluster(
            initialize_head=True,
            head_node_args={
                "num_cpus": cpus,
                "include_dashboard": False,
                "node_ip_address": LOOPBACK,
                "object_store_memory": store_bytes,
                # Node death is noticed in seconds, as on a cluster with a short health check.
                "_system_config": {
                    "worker_maximum_startup_concurrency": 8,
                    "health_check_initial_delay_ms": 0,
                    "health_check_period_ms": 500,
                    "health_check_failure_threshold": 4,
                },
            },
        )
        # The cluster has told the machine that it is the one to join, which is not for others to do.
        reset_ray_address()
        for _ in range(workers):
            self.add()

    @property
    def address(self) -> str:
        return self._cluster.address

    @property
    def workers(self) -> list[Any]:
        return sorted(self._cluster.worker_nodes, key=lambda node: node.node_id)

    def add(self) -> Any:
        """One more node. On a busy machine Ray's agents may miss Ray's deadline for their start, which ends
        the new node; it is started again then."""
        for _ in range(STARTS - 1):
            with suppress(Exception):
                return self._add()
        return self._add()

    def _add(self) -> Any:
        return self._cluster.add_node(
            num_cpus=self._cpus, node_ip_address=LOOPBACK, object_store_memory=self._store_bytes
        )

    def remove(self, node: Any) -> list[int]:
        """A machine that is gone: Ray's processes there, and every worker; gives the workers' pids."""
        pids = children(raylet(node))
        self._cluster.remove_node(node, allow_graceful=False)
        for pid, born in pids.items():
            kill(pid, born)
        return list(pids)

    def stop(self) -> None:
        nodes = [*self._cluster.worker_nodes, self._cluster.head_node]
        pids = {pid: born for node in nodes if node for pid, born in children(raylet(node)).items()}
        with suppress(Exception):
            self._cluster.shutdown()
        until = time.monotonic() + 5
        while any(started_at(pid) == born for pid, born in pids.items()) and time.monotonic() < until:
            time.sleep(0.05)
        for pid, born in pids.items():
            kill(pid, born)
        for name, value in self._before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def raylet(node: Any) -> int:
    [process] = node.all_processes[ray_constants.PROCESS_TYPE_RAYLET]
    return process.process.pid


def children(pid: int) -> dict[int, int]:
    """Processes below `pid` -> when each began."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError, IndexError):
                parent = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
                parents.setdefault(parent, []).append(int(entry.name))
    found: dict[int, int] = {}
    waiting = [pid]
    while waiting:
        for child in parents.get(waiting.pop(), []):
            born = started_at(child)
            if born is not None:
                found[child] = born
                waiting.append(child)
    return found


def kill(pid: int, born: int | None) -> None:
    """SIGKILL, if the process is still the one that began then."""
    if born is not None and started_at(pid) == born:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
