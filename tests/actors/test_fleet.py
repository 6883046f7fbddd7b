"""The fleet's protocol: a real publisher, and generators that only say whether they proved a version."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from actors.fleet import Fleet, UnprovedVersion
from actors.weights import Publisher
from pipelines.journal import Journal, read_lines
from pipelines.loop import RunFailed
from pipelines.types import Proof, WeightVersion


@dataclass
class Generator:
    name: str
    unproved: int = -1  # the version whose elements it cannot prove
    slow: int = -1  # the version that it never finishes
    adopted: list[int] = field(default_factory=list)
    references: list[tuple[int, str]] = field(default_factory=list)  # version before it, weights

    async def adopt_reference(self, weights: str) -> None:
        self.references.append((self.adopted[-1], weights))

    async def adopt(self, version: WeightVersion, tensors: Any) -> Proof:
        assert tensors == {}
        if version.number == self.slow:
            await asyncio.Event().wait()
        self.adopted.append(version.number)
        return Proof(
            version=version.number,
            generator=self.name,
            bytes_received="proved",
            elements_loaded="failed" if version.number == self.unproved else "proved",
            canary_change="proved",
            caches_fresh="proved",
            detail={"elements": {"missing": ["lm_head.weight"]}} if version.number == self.unproved else {},
            seconds=0.25,
        )


def version(number: int) -> WeightVersion:
    return WeightVersion(attempt=1, number=number, step=number, stream="policy", manifest={}, canary=(0.0,))


def scenario(
    generators: list[Generator], path: Path, act: Callable[[Fleet, Publisher], Awaitable[None]]
) -> list[dict[str, Any]]:
    """Let a fleet follow a publisher while `act` happens; the lines of its journal."""

    async def main() -> None:
        publisher, journal = Publisher(attempt=1), Journal(path)
        fleet = Fleet(generators, publisher, journal, timeout_s=5)
        following = asyncio.create_task(fleet.follow())
        acting = asyncio.ensure_future(act(fleet, publisher))
        try:
            await asyncio.wait({following, acting}, return_when=asyncio.FIRST_COMPLETED)
            (following if following.done() else acting).result()
        finally:
            for task in (following, acting):
                task.cancel()
            await asyncio.gather(following, acting, return_exceptions=True)
            journal.close()

    asyncio.run(asyncio.wait_for(main(), 20))
    return list(read_lines(path))


def test_every_generator_adopts_every_version_in_order_and_the_proofs_are_written(tmp_path: Path) -> None:
    generators = [Generator("generator-0"), Generator("generator-1")]

    async def act(fleet: Fleet, publisher: Publisher) -> None:
        assert fleet.versions() == {}  # nothing is proved, so nobody may sample
        for number in range(3):
            await publisher.publish(version(number), {})
        await fleet.reached(2, 5)
        assert fleet.versions() == {0: 2, 1: 2}

    lines = scenario(generators, tmp_path / "events.jsonl", act)

    assert [generator.adopted for generator in generators] == [[0, 1, 2], [0, 1, 2]]
    told = sorted((line["generator"], line["version"]) for line in lines)
    assert told == [(name, number) for name in ("generator-0", "generator-1") for number in range(3)]
    assert all(line["event"] == "proof" and line["holds"] and line["seconds"] == 0.25 for line in lines)


def test_a_version_that_is_not_proved_names_its_parts_and_never_serves(tmp_path: Path) -> None:
    generators = [Generator("generator-0", unproved=1)]
    served: list[dict[int, int]] = []

    async def act(fleet: Fleet, publisher: Publisher) -> None:
        for number in range(2):
            await publisher.publish(version(number), {})
        await fleet.reached(0, 5)
        while True:
            served.append(fleet.versions())
            await asyncio.sleep(0.001)

    path = tmp_path / "events.jsonl"
    with pytest.raises(UnprovedVersion) as raised:
        scenario(generators, path, act)

    said = str(raised.value)
    assert "generator-0 could not prove weight version 1" in said
    assert "elements loaded failed" in said and "bytes received proved" in said and "lm_head.weight" in said
    assert all(versions == {0: 0} for versions in served)
    assert [json.loads(line)["holds"] for line in path.read_text().splitlines()] == [True, False]


def test_waiting_for_a_version_names_who_is_behind(tmp_path: Path) -> None:
    generators = [Generator("generator-0"), Generator("generator-1", slow=1)]

    async def act(fleet: Fleet, publisher: Publisher) -> None:
        await publisher.publish(version(0), {})
        await publisher.publish(version(1), {})
        await fleet.reached(0, 5)
        with pytest.raises(RunFailed, match=r"generators \[1\] did not reach weight version 1 in 0\.2 s"):
            await fleet.reached(1, 0.2)

    lines = scenario(generators, tmp_path / "events.jsonl", act)

    assert ("generator-1", 1) not in [(line["generator"], line["version"]) for line in lines]


def test_a_moved_reference_is_brought_once_and_before_its_version_serves(tmp_path: Path) -> None:
    generator = Generator("generator-0")
    seen: list[tuple[dict[int, int], int]] = []

    async def act(fleet: Fleet, publisher: Publisher) -> None:
        with pytest.raises(ValueError, match="reference of attempt 2 refused"):
            await publisher.refer(2, {})
        for number, reference in enumerate((None, "first", None, "second")):
            if reference is not None:
                await publisher.refer(1, reference)
            await publisher.publish(version(number), {})
            await fleet.reached(number, 5)
            seen.append((fleet.versions(), len(generator.references)))

    scenario([generator], tmp_path / "events.jsonl", act)
    assert generator.references == [(1, "first"), (3, "second")]
    assert seen == [({0: 0}, 0), ({0: 1}, 1), ({0: 2}, 1), ({0: 3}, 2)]
