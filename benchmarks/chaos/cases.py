"""The protocol runs: their sizes, deadlines and bad inputs. Everything is small, so that much happens in a
minute: a step takes about a quarter of a second and every second one is committed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.chaos.driver import Case
from benchmarks.chaos.light import World

SETTINGS: dict[str, Any] = {
    "name": "chaos",
    "reward": "random",
    "data": {"source": "rows.jsonl"},  # never opened: light prompts are numbers
    "rollout": {
        "generators": 3,
        "scorers": 2,
        "perturbers": 1,
        "max_tokens": 6,
        "max_tries": 5,  # at a kill every second three would convict the innocent
        "engine": {"timeout_s": 5, "start_timeout_s": 30},
    },
    "learner": {
        "steps": 1_000_000,  # the data ends first
        "groups_per_step": 4,
        "workers": 2,
        "collective_timeout_s": 10,
        "progress_timeout_s": 10,
        "start_timeout_s": 30,
    },
    "sync": {"max_lag": 4},
    "checkpoint": {"every": 2, "keep": 3},
    "recovery": {"max_restarts": 12, "deadline_s": 50},
    "evaluation": {"scenes": 0, "questions": 0},
    "stop_grace_s": 10,
}


def light_case(run_dir: Path, seed: int, *, settings: dict[str, Any] | None = None, **world: Any) -> Case:
    """A run of light workers that goes on until it is told that the data ends."""
    prompts = world.pop("prompts", 1_000_000)
    return Case(
        world=World(run_dir=run_dir, prompts=prompts, **world),
        settings=SETTINGS | {"seed": seed} | (settings or {}),
    )
