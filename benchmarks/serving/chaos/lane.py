"""One lane: the load in front, the schedule behind, and what both amount to."""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray

from benchmarks.serving.chaos import report
from benchmarks.serving.chaos.checks import Spell
from benchmarks.serving.chaos.faults import Faults
from benchmarks.serving.chaos.load import Load
from benchmarks.serving.chaos.schedule import schedule
from benchmarks.serving.chaos.watch import Watch, closed, refusing
from serving.registry.registry import Entry, Registry
from serving.replicas.conductor import NAME, NAMESPACE

REPLICAS = 2
GATEWAY, PROXY = "ServeReplica:plumbline:gateway", "ProxyActor"
CALM_S = 60.0
INGRESS_S = 40.0  # of load around a kill of what is in front
INGRESS_AT_S = 5.0


@dataclass(frozen=True, kw_only=True)
class Lane:
    """What differs between the lanes.

    `body`, `spell`: the n-th question, and what the text of its answer shows.
    """

    name: str
    engine: str
    model: str
    rate: float
    kill_every: float
    swap_every: float
    body: Callable[[int], dict[str, Any]]
    spell: Spell


def play(
    lane: Lane,
    url: str,
    registry: Registry,
    versions: tuple[Entry, Entry],
    damaged: Entry,
    given: argparse.Namespace,
) -> dict[str, Any]:
    """The whole lane against a server that is up."""
    conductor = ray.get_actor(NAME, namespace=NAMESPACE)
    with Watch(conductor) as watch:
        faults = Faults(
            registry=registry,
            versions=versions,
            damaged=damaged,
            victims=f"ServeReplica:plumbline:{lane.model}--stable",
            replicas=REPLICAS,
            watch=watch,
            chance=random.Random(given.seed),
        )
        faults.tenures.promoted(versions[0].id, time.monotonic())
        load = Load(url, lane.rate, lane.body)
        acts = schedule(given.seconds, lane.kill_every, lane.swap_every)
        asyncio.run(_both(load, faults, given.seconds, acts))
        _calm(faults)
        ingress = (
            {} if given.no_ingress else {name: _ingress(url, lane, faults, name) for name in (GATEWAY, PROXY)}
        )
    return _result(lane, load, faults, given, len(acts), ingress)


async def _both(load: Load, faults: Faults, seconds: float, acts: list[Any]) -> None:
    work = asyncio.create_task(asyncio.to_thread(faults.play, acts, time.monotonic()))
    await load.run(seconds)
    await work


def _calm(faults: Faults) -> None:
    """Wait until the last promotion has arrived and the last dead replica is replaced."""
    until = time.monotonic() + CALM_S
    while time.monotonic() < until and None in (*faults.arrivals()[-1:], *faults.recoveries()[-1:]):
        time.sleep(1.0)


def _ingress(url: str, lane: Lane, faults: Faults, name: str) -> dict[str, Any]:
    """There is one gateway and one proxy: how long nobody answers when one dies, and what clients see."""
    load = Load(url, lane.rate, lane.body)

    async def story() -> None:
        work = asyncio.create_task(load.run(INGRESS_S))
        await asyncio.sleep(INGRESS_AT_S)
        await asyncio.to_thread(faults.kill, name)
        await work

    before = len(faults.kills)
    asyncio.run(story())
    if len(faults.kills) == before:  # told among the problems
        return {}
    kill = faults.kills.pop()
    bad = [attempt for request in load.requests for attempt in request.tries if not attempt.good]
    last = max((attempt.began for attempt in bad), default=kill.at)
    return {
        "requests": len(load.requests),
        "failed first tries": sum(not request.tries[0].good for request in load.requests),
        "never answered": sum(not request.tries[-1].good for request in load.requests),
        "seconds until all was answered again": round(last - kill.at, 1),
        "codes": sorted({f"{attempt.status} {attempt.code}" for attempt in bad}),
    }


def _result(
    lane: Lane, load: Load, faults: Faults, given: argparse.Namespace, acts: int, ingress: dict[str, Any]
) -> dict[str, Any]:
    windows = faults.windows()
    found = report.count(load.requests, windows, lane.spell, faults.tenures)
    kills = [kill for kill in faults.kills if kill.role == faults.victims]
    refused = refusing(faults.watch.looks, faults.damaged.id)
    problems = [*faults.problems, *_unfinished(faults)]
    if any(swap.version == faults.damaged.id for swap in faults.swaps) and len(refused) < REPLICAS:
        problems.append(f"damaged files were refused by {len(refused)} replicas only")
    numbers = {
        "seconds": given.seconds,
        "requests": found.requests,
        "rate (requests/s)": lane.rate,
        "streams": found.streams,
        "sent late by the client": found.late,
        "latency of good first tries (s)": report.latency(load.requests),
        "first-try success": round(found.first_tries / max(1, found.requests), 5),
        "success with two retries": round(found.answered / max(1, found.requests), 5),
        "failed first tries by cause": {
            name: found.failures.get(name, 0) for name in ("kill", "swap", "other")
        },
        "answers of mixed weights": found.wrong.get("mixed", 0),
        "answers of a wrong version": found.wrong.get("wrong version", 0),
        "answers cut short under status 200": found.wrong.get("lost", 0),
        "replicas killed": len(kills),
        "of them while they changed over": sum(kill.state == "swapping" for kill in kills),
        "conductors killed": sum(kill.role == "Conductor" for kill in faults.kills),
        "recovery after a kill (s)": report.quantiles(faults.recoveries()),
        "swaps": sum(swap.version != faults.damaged.id for swap in faults.swaps),
        "of them rollbacks": sum(swap.act == "roll back" for swap in faults.swaps),
        "swaps without a kill": found.clean_swaps,
        "requests during those": found.in_clean_swaps,
        "from promotion to all replicas (s)": report.quantiles(faults.arrivals()),
        "gate of a replica closed (s)": report.quantiles(closed(faults.watch.looks)),
        "replicas that refused damaged files": len(refused),
        **{f"ingress killed: {name.rpartition(':')[2]}": value for name, value in ingress.items()},
    }
    return {
        "lane": lane.name,
        "engine": lane.engine,
        "numbers": numbers,
        "codes": dict(found.codes),
        "kills": [dataclasses.asdict(kill) for kill in faults.kills],
        "swaps": [dataclasses.asdict(swap) for swap in faults.swaps],
        "examples": list(found.examples),
        "seed": given.seed,
        "missed": report.missed(found, problems),
    }


def _unfinished(faults: Faults) -> list[str]:
    late = faults.late()
    gone = sum(took is None for took in faults.recoveries())
    found = [f"{late} promotions did not reach every replica before the next one"] if late else []
    return [*found, f"{gone} kills were never recovered from"] if gone else found


def publish(result: dict[str, Any], file: Path | None) -> int:
    """Print the table, write the JSON; the exit status."""
    print(report.table(result), flush=True)
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(result, indent=1) + "\n")
    return 1 if result["missed"] else 0
