"""The protocol of a change-over with an engine that only remembers what it loaded."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Mapping
from typing import Any

import pytest

from serving.replicas import swap
from serving.replicas.swap import Closed, Quarantined, Swapper
from serving.wire import Version

OLD, NEW = (Version(id=f"v-{name}", path=f"/{name}", digest=name) for name in ("old", "new"))


class Engine:
    """Fails to verify or to load what it is told to; `loads` counts down the failures of a version."""

    def __init__(self) -> None:
        self.bad_files: set[str] = set()
        self.loads: dict[str, int] = {}
        self.loaded: list[str] = []
        self.at_load: list[int] = []  # requests in flight when weights were touched
        self.swapper: Swapper | None = None

    async def verify(self, version: Version) -> None:
        if version.id in self.bad_files:
            raise RuntimeError("its SHA-256 differs")

    async def adopt(self, version: Version) -> Mapping[str, Any]:
        if self.swapper is not None:
            self.at_load.append(self.swapper.gate.in_flight)
        await asyncio.sleep(0.01)
        self.loaded.append(version.id)
        if self.loads.get(version.id, 0) > 0:
            self.loads[version.id] -= 1
            raise RuntimeError("an element was not loaded")
        return {"of": version.id}


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


async def begun(engine: Engine, **more: Any) -> Swapper:
    swapper = Swapper(engine, replica="r", slot="stable", **more)
    engine.swapper = swapper
    await swapper.begin(OLD)
    return swapper


async def request(swapper: Swapper, pieces: int) -> set[str]:
    """The versions that it saw from its first to its last byte."""
    seen = set()
    async with swapper.gate.passing():
        for _ in range(pieces):
            assert swapper.version is not None
            seen.add(swapper.version.id)
            await asyncio.sleep(0.002)
    return seen


def run(story: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(story, 20))


def test_requests_during_a_change_over_see_one_version_each_and_none_fails() -> None:
    async def story() -> None:
        engine = Engine()
        swapper = await begun(engine)
        early = [asyncio.create_task(request(swapper, pieces)) for pieces in range(1, 9)]
        await asyncio.sleep(0)
        change = asyncio.create_task(swapper.swap(NEW))
        await asyncio.sleep(0.003)
        assert swapper.standing.state == "swapping"
        late = [asyncio.create_task(request(swapper, 3)) for _ in range(8)]

        standing = await change
        assert (standing.version, standing.state) == (NEW.id, "serving")
        assert await asyncio.gather(*early) == [{OLD.id}] * 8
        assert await asyncio.gather(*late) == [{NEW.id}] * 8
        assert engine.at_load == [0, 0]  # never with a request in the engine
        assert swapper.proof == {"of": NEW.id}

    run(story())


def test_the_standing_says_how_long_the_gate_was_closed() -> None:
    async def story() -> None:
        engine, clock = Engine(), Clock()
        swapper = await begun(engine, clock=clock)
        assert swapper.standing.closed_s == 0

        async def slow(version: Version) -> Mapping[str, Any]:
            clock.now += 3.0
            return {}

        engine.adopt = slow  # type: ignore[method-assign]
        clock.now = 10.0
        assert (await swapper.swap(NEW)).closed_s == 3.0
        clock.now = 20.0
        assert swapper.standing.closed_s == 3.0

    run(story())


def test_a_failed_load_puts_the_old_version_back_and_is_not_tried_again_at_once() -> None:
    async def story() -> None:
        engine, clock = Engine(), Clock()
        engine.loads = {NEW.id: 1}
        swapper = await begun(engine, clock=clock)

        standing = await swapper.swap(NEW)
        assert (standing.version, standing.state) == (OLD.id, "serving")
        assert "an element was not loaded" in standing.detail
        assert engine.loaded == [OLD.id, NEW.id, OLD.id]
        assert await request(swapper, 1) == {OLD.id}

        assert (await swapper.swap(NEW)).version == OLD.id
        assert len(engine.loaded) == 3 and swapper.standing.refused == (NEW.id,)
        clock.now += swap.RETRY_S
        assert swapper.standing.refused == ()
        standing = await swapper.swap(NEW)
        assert (standing.version, standing.detail) == (NEW.id, "")

    run(story())


def test_files_that_do_not_verify_never_close_the_gate() -> None:
    async def story() -> None:
        engine = Engine()
        swapper = await begun(engine)
        engine.bad_files = {NEW.id}
        standing = await swapper.swap(NEW)
        assert (standing.version, standing.state) == (OLD.id, "serving")
        assert "SHA-256" in standing.detail
        assert engine.loaded == [OLD.id]

    run(story())


def test_when_neither_version_is_proved_the_replica_is_quarantined() -> None:
    async def story() -> None:
        engine = Engine()
        swapper = await begun(engine)
        engine.loads = {NEW.id: 1, OLD.id: 1}
        change = asyncio.create_task(swapper.swap(NEW))
        await asyncio.sleep(0.002)
        waiting = asyncio.create_task(request(swapper, 1))

        assert (await change).state == "quarantined"
        with pytest.raises(Closed):
            await waiting
        with pytest.raises(Closed):
            await request(swapper, 1)
        with pytest.raises(Quarantined, match="neither"):
            swapper.require_sound()
        assert (await swapper.swap(OLD)).state == "quarantined"

    run(story())


def test_a_request_that_does_not_end_keeps_the_old_version() -> None:
    async def story() -> None:
        engine = Engine()
        swapper = await begun(engine, drain_s=0.02)
        endless = asyncio.create_task(request(swapper, 200))
        await asyncio.sleep(0)
        standing = await swapper.swap(NEW)
        assert (standing.version, standing.state) == (OLD.id, "serving")
        assert "did not end" in standing.detail
        assert engine.loaded == [OLD.id]
        assert await request(swapper, 1) == {OLD.id}
        assert await endless == {OLD.id}

    run(story())


@pytest.mark.parametrize(("wait_s", "state"), [(0.002, "serving"), (0.2, "quarantined")])
def test_a_cancelled_change_over_serves_only_known_weights(wait_s: float, state: str) -> None:
    """Cancelled while it drains nothing has been loaded yet; while it loads, no one knows what was."""

    async def story() -> None:
        engine = Engine()
        swapper = await begun(engine)
        busy = asyncio.create_task(request(swapper, 20))  # some 40 ms
        await asyncio.sleep(0)
        loading = asyncio.Event()

        async def stuck(version: Version) -> Mapping[str, Any]:
            loading.set()
            await asyncio.Event().wait()
            return {}

        engine.adopt = stuck  # type: ignore[method-assign]
        change = asyncio.create_task(swapper.swap(NEW))
        await (asyncio.sleep(wait_s) if state == "serving" else loading.wait())
        change.cancel()
        with pytest.raises(asyncio.CancelledError):
            await change
        assert swapper.standing.state == state
        assert await busy == {OLD.id}

    run(story())


def test_a_closed_gate_refuses_after_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    async def story() -> None:
        monkeypatch.setattr(swap, "WAIT_S", 0.01)
        swapper = Swapper(Engine(), replica="r", slot="stable")
        with pytest.raises(Closed):
            await request(swapper, 1)
        assert swapper.gate.in_flight == 0

    run(story())
