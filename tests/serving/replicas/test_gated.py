"""A replica around an engine that only remembers: which version it starts with, what its answers carry."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from actors.checkpoints import BadCheckpoint
from serving.replicas import follower
from serving.replicas.gated import CHANGING, Gated
from serving.replicas.integrity import version_of
from serving.wire import Answer, Kind, Refusal, Standing, Version

Committed = Callable[..., Path]


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follower, "ASK_S", 0.001)


@pytest.fixture
def versions(tmp_path: Path, commit_checkpoint: Committed) -> tuple[Version, Version]:
    old, new = (version_of(commit_checkpoint(tmp_path, step, float(step))) for step in (1, 2))
    return old, new


def damaged(version: Version) -> Version:
    (Path(version.path) / "model.safetensors").write_bytes(b"something else")
    return version


class Engine:
    def __init__(self) -> None:
        self.loaded: list[str] = []

    async def verify(self, version: Version) -> None: ...

    async def adopt(self, version: Version) -> Mapping[str, Any]:
        self.loaded.append(version.id)
        return {}


class Replica(Gated):
    """`tell`: what the conductor says to a standing."""

    def __init__(self, tell: Callable[[Standing], Version | None]) -> None:
        self._introduce("m", "stable")
        self.tell, self.engine, self.asked = tell, Engine(), list[Standing]()
        self.items: list[dict[str, Any] | Refusal] = [{"n": 1}, {"n": 2}]
        self.closed = False

    async def start(self, given: Version | None = None) -> Version:
        first = await self._first(given)
        await self._begin(self.engine, first, follow=given is None)
        return first

    async def _wanted(self, standing: Standing) -> Version | None:
        self.asked.append(standing)
        return self.tell(standing)

    async def _asked(
        self, kind: Kind, body: dict[str, Any], request_id: str
    ) -> AsyncGenerator[dict[str, Any] | Refusal, None]:
        try:
            for item in self.items:
                yield item
        finally:
            self.closed = True


def run(story: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(story, 20))


def test_what_is_promoted_while_a_replica_starts_is_what_it_serves(versions: tuple[Version, Version]) -> None:
    old, new = versions

    async def story() -> None:
        replica = Replica(lambda _: old if not replica.asked[1:] else new)
        assert await replica.start() == old
        assert (await replica.standing()).version == new.id and replica.engine.loaded == [old.id, new.id]

    run(story())


def test_where_the_promoted_files_are_damaged_it_starts_with_those_before(
    versions: tuple[Version, Version],
) -> None:
    old, new = versions[0], damaged(versions[1])

    async def story() -> None:
        replica = Replica(lambda standing: old if new.id in standing.refused else new)
        assert await replica.start() == old
        assert (await replica.standing()).version == old.id and replica.engine.loaded == [old.id]
        assert replica.asked[1].refused == (new.id,) and replica.asked[1].version is None

    run(story())


def test_where_everything_is_damaged_it_does_not_start(versions: tuple[Version, Version]) -> None:
    old, new = map(damaged, versions)

    async def story() -> None:
        replica = Replica(lambda standing: new if new.id not in standing.refused else old)
        with pytest.raises(BadCheckpoint):
            await replica.start()
        with pytest.raises(BadCheckpoint):
            await Replica(lambda _: None).start(new)  # the one that it was given
        assert replica.engine.loaded == []

    run(story())


def test_a_manifest_that_was_exchanged_is_refused(versions: tuple[Version, Version]) -> None:
    with pytest.raises(BadCheckpoint, match="not the one that was registered"):
        run(Replica(lambda _: None).start(replace(versions[0], digest="0" * 64)))  # type: ignore[arg-type]


def test_every_item_of_an_answer_names_the_version(versions: tuple[Version, Version]) -> None:
    async def story() -> None:
        replica = Replica(lambda _: None)
        await replica.start(versions[0])
        items = [item async for item in replica.answer("chat", {}, "r")]
        assert items == [Answer(version=versions[0].id, replica="local", body={"n": n}) for n in (1, 2)]
        assert (await replica.standing()).in_flight == 0

    run(story())


def test_items_that_come_at_once_are_one_list_for_the_gateway(versions: tuple[Version, Version]) -> None:
    async def story() -> None:
        replica = Replica(lambda _: None)
        await replica.start(versions[0])
        lists = [some async for some in replica.answers("chat", {}, "r")]
        alone = [item async for item in replica.answer("chat", {}, "r")]
        assert [item for some in lists for item in some] == alone
        assert len(lists) < 3

    run(story())


def test_a_refusal_of_the_engine_ends_the_answer(versions: tuple[Version, Version]) -> None:
    refusal = Refusal(status=400, code="no", message="no")

    async def story() -> None:
        replica = Replica(lambda _: None)
        replica.items = [refusal, {"n": 2}]
        await replica.start(versions[0])
        assert [item async for item in replica.answer("chat", {}, "r")] == [refusal]
        assert replica.closed

    run(story())


def test_a_client_that_goes_ends_the_request_in_the_engine_and_leaves_the_gate(
    versions: tuple[Version, Version],
) -> None:
    async def story() -> None:
        replica = Replica(lambda _: None)
        await replica.start(versions[0])
        answers = replica.answer("chat", {}, "r")
        await anext(answers)
        assert (await replica.standing()).in_flight == 1 and not replica.closed
        await answers.aclose()
        assert (await replica.standing()).in_flight == 0 and replica.closed

    run(story())


def test_behind_a_gate_that_stays_closed_clients_are_told_to_come_back(
    versions: tuple[Version, Version],
) -> None:
    async def story() -> None:
        replica = Replica(lambda _: None)
        await replica.start(versions[0])
        replica._sound.gate.close_for_good()
        assert [item async for item in replica.answer("chat", {}, "r")] == [CHANGING]

    run(story())
