"""The real lane: vLLM on CPU with the world's own checkpoint, and another one made from it.

Mixed weights show in the text: greedy answers of both versions to the same pictures are recorded first, with
others under way, and every later answer must be one of its version's.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import math
import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray

from benchmarks.serving.chaos.checks import Spelled
from benchmarks.serving.chaos.faults import Faults
from benchmarks.serving.chaos.lane import REPLICAS, Lane, play
from benchmarks.serving.chaos.load import Load, Request
from benchmarks.serving.chaos.protocol import damage
from benchmarks.serving.chaos.watch import Watch, settled
from benchmarks.serving.questions import describe
from pipelines.worlds.glyphs import BASE_MODEL, Glyphs
from serving.app import running
from serving.registry.registry import Entry, Registry
from serving.replicas.conductor import NAME, NAMESPACE
from serving.served import find
from serving.settings import Settings

MODEL = "glyphs"
PICTURES = 6
TOKENS = 24
NOISE = 0.05  # standard deviation; enough that greedy answers differ
SHARE = 0.3  # of the measured capacity
COLD_STARTS = 3  # between two kills
MEASURE_S = 10.0
AT_ONCE = 8
PATIENCE_S = 300.0

Ask = Callable[[int], dict[str, Any]]
#: (picture, version) -> the greedy answers that were seen.
Goldens = dict[tuple[int, str], set[str]]


def perturbed(folder: Path, noise: float, seed: int) -> Path:
    """The world's checkpoint with every weight moved a little."""
    import torch
    from safetensors.torch import load_file, save_file

    shutil.copytree(BASE_MODEL, folder)
    generator = torch.Generator().manual_seed(seed)
    tensors = load_file(folder / "model.safetensors")
    moved = {
        name: value + noise * torch.randn(value.shape, generator=generator) for name, value in tensors.items()
    }
    save_file(moved, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def run(given: argparse.Namespace) -> dict[str, Any]:
    """The lane's result."""
    logging.getLogger("httpx").setLevel(logging.WARNING)  # ray.llm shows a line per request otherwise
    registry = Registry(given.out / "registry")
    first = registry.register(Path(BASE_MODEL))
    second = registry.register(perturbed(given.out / "second", NOISE, 0))
    damaged = registry.register(perturbed(given.out / "damaged", NOISE, 1))
    damage(damaged)
    registry.promote(first.id, why="the first version served", against=None)
    settings = Settings.model_validate(
        {"port": given.port, "registry": str(registry.folder), "replicas": {"fewest": REPLICAS}}
    )
    with running(find(None, settings, MODEL), settings) as server:
        ask = _asker()
        goldens = _recorded(server.origin, ask, registry, (first, second))
        capacity = len(_saturated(server.origin, ask)) / MEASURE_S
        cold_s = _cold_start(registry, (first, second), damaged, given.seed)
        lane = Lane(
            name="real",
            engine=f"vLLM on CPU; capacity {capacity:.1f} requests/s, cold start {cold_s:.0f} s",
            model=MODEL,
            rate=round(SHARE * capacity, 2),
            kill_every=COLD_STARTS * cold_s,
            swap_every=given.swap_every,
            body=ask,
            spell=lambda number, text: _spelled(goldens, number % PICTURES, text),
        )
        return play(lane, server.origin, registry, (first, second), damaged, given)


def _asker() -> Ask:
    world = Glyphs()
    bodies = [_body(world.image(row)) for row in world.rows("heldout", PICTURES, 0, "caption")]
    return lambda number: bodies[number % PICTURES]


def _body(pixels: Any) -> dict[str, Any]:
    message = {"role": "user", "content": describe(pixels)}
    return {"model": MODEL, "messages": [message], "max_tokens": TOKENS, "temperature": 0}


def _spelled(goldens: Goldens, picture: int, text: str) -> Spelled:
    found = {version for (known, version), texts in goldens.items() if known == picture and text in texts}
    return Spelled(versions=frozenset(found or {"no version"}))


def _recorded(url: str, ask: Ask, registry: Registry, versions: tuple[Entry, Entry]) -> Goldens:
    """What each version answers. Raises RuntimeError where two versions answer the same."""
    goldens: Goldens = {}
    for version in (versions[1], versions[0]):  # so that the first is promoted again at the end
        promoted = registry.promoted()
        assert promoted is not None
        registry.promote(version.id, why="recorded", against=promoted.id)
        _await(version.id)
        for request in _saturated(url, ask):
            answer = request.tries[-1]
            if answer.versions != (version.id,):
                raise RuntimeError(f"{version.id} was to be recorded, got {answer}")
            goldens.setdefault((request.number % PICTURES, version.id), set()).add(answer.text)
    for picture in range(PICTURES):
        if goldens[picture, versions[0].id] & goldens[picture, versions[1].id]:
            raise RuntimeError(
                f"both versions answer picture {picture} alike; the lane could not tell them apart"
            )
    return goldens


def _await(version: str) -> None:
    with Watch(ray.get_actor(NAME, namespace=NAMESPACE)) as watch:
        until = time.monotonic() + PATIENCE_S
        while settled(watch.looks, 0.0, version, {}, REPLICAS) is None:
            if time.monotonic() > until:
                raise RuntimeError(f"{version} did not reach {REPLICAS} replicas within {PATIENCE_S:.0f} s")
            time.sleep(0.2)


def _saturated(url: str, ask: Ask) -> list[Request]:
    """What AT_ONCE clients get that each ask again once they are answered: all that the replicas can do."""
    load = Load(url, rate=math.inf, body=ask, at_once=AT_ONCE)
    asyncio.run(load.saturate(MEASURE_S))
    return load.requests


def _cold_start(registry: Registry, versions: tuple[Entry, Entry], damaged: Entry, seed: int) -> float:
    """Seconds from the kill of a replica until another one serves in its place."""
    with Watch(ray.get_actor(NAME, namespace=NAMESPACE)) as watch:
        time.sleep(1.0)
        victims = f"ServeReplica:plumbline:{MODEL}--stable"
        faults = Faults(registry, versions, damaged, victims, REPLICAS, watch, random.Random(seed))
        faults.kill(victims)
        until = time.monotonic() + PATIENCE_S
        while (took := faults.recoveries()[0]) is None:
            if time.monotonic() > until:
                raise RuntimeError(f"no replica came back within {PATIENCE_S:.0f} s")
            time.sleep(0.5)
    return took
