"""How many ranks a learner can have now."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Mapping

from ray._private import state

from pipelines.settings import LearnerSettings

LOOK_S = 0.25
ROOM_S = 20.0  # that a lost learner's resources get to become free


async def settled_ranks(settings: LearnerSettings) -> int:
    """As many ranks as are wanted, or as find room after some waiting, but never fewer than `min_workers`."""
    least, until = settings.min_workers, time.monotonic() + ROOM_S
    if least is None:
        return settings.workers
    while (room := await free_ranks(settings)) < settings.workers:
        if time.monotonic() > until:
            return max(room, least)
        await asyncio.sleep(LOOK_S)
    return settings.workers


async def free_ranks(settings: LearnerSettings) -> int:
    """Ranks that find room in the cluster besides what runs there. In a thread: Ray's head may be slow."""
    nodes = await asyncio.to_thread(state.available_resources_per_node)
    return ranks_that_fit(settings, nodes.values())


def ranks_that_fit(settings: LearnerSettings, nodes: Iterable[Mapping[str, float]]) -> int:
    """Learner ranks that find room in what each node has free, at most as many as wanted. A rank needs one
    node. `learner.labels` are not looked at."""
    each = {"CPU": float(settings.cpus), "GPU": float(settings.gpus)}
    wanted = {name: amount for name, amount in each.items() if amount}
    room = sum(
        min(int(free.get(name, 0.0) / amount + 1e-9) for name, amount in wanted.items()) for free in nodes
    )
    return min(settings.workers, room)
