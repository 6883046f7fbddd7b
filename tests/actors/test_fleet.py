"""The fleet's protocol: a real publisher, workers of this process that fail as they are told."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from actors.nodes import Needs
from actors.weights import Publisher
from pipelines import control
from pipelines.loop import RoleFailed, RunFailed
from pipelines.scaling import Bounds, Signals
from pipelines.types import Fault
from tests.actors.fleet_world import Scene, Worker, World, play, sizes, until, version

TWO = Bounds(low=2, start=2)


def test_every_generator_adopts_every_version_in_order_and_the_proofs_are_written(tmp_path: Path) -> None:
    async def act(scene: Scene) -> None:
        assert scene.fleet.versions() == {}  # nothing is proved, so nobody may sample
        await scene.publish(0)
        await scene.fleet.reached(0, 5)
        await scene.publish(1, 2)
        await scene.fleet.reached(2, 5)
        assert scene.fleet.versions() == {0: 2, 1: 2}
        assert scene.fleet.serving("generator") == {
            0: scene.world.generators[0],
            1: scene.world.generators[1],
        }
        assert set(scene.fleet.serving("scorer")) == set(scene.fleet.serving("perturber")) == {0}

    scene = play(tmp_path, act, wanted=sizes(TWO))

    assert [generator.adopted for generator in scene.world.generators] == [[0, 1, 2], [0, 1, 2]]
    told = sorted((line["generator"], line["version"]) for line in scene.events("proof"))
    assert told == [(f"generator-{index}", number) for index in range(2) for number in range(3)]
    assert all(line["holds"] and line["seconds"] == 0.25 for line in scene.events("proof"))


def test_each_change_of_state_is_an_event_that_says_where_and_why(tmp_path: Path) -> None:
    async def act(scene: Scene) -> None:
        await scene.publish(0)
        await scene.fleet.reached(0, 5)

    scene = play(tmp_path, act)
    told = scene.events(role="generator", index=0)
    assert [line["state"] for line in told] == ["starting", "joining", "serving", "gone"]
    assert (told[0]["pid"], told[0]["node"]) == (None, None)
    assert all((line["pid"], line["node"]) == (1000, "node-a") for line in told[1:])
    assert [line["why"] for line in told[2:]] == ["proved version 0", "the run ends"]
    assert [line["seconds"] for line in told] == sorted(line["seconds"] for line in told)
    assert all(w.ended == 1 for w in scene.world.made.values())
    assert scene.world.generators[0].stopped and not scene.states()


def test_a_joiner_proves_the_newest_version_and_then_follows(tmp_path: Path) -> None:
    async def act(scene: Scene) -> None:
        await scene.publish(0, 1, 2)
        await scene.fleet.reached(2, 5)
        await scene.publish(3)
        await scene.fleet.reached(3, 5)

    scene = play(tmp_path, act)
    assert scene.world.generators[0].adopted[-1] == 3
    assert scene.world.generators[0].adopted in ([0, 1, 2, 3], [1, 2, 3], [2, 3])  # as it came to ask


def _die(worker: Worker) -> None:
    worker.dead = True


def _lose_the_engine(worker: Worker) -> None:
    worker.engine = False


def _stop_answering(worker: Worker) -> None:
    worker.hangs.add("health")


def _stop_decoding(worker: Worker) -> None:
    worker.in_flight = 2


def _doubt(worker: Worker) -> None:
    worker.quarantined = "weight version 0 is not proved"


@pytest.mark.parametrize(
    ("harm", "why"),
    [
        (_die, "its process is gone"),
        (_lose_the_engine, "its engine has ended"),
        (_stop_answering, "did not answer within"),
        (_stop_decoding, "2 requests under way and no progress for 0.4 s"),
        (_doubt, "weight version 0 is not proved"),
    ],
)
def test_who_is_dead_wedged_or_in_doubt_is_killed_and_replaced(tmp_path: Path, harm: Any, why: str) -> None:
    async def act(scene: Scene) -> None:
        await scene.publish(0)
        await scene.fleet.reached(0, 5)
        harm(scene.world.generators[0])
        await until(lambda: scene.fleet.versions() == {1: 0, 2: 0})
        with pytest.raises(RoleFailed, match="generator_left"):
            scene.fleet.generator(0)
        assert scene.fleet.generator(2) is scene.world.generators[2]

    scene = play(tmp_path, act, wanted=sizes(TWO))
    [gone] = scene.events(state="gone", role="generator", index=0)
    assert why in gone["why"] and gone["pid"] == 1000
    assert scene.world.generators[0].ended == 1
    assert [worker.adopted for worker in scene.world.generators[1:]] == [[0], [0]]


@pytest.mark.parametrize("role", ["scorer", "perturber"])
def test_scorers_and_perturbers_are_replaced_as_well(tmp_path: Path, role: Any) -> None:
    async def act(scene: Scene) -> None:
        scene.world.made[role, 0].dead = True
        await until(lambda: set(scene.fleet.serving(role)) == {1})

    play(tmp_path, act)


def test_a_scorer_may_wait_for_a_whole_weight_sync(tmp_path: Path) -> None:
    async def act(scene: Scene) -> None:
        scene.world.made["scorer", 0].in_flight = 1
        scene.world.made["perturber", 0].in_flight = 1
        await until(lambda: set(scene.fleet.serving("perturber")) == {1})
        assert set(scene.fleet.serving("scorer")) == {0}

    play(tmp_path, act)


def test_slow_but_moving_work_and_adoption_are_not_taken_for_a_wedge(tmp_path: Path) -> None:
    async def act(scene: Scene) -> None:
        await scene.publish(0)
        await scene.fleet.reached(0, 5)
        slow, syncing = scene.world.generators
        slow.in_flight, slow.moves = 1, True
        syncing.hangs.add("adopt")  # it has drained: nobody is inside
        await scene.publish(1)
        since = time.monotonic()  # until it was looked at, for longer than the deadline of progress
        await until(lambda: slow.steps > 2 and time.monotonic() - since > 0.8)
        assert scene.states() == {0: "serving", 1: "serving"}

    play(tmp_path, act, wanted=sizes(TWO))


def test_who_saw_it_die_says_so_and_it_is_replaced_once(tmp_path: Path) -> None:
    async def act(scene: Scene) -> None:
        await scene.publish(0)
        await scene.fleet.reached(0, 5)
        for _ in range(3):
            scene.fleet.lost("generator", 0, "the scorer's call failed")
        assert scene.fleet.versions() == {}  # at once
        await until(lambda: scene.fleet.versions() == {1: 0})

    scene = play(tmp_path, act, health=15.0)
    assert len(scene.world.generators) == 2
    assert "the scorer's call failed" in scene.events(state="gone", index=0)[0]["why"]


def test_a_late_answer_of_a_replaced_member_changes_nothing(tmp_path: Path) -> None:
    async def act(scene: Scene) -> None:
        await scene.publish(0)
        await scene.fleet.reached(0, 5)
        old = scene.world.generators[0]
        old.hangs |= {"health", "adopt"}  # stopped half-way into version 1
        await scene.publish(1)
        await until(lambda: scene.fleet.versions() == {1: 1})
        old.hangs.clear()
        old.dead = False  # and continued
        await scene.publish(2)
        await scene.fleet.reached(2, 5)
        assert scene.fleet.versions() == {1: 2} and old.adopted == [0]

    play(tmp_path, act)


def test_a_version_that_is_not_proved_never_serves_and_names_its_parts(tmp_path: Path) -> None:
    served: list[dict[int, int]] = []

    def shape(worker: Worker) -> None:
        worker.unproved = {1} if worker.index == 0 else set()

    async def act(scene: Scene) -> None:
        await scene.publish(0)
        await scene.fleet.reached(0, 5)
        await scene.publish(1)
        while scene.fleet.versions() != {1: 1}:
            served.append(scene.fleet.versions())
            await asyncio.sleep(0.001)

    scene = play(tmp_path, act, world=World(shape=shape))
    [gone] = scene.events(state="gone", role="generator", index=0)
    assert "could not prove weight version 1" in gone["why"]
    assert "elements loaded failed" in gone["why"] and "lm_head.weight" in gone["why"]
    assert all(versions in ({0: 0}, {}) for versions in served)
    assert [line["holds"] for line in scene.events("proof")] == [True, False, True]


def test_weights_that_nobody_can_prove_end_the_run_by_that_cause(tmp_path: Path) -> None:
    def shape(worker: Worker) -> None:
        worker.unproved = {1}

    async def act(scene: Scene) -> None:
        await scene.publish(0)
        await scene.fleet.reached(0, 5)
        await scene.publish(1)
        await asyncio.Event().wait()

    with pytest.raises(
        RunFailed, match=r"3 starts of a generator in a row failed.*not prove weight version 1"
    ):
        play(tmp_path, act, world=World(shape=shape))


def test_weights_cut_on_the_way_are_asked_for_again_and_the_generator_stays(tmp_path: Path) -> None:
    def shape(worker: Worker) -> None:
        worker.cut = 2

    async def act(scene: Scene) -> None:
        await scene.publish(0)
        await scene.fleet.reached(0, 5)

    scene = play(tmp_path, act, world=World(shape=shape))
    assert [worker.adopted for worker in scene.world.generators] == [[0]]


def test_a_moved_reference_is_brought_once_and_before_its_version_serves(tmp_path: Path) -> None:
    seen: list[tuple[dict[int, int], int]] = []

    async def act(scene: Scene) -> None:
        for number, reference in enumerate((None, "first", None, "second")):
            if reference is not None:
                await scene.publisher.refer(1, reference)  # type: ignore[arg-type]
            await scene.publish(number)
            await scene.fleet.reached(number, 5)
            seen.append((scene.fleet.versions(), len(scene.world.generators[0].references)))

    scene = play(tmp_path, act)
    assert scene.world.generators[0].references == [(1, "first"), (3, "second")]
    assert seen == [({0: 0}, 0), ({0: 1}, 1), ({0: 2}, 1), ({0: 3}, 2)]


def test_a_new_attempt_takes_every_version_away_until_its_own_is_proved(tmp_path: Path) -> None:
    async def act(scene: Scene) -> None:
        await scene.publish(0, 1)
        await scene.fleet.reached(1, 5)
        fresh = Publisher(attempt=2)
        await scene.fleet.attach(fresh)
        assert scene.fleet.versions() == {} and scene.states() == {0: "joining", 1: "joining"}
        await scene.publish(2)  # the old publisher is not listened to
        await fresh.publish(version(1, attempt=2), {})
        await scene.fleet.reached(1, 5)
        assert scene.fleet.versions() == {0: 1, 1: 1}

    scene = play(tmp_path, act, wanted=sizes(TWO))
    assert all(2 not in worker.adopted and worker.adopted[-1] == 1 for worker in scene.world.generators)


def test_a_generator_with_a_reference_of_an_attempt_that_was_rolled_back_is_replaced(tmp_path: Path) -> None:
    async def act(scene: Scene) -> None:
        await scene.publisher.refer(1, "moved")  # type: ignore[arg-type]
        await scene.publish(0)
        await scene.fleet.reached(0, 5)
        fresh = Publisher(attempt=2)
        await scene.fleet.attach(fresh)
        await fresh.publish(version(0, attempt=2), {})
        await until(lambda: scene.fleet.versions() == {1: 0})

    scene = play(tmp_path, act)
    assert scene.world.generators[1].references == []


def test_a_lost_publisher_is_reported_and_costs_no_generator(tmp_path: Path) -> None:
    class Dead:
        async def newest(self) -> int:
            raise RoleFailed("publisher_died", "publisher", "its process is gone")

    async def act(scene: Scene) -> None:
        await scene.publish(0)
        await scene.fleet.reached(0, 5)
        await scene.fleet.attach(Dead())
        with pytest.raises(RoleFailed, match="publisher_died"):
            await scene.fleet.orphaned()
        await scene.fleet.attach(scene.publisher)
        await scene.fleet.reached(0, 5)

    assert len(play(tmp_path, act).world.generators) == 1


def test_a_standby_holds_no_version_and_takes_the_place_of_a_lost_one(tmp_path: Path) -> None:
    async def act(scene: Scene) -> None:
        await scene.publish(0)
        await scene.fleet.reached(0, 5)
        await until(lambda: scene.states() == {0: "serving", 1: "standby"})
        assert scene.fleet.versions() == {0: 0} and scene.world.generators[1].adopted == []
        scene.world.generators[0].dead = True
        await until(lambda: scene.fleet.versions() == {1: 0})
        await until(lambda: scene.states() == {1: "serving", 2: "standby"})

    scene = play(tmp_path, act, wanted=sizes(standbys=1))
    assert [line["state"] for line in scene.events(role="generator", index=1)] == [
        "starting",
        "standby",
        "joining",
        "serving",
        "gone",
    ]


def test_waiting_for_a_version_names_who_is_behind(tmp_path: Path) -> None:
    async def act(scene: Scene) -> None:
        await scene.publish(0)
        await scene.fleet.reached(0, 5)
        scene.world.generators[1].hangs.add("adopt")
        await scene.publish(1)
        with pytest.raises(RunFailed, match=r"generator-1 did not reach weight version 1 in 0\.2 s"):
            await scene.fleet.reached(1, 0.2)
        assert scene.fleet.versions()[1] == 0

    play(tmp_path, act, wanted=sizes(TWO))


# -- starting --------------------------------------------------------------------------------------------


def test_the_first_start_fails_by_its_cause(tmp_path: Path) -> None:
    def shape(worker: Worker) -> None:
        worker.fails = ValueError("no such model") if worker.role == "generator" else None

    async def act(scene: Scene) -> None:
        raise AssertionError("it has started")

    with pytest.raises(RoleFailed, match=r"generator-0.*no such model"):
        play(tmp_path, act, world=World(shape=shape))


def test_a_process_that_dies_while_it_starts_is_started_anew_but_not_for_ever(tmp_path: Path) -> None:
    def twice(worker: Worker) -> None:
        worker.dead = worker.role == "scorer" and worker.index < 2

    async def act(scene: Scene) -> None:
        assert set(scene.fleet.serving("scorer")) == {2}

    play(tmp_path / "twice", act, world=World(shape=twice))

    def always(worker: Worker) -> None:
        worker.dead = worker.role == "scorer"

    with pytest.raises(
        RunFailed, match=r"3 starts of a scorer in a row failed: scorer-0 .*its process is gone"
    ):
        play(tmp_path / "always", act, world=World(shape=always))


def test_a_replacement_that_never_starts_ends_the_run_by_its_cause_and_node(tmp_path: Path) -> None:
    def shape(worker: Worker) -> None:
        if worker.role == "generator" and worker.index:
            worker.hangs.add("start")

    async def act(scene: Scene) -> None:
        await scene.publish(0)
        await scene.fleet.reached(0, 5)
        scene.world.generators[0].dead = True
        await asyncio.Event().wait()

    with pytest.raises(
        RunFailed, match=r"generator-1 \(pid 1001 on node node-a\).*did not start within 0\.2 s"
    ):
        play(tmp_path, act, world=World(shape=shape), start=0.2)


def test_several_that_fail_together_are_one_failed_start(tmp_path: Path) -> None:
    """A node that dies takes all that were starting on it along."""

    def shape(worker: Worker) -> None:
        worker.dead = worker.role == "generator" and worker.index < 4

    async def act(scene: Scene) -> None:
        await scene.publish(0)
        await scene.fleet.reached(0, 5)
        assert set(scene.fleet.versions()) == {4, 5, 6, 7}

    play(tmp_path, act, world=World(shape=shape), wanted=sizes(Bounds(low=4, start=4)))


def test_a_full_cluster_is_waited_for_while_others_serve(tmp_path: Path) -> None:
    def shape(worker: Worker) -> None:
        if worker.index:
            worker.hangs.add("health")

    async def act(scene: Scene) -> None:
        scene.world.placed = False
        scene.world.made["scorer", 0].dead = scene.world.made["perturber", 0].dead = False
        control.write_request(tmp_path, {"scorer": 2})
        await until(lambda: scene.states("scorer") == {0: "serving", 1: "starting"})
        for _ in range(10):  # longer than the deadline of a start
            await asyncio.sleep(0.05)
        assert scene.states("scorer") == {0: "serving", 1: "starting"}
        waiting = scene.world.made["scorer", 1]
        scene.world.placed = True
        waiting.hangs.clear()

    control.write_status(tmp_path, {"fleet": {"pools": {}, "members": []}})
    play(tmp_path, act, world=World(shape=shape), folder=tmp_path, start=0.2)


# -- sizes -----------------------------------------------------------------------------------------------


def test_a_user_resizes_a_live_run_and_is_told_what_became_of_it(tmp_path: Path) -> None:
    async def ask(scene: Scene, **asked: int) -> str:
        request = control.write_request(tmp_path, asked)  # type: ignore[arg-type]
        await until(lambda: control.answer(control.read_status(tmp_path), request))
        return str(control.answer(control.read_status(tmp_path), request))

    async def act(scene: Scene) -> None:
        await scene.publish(0)
        await scene.fleet.reached(0, 5)
        await until((tmp_path / control.STATUS).exists)
        said = await ask(scene, generator=9, scorer=2)
        assert said == "generators 1 -> 3 (asked for 9; the run's settings allow 3), scorers 1 -> 2"
        await until(lambda: scene.fleet.versions() == {0: 0, 1: 0, 2: 0})
        await until(lambda: set(scene.fleet.serving("scorer")) == {0, 1})
        busy = scene.world.generators[2]
        busy.in_flight = 1
        assert await ask(scene, generator=1) == "generators 3 -> 1"
        await until(lambda: scene.states() == {0: "serving", 2: "draining"})
        assert scene.fleet.versions() == {0: 0} and scene.fleet.generator(2) is busy
        assert not busy.ended  # it still has a request
        busy.in_flight = 0
        await until(lambda: scene.states() == {0: "serving"})
        await until(lambda: busy.ended)
        assert busy.stopped

    scene = play(tmp_path, act, wanted=sizes(Bounds(low=1, start=1, high=3)), folder=tmp_path, progress=15.0)
    assert [(line["wanted"], line["why"]) for line in scene.events("resize", role="generator")] == [
        (3, "a user's request"),
        (1, "a user's request"),
    ]


def test_the_fault_of_a_leaver_is_told_from_that_of_one_that_died(tmp_path: Path) -> None:
    fault = Fault(group="g", reason="generator_died", role="generator", detail="", retry=True)

    async def act(scene: Scene) -> None:
        await scene.publish(0)
        await scene.fleet.reached(0, 5)
        scene.fleet.lost("generator", 0, "killed")
        await until(lambda: scene.fleet.versions() == {1: 0, 2: 0})
        assert scene.fleet.amended(fault, 0) == fault == scene.fleet.amended(fault, 1)
        control.write_request(tmp_path, {"generator": 1})
        await until(lambda: scene.states() == {1: "serving"})
        assert scene.fleet.amended(fault, 2).reason == "generator_left"

    control.write_status(tmp_path, {"fleet": {"pools": {}, "members": []}})
    play(tmp_path, act, wanted=sizes(TWO), folder=tmp_path)


def test_a_request_of_an_earlier_start_and_a_broken_one_change_nothing(tmp_path: Path) -> None:
    control.write_status(tmp_path, {"fleet": {"pools": {}, "members": []}})
    control.write_request(tmp_path, {"generator": 3})

    async def act(scene: Scene) -> None:
        await until(lambda: "request" in control.read_status(tmp_path))
        (tmp_path / control.REQUEST).write_text("{")
        await until(lambda: control.read_status(tmp_path)["request"])
        assert "not a request" in control.read_status(tmp_path)["request"]["said"]
        assert scene.states() == {0: "joining"}

    play(tmp_path, act, folder=tmp_path)


def test_pools_follow_demand_between_their_bounds_until_a_user_decides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.scaling.GROW_S", 0.0)
    monkeypatch.setattr("pipelines.scaling.SHRINK_S", 0.0)
    now = Signals(learner_waits=1.0, held_back=0.0)

    async def act(scene: Scene) -> None:
        nonlocal now
        await scene.publish(0)
        await until(lambda: scene.fleet.versions() == {0: 0, 1: 0, 2: 0})
        await until(lambda: len(scene.fleet.serving("scorer")) == 3)  # in proportion
        assert len(scene.fleet.serving("perturber")) == 1  # the settings allow no more
        for worker in scene.world.generators:
            worker.in_flight = 1
        await until(lambda: all(scene.under_way().values()))  # the fleet hears of it by its next look
        now = Signals(learner_waits=0.0, held_back=1.0)
        for _ in range(10):
            await asyncio.sleep(0.05)
            assert len(scene.fleet.versions()) == 3  # who works is not idle
        for worker in scene.world.generators:
            worker.in_flight = 0
        await until(lambda: scene.states() == {0: "serving"})
        control.write_request(tmp_path, {"generator": 2})
        await until(lambda: len(scene.fleet.versions()) == 2)
        for _ in range(10):
            await asyncio.sleep(0.05)
            assert len(scene.fleet.versions()) == 2

    wanted = replace(sizes(Bounds(low=1, start=1, high=3)), scorer=Bounds(low=1, start=1, high=5))
    control.write_status(tmp_path, {"fleet": {"pools": {}, "members": []}})
    scene = play(tmp_path, act, wanted=wanted, folder=tmp_path, signals=lambda: now, progress=15.0)
    told = [(line["wanted"], line["why"]) for line in scene.events("resize", role="generator")]
    assert told == [(2, "demand"), (3, "demand"), (2, "demand"), (1, "demand"), (2, "a user's request")]


def test_room_is_asked_for_and_given_back_also_after_a_failure(tmp_path: Path) -> None:
    needs = Needs(generator={"CPU": 1}, scorer={"CPU": 0.1}, perturber={"CPU": 0.1})

    async def act(scene: Scene) -> None:
        await until(lambda: scene.world.requests)
        raise KeyError("the run fails")

    world = World()
    with pytest.raises(KeyError):
        play(tmp_path, act, world=world, wanted=sizes(TWO, standbys=1), needs=needs)
    assert world.requests == [{"generator": 3, "scorer": 1, "perturber": 1}, {}]


# -- back-pressure ---------------------------------------------------------------------------------------


def test_a_full_object_store_holds_leasing_back_until_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("actors.steering.LOOK_S", 0.0)

    async def act(scene: Scene) -> None:
        await scene.publish(0)
        await scene.fleet.reached(0, 5)
        scene.world.full = {"node-a": 0.5, "node-b": 0.81}
        await until(lambda: scene.fleet.versions() == {})
        assert scene.fleet.report()["pressure"] == {"node-b": 0.81}
        scene.world.full = {"node-a": 0.75, "node-b": 0.75}  # between the two bounds nothing changes
        await until(lambda: scene.fleet.report()["pressure"] == {"node-b": 0.75})
        assert scene.fleet.versions() == {}
        scene.world.full = {"node-a": 0.75}  # node-b is gone
        await until(lambda: scene.fleet.versions() == {0: 0})

    scene = play(tmp_path, act)
    told = [(line["node"], line["on"], line["full"]) for line in scene.events("pressure")]
    assert told == [("node-b", True, 0.81), ("node-b", False, 0.0)]


def test_a_store_that_stays_full_without_new_work_does_not_end_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("actors.steering.HOLD_S", 0.2)

    async def act(scene: Scene) -> None:
        scene.world.full = {"node-a": 0.95}
        await scene.publish(0)
        await until(lambda: scene.events("pressure"))
        await until(lambda: scene.fleet.versions() == {0: 0})
        assert scene.fleet.report()["pressure"] == {"node-a": 0.95}

    play(tmp_path, act)


def test_the_status_says_what_the_run_adds(tmp_path: Path) -> None:
    async def act(scene: Scene) -> None:
        await until((tmp_path / control.STATUS).exists)

    play(tmp_path, act, folder=tmp_path, facts=lambda: {"phase": "align", "step": 7})
    status = json.loads((tmp_path / control.STATUS).read_text())
    assert (status["phase"], status["step"], status["fleet"]["members"]) == ("align", 7, [])


def test_after_a_loss_one_generator_is_enough_to_go_on(tmp_path: Path) -> None:
    async def act(scene: Scene) -> None:
        await scene.publish(0)
        await scene.fleet.reached(0, 5)
        scene.world.generators[1].hangs.add("adopt")
        await scene.fleet.attach(scene.publisher)
        await scene.fleet.reached(0, 5, one=True)
        assert scene.fleet.versions() == {0: 0}

    play(tmp_path, act, wanted=sizes(TWO))
