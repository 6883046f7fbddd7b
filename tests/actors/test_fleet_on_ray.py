"""The fleet with real processes: killed, stopped and continued, drained, promoted, and that cannot start."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.exceptions import RayActorError

from actors.fleet import Fleet
from actors.nodes import Needs, Nodes
from actors.placement import start_on_loopback
from actors.weights import Publisher
from pipelines import control
from pipelines.journal import Journal, read_lines
from pipelines.loop import RoleFailed, RunFailed
from pipelines.scaling import Bounds, Sizes
from tests.actors.fleet_actors import RayWorld
from tests.actors.fleet_world import sizes, until, version

ROOT = str(Path(__file__).parents[2])
TWO = Bounds(low=2, start=2)


@pytest.fixture(scope="module", autouse=True)
def light_ray() -> Iterator[None]:
    start_on_loopback(
        num_cpus=2,
        object_store_memory=100 * 1024**2,
        log_to_driver=False,
        runtime_env={"env_vars": {"PYTHONPATH": ROOT}},
    )
    yield
    ray.shutdown()


@dataclass
class Scene:
    fleet: Fleet
    world: RayWorld
    publisher: Any
    folder: Path

    def pid(self, index: int, role: str = "generator") -> int:
        [member] = [m for m in self._members(role) if m["index"] == index]
        return member["pid"]

    def states(self, role: str = "generator") -> dict[int, str]:
        return {member["index"]: member["state"] for member in self._members(role)}

    def events(self, **fields: Any) -> list[dict[str, Any]]:
        lines = [line for line in read_lines(self.folder / "events.jsonl") if line["event"] == "member"]
        return [line for line in lines if fields.items() <= line.items()]

    def _members(self, role: str) -> list[dict[str, Any]]:
        return [member for member in self.fleet.report()["members"] if member["role"] == role]


def play(
    folder: Path,
    act: Callable[[Scene], Awaitable[None]],
    *,
    world: RayWorld | None = None,
    wanted: Sizes | None = None,
    needs: Needs | None = None,
) -> Scene:
    async def main() -> Scene:
        journal, makers = Journal(folder / "events.jsonl"), world or RayWorld()
        fleet = Fleet(
            makers,
            wanted or sizes(),
            journal,
            health_timeout_s=3,
            progress_timeout_s=60,
            start_timeout_s=60,
            adopt_timeout_s=60,
            folder=folder,
            needs=needs,
        )
        publisher = ray.remote(Publisher).options(num_cpus=0, max_concurrency=100).remote(1, ray.put)
        scene = Scene(fleet, makers, publisher, folder)
        work: list[asyncio.Future[Any]] = []
        try:
            await fleet.attach(publisher)
            await fleet.start()
            await publisher.publish.remote(version(0), {})
            await fleet.reached(0, 30)
            work = [asyncio.ensure_future(act(scene)), asyncio.ensure_future(fleet.supervise())]
            done, _ = await asyncio.wait(work, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in work:
                task.cancel()
            await asyncio.gather(*work, return_exceptions=True)
            await fleet.stop()
            journal.close()
            ray.kill(publisher)
        pids = {line["pid"] for line in scene.events() if line["pid"]}
        await until(lambda: not any(alive(pid) for pid in pids))  # nothing outlives the fleet
        return scene

    return asyncio.run(asyncio.wait_for(main(), 100))


def alive(pid: int) -> bool:
    return state(pid) not in ("", "Z")


def state(pid: int) -> str:
    """One letter, as in ps; "" when the process is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


def test_a_killed_member_of_any_role_is_replaced_and_its_calls_fail_at_once(tmp_path: Path) -> None:
    async def act(scene: Scene) -> None:
        victim, pid = scene.fleet.generator(0), scene.pid(0)
        under_way = asyncio.ensure_future(victim.work.remote())
        while (await victim.health.remote())["in_flight"] != 1:
            pass
        os.kill(pid, signal.SIGKILL)
        os.kill(scene.pid(0, "scorer"), signal.SIGKILL)
        with pytest.raises(RayActorError):
            await under_way
        await until(lambda: scene.fleet.versions() == {1: 0, 2: 0})
        await until(lambda: scene.states("scorer") == {1: "serving"})
        assert scene.pid(2) not in (None, pid)

    scene = play(tmp_path, act, wanted=sizes(TWO))
    [gone] = scene.events(role="generator", index=0, state="gone")
    assert "died" in gone["why"] and gone["pid"] and gone["node"]
    told = [line["state"] for line in scene.events(role="generator", index=2)]
    assert told == ["starting", "joining", "serving", "gone"]


def test_a_stopped_process_is_replaced_and_its_late_answer_never_comes(tmp_path: Path) -> None:
    async def act(scene: Scene) -> None:
        victim, pid = scene.fleet.generator(0), scene.pid(0)
        under_way = asyncio.ensure_future(victim.work.remote())
        while (await victim.health.remote())["in_flight"] != 1:
            pass
        os.kill(pid, signal.SIGSTOP)
        await until(lambda: state(pid) == "T")
        await until(lambda: scene.fleet.versions() == {1: 0})
        with pytest.raises(RayActorError):
            await under_way
        await until(lambda: not alive(pid))  # it was stopped: only SIGKILL by its number ends it at once
        with pytest.raises(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)
        assert scene.states() == {1: "serving"}

    scene = play(tmp_path, act)
    assert "did not answer within 3 s" in scene.events(role="generator", index=0, state="gone")[0]["why"]


def test_a_user_grows_and_shrinks_it_and_a_leaver_finishes_its_request(tmp_path: Path) -> None:
    async def act(scene: Scene) -> None:
        await until((tmp_path / control.STATUS).exists)
        control.write_request(tmp_path, {"generator": 3})
        await until(lambda: scene.fleet.versions() == {0: 0, 1: 0, 2: 0})
        leaver = scene.fleet.generator(2)
        answer = asyncio.ensure_future(leaver.work.remote())
        while (await leaver.health.remote())["in_flight"] != 1:
            pass
        control.write_request(tmp_path, {"generator": 1})
        await until(lambda: scene.states() == {0: "serving", 2: "draining"})
        assert scene.fleet.versions() == {0: 0}
        await leaver.go_on.remote()
        assert await answer == 0
        await until(lambda: scene.states() == {0: "serving"})
        with pytest.raises(RoleFailed, match="generator_left"):
            scene.fleet.generator(2)

    play(tmp_path, act, wanted=sizes(Bounds(low=1, start=1, high=3)))


def test_a_standby_is_promoted_and_a_lost_publisher_costs_no_generator(tmp_path: Path) -> None:
    async def act(scene: Scene) -> None:
        await until(lambda: scene.states() == {0: "serving", 1: "standby"})
        standby = scene.pid(1)
        os.kill(scene.pid(0), signal.SIGKILL)
        await until(lambda: scene.fleet.versions() == {1: 0})
        assert scene.pid(1) == standby
        ray.kill(scene.publisher)
        with pytest.raises(RoleFailed, match="publisher_died"):
            await scene.fleet.orphaned()
        fresh = ray.remote(Publisher).options(num_cpus=0, max_concurrency=100).remote(1, ray.put)
        await scene.fleet.attach(fresh)
        assert scene.fleet.versions() == {}
        await fresh.publish.remote(version(5), {})
        await scene.fleet.reached(5, 30)
        assert scene.fleet.versions() == {1: 5} and scene.pid(1) == standby

    play(tmp_path, act, wanted=sizes(standbys=1))


def test_replacements_that_cannot_start_end_the_run_by_their_cause(tmp_path: Path) -> None:
    world = RayWorld()
    world.broken = {("perturber", 1), ("perturber", 2), ("perturber", 3)}

    async def act(scene: Scene) -> None:
        os.kill(scene.pid(0, "perturber"), signal.SIGKILL)
        await asyncio.Event().wait()

    with pytest.raises(
        RunFailed, match=r"(?s)3 starts of a perturber in a row failed: perturber-1.*no such model"
    ):
        play(tmp_path, act, world=world)


def test_a_first_start_fails_at_once_by_what_the_constructor_raised(tmp_path: Path) -> None:
    world = RayWorld()
    world.broken = {("generator", 0)}

    async def act(scene: Scene) -> None:
        raise AssertionError("it has started")

    with pytest.raises(RoleFailed, match="generator-0: generator-0_not_made: ValueError: no such model"):
        play(tmp_path, act, world=world)


def test_who_finds_no_room_is_waited_for_and_room_is_asked_for(tmp_path: Path) -> None:
    world = RayWorld()
    needs = Needs(
        generator={"CPU": 1}, scorer={"CPU": 2}, perturber={"CPU": 0.5}, generator_labels={"zone": "a"}
    )

    async def act(scene: Scene) -> None:
        await until((tmp_path / control.STATUS).exists)
        world.cpus = 50.0
        control.write_request(tmp_path, {"scorer": 2})
        await until(lambda: scene.states("scorer") == {0: "serving", 1: "starting"})
        waiting = next(m for m in scene.fleet.report()["members"] if m["state"] == "starting")
        assert (waiting["pid"], waiting["node"]) == (None, None)
        control.write_request(tmp_path, {"scorer": 1})
        await until(lambda: scene.states("scorer") == {0: "serving"})

    play(tmp_path, act, world=world, needs=needs)


def test_how_full_an_object_store_is_costs_one_question(tmp_path: Path) -> None:
    nodes = Nodes()
    [(node, before)] = nodes.fullness().items()
    assert node == ray.get_runtime_context().get_node_id() and 0 <= before < 0.3
    held = ray.put(b"0" * 50_000_000)

    async def grown() -> None:
        await until(lambda: nodes.fullness()[node] > before + 0.4)

    asyncio.run(asyncio.wait_for(grown(), 20))
    del held
