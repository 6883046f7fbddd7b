"""What the fleet asks of Ray: where an actor is, to end it, room for more, and how full object stores are."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
from ray._private import state
from ray.actor import ActorHandle

from pipelines.scaling import ROLES, Role

Resources = Mapping[str, float]

OBEYS_S = 0.5  # in which a sound process ends when Ray tells it to


@dataclass(frozen=True, kw_only=True)
class Needs:
    """What one member of each role reserves, and what the rest of the run does (`others`)."""

    generator: Resources
    scorer: Resources
    perturber: Resources
    generator_labels: Mapping[str, str] = field(default_factory=dict[str, str])
    others: Sequence[Resources] = ()


@dataclass(frozen=True, kw_only=True)
class Place:
    """A process: its node, its number there, and where it is on this machine, when it began."""

    node: str
    pid: int
    began: str | None = None


class Nodes:
    """The cluster that this process has joined. Calls take a few milliseconds and may block: use a thread."""

    def find(self, handle: Any) -> Place | None:
        """Where an actor's process is, from its constructor on; None while no node has room for it."""
        if not isinstance(handle, ActorHandle):
            return Place(node="", pid=os.getpid())
        # Without a dashboard Ray has no public way.
        known = state.actors(handle._actor_id.hex())
        pid = int(known.get("Pid") or 0)
        if not pid:
            return None
        return placed(known["Address"]["NodeID"], pid)

    def end(self, handle: Any, place: Place | None) -> None:
        """Kill an actor for good.

        Calls under way fail at once. Ray 2.60 ends a process that does not react, such as a stopped one, only
        after 5 s (measured), and its resources stay taken as long; on this machine it is killed long before.
        """
        if not isinstance(handle, ActorHandle):
            return
        with suppress(Exception):  # Ray may be gone; the process is not
            ray.kill(handle, no_restart=True)
        if place is not None:
            self.outlive(place)

    def outlive(self, place: Place) -> None:
        """Wait until a process that was told to end has done so; where it is on this machine, kill it."""
        until = time.monotonic() + OBEYS_S
        while place.began is not None and place.began == _began(place.pid):
            if time.monotonic() > until:
                with suppress(ProcessLookupError):
                    os.kill(place.pid, signal.SIGKILL)
                return
            time.sleep(0.01)

    def request(self, needs: Needs | None, wanted: Mapping[Role, int]) -> None:
        """Ask the cluster's autoscaler for room for so many members; nothing where there is no autoscaler."""
        from ray.autoscaler.sdk import request_resources

        bundles: list[dict[str, float]] = []
        labels: list[dict[str, str]] = []
        if needs is not None:
            of_role = {"generator": needs.generator, "scorer": needs.scorer, "perturber": needs.perturber}
            for role in ROLES:
                bundles += [dict(of_role[role])] * wanted.get(role, 0)
            labels = [dict(needs.generator_labels)] * wanted.get("generator", 0)
            bundles += [dict(other) for other in needs.others]
        labels += [{}] * (len(bundles) - len(labels))
        request_resources(bundles=bundles, bundle_label_selectors=labels)

    def fullness(self) -> dict[str, float]:
        """Node -> share of its object store in use, of all nodes; one question to Ray's head each (2 ms)."""
        free, total = state.available_resources_per_node(), state.total_resources_per_node()
        key = "object_store_memory"
        return {
            node: 1 - free[node].get(key, 0.0) / resources[key]
            for node, resources in total.items()
            if node in free and resources.get(key)
        }


def placed(node: str, pid: int) -> Place:
    """The place of a Ray worker."""
    return Place(node=node, pid=pid, began=_began(pid) if node == _here() else None)


def _here() -> str:
    return ray.get_runtime_context().get_node_id()


def _began(pid: int) -> str | None:
    """When the Ray worker `pid` of this machine began, in ticks since boot.

    So that a later process of the same number, or another container's, is never taken for it.
    """
    process = Path(f"/proc/{pid}")
    try:
        ours = (process / "cmdline").read_bytes().startswith(b"ray::")
        return (process / "stat").read_text().rpartition(")")[2].split()[19] if ours else None
    except OSError:
        return None
