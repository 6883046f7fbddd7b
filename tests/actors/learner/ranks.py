"""Learner ranks as processes of their own, with DeepSpeed: `python ranks.py SPEC.json` runs every scene.

Ranks are forked from this process, which has imported what they need.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import deepspeed  # noqa: F401  (before the ranks are forked)
import rank_deaths
import rank_scenes
import torch
import torch.distributed as dist
from rank_scenes import Rank

from actors import checkpoints

COLLECTIVE_S = 20  # how long a collective waits for a rank
SCENE_S = 120

Scene = Callable[[Rank], dict[str, Any]]
ALL: tuple[tuple[Scene, int], ...] = (
    (rank_scenes.skewed, 2),
    (rank_scenes.save, 1),
    (rank_scenes.resize, 1),
    (rank_scenes.resize, 2),
    (rank_scenes.unconvertible, 1),
    (rank_scenes.unconvertible, 2),
    (rank_scenes.sick, 2),
    (rank_deaths.whole, 2),
    (rank_deaths.backward, 2),
    (rank_deaths.allreduce, 2),
    (rank_deaths.saving, 2),
    (rank_deaths.resumed, 2),
    (rank_deaths.resumed_alone, 1),
)


def _rank(scene: Scene, me: Rank) -> None:
    name = f"{scene.__name__}-{me.world}-{me.rank}"
    os.environ |= {"LOCAL_RANK": str(me.rank), "RANK": str(me.rank), "WORLD_SIZE": str(me.world)}
    with (me.folder / f"{name}.log").open("w") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    code, said = 0, dict[str, Any]()
    try:
        meeting = f"file://{me.folder}/meeting-{scene.__name__}-{me.world}"
        deadline = timedelta(seconds=COLLECTIVE_S)
        dist.init_process_group(
            "gloo", init_method=meeting, rank=me.rank, world_size=me.world, timeout=deadline
        )
        said = scene(me)
        dist.barrier()
    except BaseException as error:
        traceback.print_exc()
        code, said = 3, {"error": f"{type(error).__name__}: {error}"}
    (me.folder / f"{name}.json").write_text(json.dumps(said))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def run(scene: Scene, world: int, folder: Path, model: str) -> dict[str, Any]:
    """Fork the ranks; kill rank 1 at its mark, if the scene has one."""
    pids = []
    for rank in range(world):
        if not (pid := os.fork()):
            _rank(scene, Rank(rank, world, folder, model))
        pids.append(pid)
    until, mark, died = time.monotonic() + SCENE_S, folder / f"mark-{scene.__name__}", 0.0
    codes: dict[int, int] = {}
    while len(codes) < world:
        for rank, pid in enumerate(pids):
            if rank not in codes and (status := os.waitpid(pid, os.WNOHANG))[0]:
                codes[rank] = os.waitstatus_to_exitcode(status[1])
        if mark.exists() and not died:
            os.kill(pids[1], signal.SIGKILL)
            died = time.monotonic()
            (folder / f"go-{scene.__name__}").touch()
        if time.monotonic() > until:
            for rank in set(range(world)) - set(codes):
                os.kill(pids[rank], signal.SIGKILL)
                codes[rank] = os.waitstatus_to_exitcode(os.waitpid(pids[rank], 0)[1]) * 100
        time.sleep(0.01)
    newest = checkpoints.newest_verified(folder / "killed")
    return {
        "codes": [codes[rank] for rank in range(world)],
        "seconds_after_death": time.monotonic() - died if died else None,
        "mark": mark.read_text() if died else None,
        "newest": newest.step if newest is not None else None,
    }


def main() -> None:
    torch.set_num_threads(1)
    spec: dict[str, Any] = json.loads(Path(sys.argv[1]).read_text())
    folder = Path(spec["folder"])
    for scene, world in ALL:
        if scene is rank_deaths.resumed:
            shutil.copytree(folder / "killed", folder / "copied")
        result = run(scene, world, folder, spec["model"])
        (folder / f"{scene.__name__}-{world}.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main()
