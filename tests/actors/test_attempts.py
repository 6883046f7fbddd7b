"""Attempts: who may die and when, what the next attempt goes on from, and how a run is stopped."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from actors import attempt, attempts, checkpoints, ordering, ranks, roll
from actors.nodes import Place
from actors.ranks import ranks_that_fit
from pipelines.loop import RoleFailed, RunFailed
from pipelines.settings import LearnerSettings
from tests.actors.attempt_world import Hook, Mortal, World, play


class Clock:
    """The attempts' clock: deadlines pass when a test moves it on, however slow the machine is."""

    ahead = 0.0

    def monotonic(self) -> float:
        return time.monotonic() + self.ahead

    async def run_on(self, until: Callable[[], Any] = lambda: False) -> None:
        """Hang for ever; a deadline that does not pass by this does not exist.

        `until`: from then on the clock goes as usual, so that what follows has its own deadlines to keep.
        """
        while not until():
            self.ahead += 1000
            await asyncio.sleep(0.01)
        await asyncio.Event().wait()


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Looks follow each other closely, and a rank needs no Ray to say where it is."""
    clock = Clock()
    for module in (attempt, attempts):
        monkeypatch.setattr(module, "time", clock)
    for module in (attempt, roll, ranks):
        monkeypatch.setattr(module, "LOOK_S", 0.005)
    monkeypatch.setattr(ranks, "ROOM_S", 0.05)
    monkeypatch.setattr(roll, "placed", lambda node, pid: Place(node=node, pid=pid))
    return clock


def died(detail: str = "killed") -> RoleFailed:
    return RoleFailed("learner_died", "learner", detail)


def at(*moments: tuple[str, int, int], act: Callable[[World], Any]) -> Hook:
    """Let `act` happen at moments: what, attempt, step."""

    async def hook(world: World, *moment: Any) -> None:
        if moment in moments:
            act(world)

    return hook


def fail(error: Exception) -> Callable[[World], None]:
    def act(world: World) -> None:
        raise error

    return act


async def for_ever() -> None:
    await asyncio.Event().wait()


def check_whole(world: World, steps: int = 4) -> None:
    """Every step has its groups, no group was trained twice in the lineage, and all is closed."""
    assert world.error is None
    assert sorted(world.lineage) == list(range(1, steps + 1))
    groups = [name for _, names in world.lineage.values() for name in names]
    assert len(groups) == len(set(groups)) == 2 * steps
    check_closed(world)


def check_closed(world: World) -> None:
    """All services were ended, each once, their ledgers balance, and nothing is half-written."""
    assert [services.killed for services in world.made] == [1] * len(world.made)
    for services in world.made:
        services.books.check()
    left = [
        p.name for pattern in ("*.partial", "*.replaced", "*.removed") for p in world.run_dir.rglob(pattern)
    ]
    assert left == []
    gone = {(line["role"], line["index"]) for line in world.told("member", state="gone")}
    assert gone == {(line["role"], line["index"]) for line in world.told("member", state="serving")}


# -- to the end --------------------------------------------------------------------------------------------


def test_one_attempt_runs_to_the_end(tmp_path: Path) -> None:
    world = play(tmp_path)
    check_whole(world)
    assert world.steps == [(1, step) for step in (1, 2, 3, 4)]
    assert [(line["step"], line["attempt"]) for line in world.metrics] == [(step, 1) for step in (1, 2, 3, 4)]
    assert world.measured == ["before", "after"] and world.fleet.version == 4
    assert world.attempts.counts["trained"] == 8 and world.attempts.counts["sealed"] == 0
    assert world.told("learner") == world.told("learner", attempt=1, ranks=1) and world.told("learner")
    assert not world.told("resumed") and not world.told("attempt_failed")
    for role in ("ledger", "publisher", "prompts"):
        assert world.told("member", role=role, index="1", state="serving")
    assert world.told("member", role="learner", index="1.0", state="serving", pid=100)


def test_stages_follow_each_other_each_in_its_own_order(tmp_path: Path) -> None:
    """Two steps of two prompts each: later prompts are easier, so each block of four comes in two halves."""
    world = play(tmp_path, stages=2, surveyed=True)
    check_whole(world)
    issued = [line["prompt"] for line in world.told("issue")]
    assert issued == [f"p{number}" for number in (2, 3, 0, 1, 6, 7, 4, 5)]
    assert [line["stage"] for line in world.told("survey")] == [0, 1]


def test_an_order_is_surveyed_once_per_run(tmp_path: Path) -> None:
    world = play(tmp_path, at(("train", 1, 3), act=fail(died())), stages=2, surveyed=True)
    check_whole(world)
    assert [line["stage"] for line in world.told("survey")] == [0, 1]


def test_a_resumed_run_whose_steps_are_all_trained_only_finishes(tmp_path: Path) -> None:
    world = play(
        tmp_path, at(("evaluate after", 1, 0), act=fail(RoleFailed("wedged", "generator", "no answer")))
    )
    check_whole(world)
    assert world.steps == [(1, step) for step in (1, 2, 3, 4)] and len(world.made) == 2
    assert world.measured.count("after") == 1


# -- losses that another attempt mends ---------------------------------------------------------------------


def test_a_dead_learner_goes_on_from_the_newest_checkpoint(tmp_path: Path) -> None:
    world = play(tmp_path, at(("train", 1, 3), act=fail(died())))
    check_whole(world)
    assert world.steps == [(1, 1), (1, 2), (1, 3), (2, 3), (2, 4)]
    rolled_back = world.trained[2][2]
    assert set(rolled_back) <= {name for attempt, _, names in world.trained if attempt == 2 for name in names}
    assert world.told("attempt_failed", attempt=1, role="learner")[0]["cause"] == str(died())
    assert world.told("resumed") == world.told("resumed", attempt=2, step=2, dropped={})
    assert [line["ranks"] for line in world.told("learner")] == [1, 1]
    whys = {line["why"] for line in world.told("member", state="gone", index="1")}
    assert whys == {"the attempt failed"}


def test_what_was_dropped_before_the_checkpoint_stays_dropped(tmp_path: Path) -> None:
    async def hook(world: World, what: str, attempt: int, step: int) -> None:
        if (what, attempt, step) == ("train", 1, 1):
            ledger = world.services.books
            lease = await ledger.issue("odd", 0, 10**6, 0)
            assert lease is not None
            fault = RoleFailed("bad_row", "scorer", "row 7", retry=False).fault(lease.group)
            assert await ledger.fail(fault, lease) == "drop"
        if (what, attempt, step) == ("train", 1, 3):
            raise died()

    world = play(tmp_path, hook)
    check_whole(world)
    assert list(world.told("resumed")[0]["dropped"].values()) == ["bad_row"]
    assert world.attempts.counts["dropped"]["bad_row"] == 1


def test_a_late_delivery_of_a_lost_attempt_is_counted_and_changes_nothing(tmp_path: Path) -> None:
    async def hook(world: World, what: str, attempt: int, step: int) -> None:
        if (what, attempt, step) == ("train", 1, 3):
            raise died()
        if (what, attempt, step) == ("train", 2, 3):
            old = next(group for group in world.delivered if group.id == world.trained[2][2][0])
            assert old.fence >> 32 == 1
            await world.services.books.accept(old)

    world = play(tmp_path, hook)
    check_whole(world)
    assert world.attempts.counts["rolled_back"] == 1 and world.told("refused", group=world.trained[2][2][0])


@pytest.mark.parametrize("moment", [("load", 1, 0), ("published", 1, 0), ("train", 1, 1), ("commit", 1, 2)])
def test_without_a_checkpoint_it_begins_anew(tmp_path: Path, moment: tuple[str, int, int]) -> None:
    world = play(tmp_path, at(moment, act=fail(died())))
    check_whole(world)
    assert world.told("resumed", attempt=2, step=0)
    assert {attempt for attempt, _ in world.lineage.values()} == {2}
    assert world.measured.count("after") == 1


@pytest.mark.parametrize("role", ["ledger", "publisher", "prompts"])
@pytest.mark.parametrize("moment", [("load", 1, 0), ("train", 1, 1), ("train", 1, 3), ("commit", 1, 2)])
def test_the_death_of_a_service_ends_the_attempt(tmp_path: Path, role: str, moment: Any) -> None:
    world = play(tmp_path, at(moment, act=lambda world: getattr(world.services, role).die()))
    check_whole(world)
    assert [line["attempt"] for line in world.told("attempt_failed")] in ([1], [])
    if role != "prompts" or moment != ("train", 1, 3):  # by then all prompts may have been taken
        assert len(world.made) == 2 and "died" in world.told("attempt_failed")[0]["cause"]


def test_a_dead_publisher_is_noticed_while_nobody_publishes(tmp_path: Path) -> None:
    """The fleet has no version, the learner waits for groups: without a guard nothing would ever move."""

    async def hook(world: World, what: str, attempt: int, step: int) -> None:
        if (what, attempt, step) == ("published", 1, 1):
            world.fleet.deaf = True
            asyncio.get_running_loop().call_later(0.05, world.services.publisher.die)
        if what == "load" and attempt == 2:
            world.fleet.deaf = False

    world = play(tmp_path, hook, sync={"max_lag": 0})
    check_whole(world)
    assert world.told("attempt_failed", role="publisher")


@pytest.mark.parametrize("moment", [("load", 1, 0), ("train", 1, 3), ("commit", 1, 2), ("last", 1, 4)])
def test_a_wedged_learner_is_ended(tmp_path: Path, clock: Clock, moment: tuple[str, int, int]) -> None:
    """In a collective, in a commit with nothing left to train, or before its first version."""

    async def hook(world: World, *now: Any) -> None:
        if now == moment:
            await clock.run_on(until=lambda: world.told("attempt_failed"))

    world = play(tmp_path, hook)
    check_whole(world)
    [failed] = world.told("attempt_failed")
    assert failed["role"] == "learner" and "learner_wedged" in failed["cause"]


def test_a_learner_that_waits_for_groups_is_not_wedged(tmp_path: Path, clock: Clock) -> None:
    async def hook(world: World, what: str, attempt: int, step: int) -> None:
        if what == "evaluate before":
            with suppress(TimeoutError):
                await asyncio.wait_for(clock.run_on(), 0.1)
            assert world.attempts.now is not None
            while world.attempts.now._moved < clock.monotonic() - 100:  # until the next look at the learner
                await asyncio.sleep(0.005)

    world = play(tmp_path, hook)
    check_whole(world)
    assert len(world.made) == 1


def test_half_written_remains_are_gone_before_the_next_attempt(tmp_path: Path) -> None:
    left = ("checkpoints/.step-2.partial/weights", "weights/.version-7.partial/bucket-00000.safetensors")

    async def hook(world: World, what: str, attempt: int, step: int) -> None:
        if (what, attempt, step) == ("commit", 1, 2):
            for name in left:
                (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
                (tmp_path / name).touch()
            (tmp_path / "order.partial").touch()
            raise died()
        if (what, attempt) == ("load", 2):
            assert not list(tmp_path.rglob("*.partial"))

    check_whole(play(tmp_path, hook))


def test_a_checkpoint_that_was_put_aside_is_found(tmp_path: Path) -> None:
    def act(world: World) -> None:
        folder = checkpoints.root(tmp_path)
        (folder / "step-2").rename(folder / ".step-2.replaced")
        raise died()

    world = play(tmp_path, at(("train", 1, 3), act=act))
    check_whole(world)
    assert world.told("resumed", attempt=2, step=2)


def test_a_checkpoint_that_is_lost_comes_back_from_the_mirror(tmp_path: Path) -> None:
    """Step 2 was copied; here its only copy is damaged."""
    from actors.mirror import Mirror

    run_dir, url = tmp_path / "run", str(tmp_path / "mirror")

    def act(world: World) -> None:
        folder = checkpoints.root(run_dir) / "step-2"
        Mirror(url, run_dir.name).push(folder)
        (folder / "weights").write_bytes(b"damaged")
        raise died()

    world = play(run_dir, at(("train", 1, 3), act=act), checkpoint={"mirror": url})
    check_whole(world)
    assert world.told("resumed", attempt=2, step=2) and (checkpoints.root(run_dir) / "bad-step-2").exists()


# -- losses that nothing mends -----------------------------------------------------------------------------


def test_restarts_in_a_row_without_progress_end_the_run(tmp_path: Path) -> None:
    async def hook(world: World, what: str, attempt: int, step: int) -> None:
        if (what, step) == ("train", 3):
            raise died(f"killed for the {attempt}. time")

    world = play(tmp_path, hook, recovery={"max_restarts": 2})
    assert isinstance(world.error, RunFailed)
    assert "killed for the 3. time" in str(world.error) and "2 restarts in a row" in str(world.error)
    assert "step 2" in str(world.error) and "recovery.max_restarts = 2" in str(world.error)
    assert len(world.made) == 3 and len(world.told("attempt_failed")) == 3
    check_closed(world)


def test_a_new_checkpoint_gives_new_restarts(tmp_path: Path) -> None:
    """Each attempt commits one step and dies in the next one: 5 restarts, one allowed in a row."""

    async def hook(world: World, what: str, attempt: int, step: int) -> None:
        if what == "train" and step == attempt + 1:
            raise died()

    world = play(tmp_path, hook, recovery={"max_restarts": 1}, checkpoint={"every": 1}, learner={"steps": 6})
    check_whole(world, steps=6)
    assert len(world.made) == 6


def test_no_restart_is_made_where_none_is_allowed(tmp_path: Path) -> None:
    world = play(tmp_path, at(("train", 1, 3), act=fail(died())), recovery={"max_restarts": 0})
    assert isinstance(world.error, RunFailed) and len(world.made) == 1
    check_closed(world)


@pytest.mark.parametrize(
    "error",
    [
        RoleFailed("not_finite", "learner", "step 3", retry=False),
        ValueError("labels of another vocabulary"),
        RunFailed("the data is at its end"),
    ],
)
def test_what_would_only_come_again_ends_the_run_at_once(tmp_path: Path, error: Exception) -> None:
    world = play(tmp_path, at(("train", 1, 3), act=fail(error)))
    assert isinstance(world.error, RoleFailed | RunFailed) and str(error) in str(world.error)
    assert len(world.made) == 1
    check_closed(world)


def test_a_checkpoint_folder_without_a_sound_one_ends_the_run(tmp_path: Path) -> None:
    def act(world: World) -> None:
        (checkpoints.root(tmp_path) / "step-2" / "weights").unlink()
        raise died()

    world = play(tmp_path, at(("train", 1, 3), act=act))
    assert isinstance(world.error, checkpoints.BadCheckpoint) and "weights" in str(world.error)
    assert world.told("attempt_failed", attempt=1)
    check_closed(world)


def test_a_recovery_has_a_deadline(tmp_path: Path, clock: Clock) -> None:
    """The second attempt never gets a version to sample from."""

    async def hook(world: World, what: str, attempt: int, step: int) -> None:
        if (what, attempt, step) == ("train", 1, 3):
            raise died("its node is gone")
        if what == "load" and attempt == 2:
            world.fleet.deaf = True
            clock.ahead += 500

    world = play(tmp_path, hook, recovery={"deadline_s": 400})
    assert isinstance(world.error, RunFailed)
    assert "recovery.deadline_s = 400" in str(world.error) and "its node is gone" in str(world.error)
    check_closed(world)


def test_surveys_and_evaluations_are_no_part_of_a_recovery(tmp_path: Path, clock: Clock) -> None:
    async def hook(world: World, what: str, attempt: int, step: int) -> None:
        if (what, attempt) == ("load", 1):
            raise died()
        if what == "evaluate before":
            clock.ahead += 500

    check_whole(play(tmp_path, hook, recovery={"deadline_s": 400}))


def test_a_survey_that_fails_leaves_nobody_at_work(tmp_path: Path) -> None:
    asked: list[int] = []

    async def hook(world: World, what: str, attempt: int, step: int) -> None:
        if what == "survey":
            asked.append(step)
            if step == 1:
                raise RoleFailed("bad_row", "scorer", "row 1", retry=False)
            await for_ever()

    world = play(tmp_path, hook, surveyed=True)
    assert isinstance(world.error, RoleFailed) and world.error.reason == "survey_failed"
    assert "row 1" in str(world.error) and asked.count(1) == ordering.SURVEY_TRIES and len(world.made) == 1
    check_closed(world)


# -- stopping ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("moment", "saved"),
    [
        (("load", 1, 0), None),
        (("evaluate before", 1, 0), None),
        (("survey", 1, 1), None),
        (("train", 1, 1), 1),
        (("train", 1, 3), 3),
        (("survey", 1, 5), 2),
        (("train", 1, 4), 4),
        (("last", 1, 4), 4),
        (("evaluate after", 1, 0), 4),
    ],
)
def test_a_run_can_be_stopped_at_any_time(tmp_path: Path, moment: Any, saved: int | None) -> None:
    """The step under training is trained and saved; the rest is given back."""

    async def hook(world: World, what: str, attempt: int, step: int) -> None:
        if (what, attempt, step) == moment:
            world.stop.set()
            if what in ("load", "evaluate before", "survey", "evaluate after"):
                await for_ever()

    world = play(tmp_path, hook, stages=2, surveyed=True, checkpoint={"every": 100})
    assert world.error is None and world.attempts.now is not None
    assert world.attempts.now.outcome == "stopped" and len(world.made) == 1
    found = checkpoints.newest_verified(tmp_path)
    assert (found.step if found else None) == saved
    counts = world.attempts.counts
    assert (
        counts["trained"] == 2 * (saved or 0)
        and counts["sealed"] == counts["buffered"] == counts["leased"] == 0
    )
    assert world.told("release")
    check_closed(world)
    assert world.attempts.now._grace_s() > 0  # nobody waited until its end


@pytest.mark.parametrize("what", ["train", "last"])
def test_a_learner_that_does_not_end_has_its_grace_once(tmp_path: Path, what: str) -> None:
    step = {"train": 3, "last": 4}[what]

    async def hook(world: World, *moment: Any) -> None:
        if moment == (what, 1, step):
            world.stop.set()
            await for_ever()

    world = play(tmp_path, hook, stop_grace_s=0.6)
    assert isinstance(world.error, RoleFailed) and "stop_grace_s = 0.6" in str(world.error)
    assert len(world.made) == 1 and world.attempts.now is not None
    assert world.attempts.now._grace_s() == 0  # and was not given anew
    assert world.attempts.counts["sealed"] == 0
    check_closed(world)


def test_a_learner_that_dies_while_it_saves_is_a_failure(tmp_path: Path) -> None:
    async def hook(world: World, what: str, attempt: int, step: int) -> None:
        if (what, step) == ("train", 3):
            world.stop.set()
        if (what, step) == ("commit", 3):
            raise died("no space")

    world = play(tmp_path, hook)
    assert isinstance(world.error, RoleFailed) and "no space" in str(world.error) and len(world.made) == 1
    check_closed(world)


def test_a_stop_between_two_attempts_begins_none(tmp_path: Path) -> None:
    async def hook(world: World, what: str, attempt: int, step: int) -> None:
        if (what, step) == ("train", 3):
            asyncio.get_running_loop().call_soon(asyncio.create_task, stopping(world))
            raise died()

    async def stopping(world: World) -> None:
        while not world.told("attempt_failed"):
            await asyncio.sleep(0)
        world.stop.set()

    world = play(tmp_path, hook)
    assert world.error is None and len(world.made) == 1
    check_closed(world)


def test_a_cancelled_run_lets_its_learner_save(tmp_path: Path) -> None:
    """As when the fleet failed, or a monitor asks for it."""

    async def hook(world: World, what: str, attempt: int, step: int) -> None:
        if (what, step) == ("train", 3):
            assert world.task is not None
            world.task.cancel()

    with pytest.raises(asyncio.CancelledError):
        play(tmp_path, hook)
    found = checkpoints.newest_verified(tmp_path)
    assert found is not None and found.step == 3


# -- a learner that grows again ----------------------------------------------------------------------------


def test_a_learner_grows_again_when_there_is_room(tmp_path: Path) -> None:
    async def hook(world: World, what: str, attempt: int, step: int) -> None:
        match what, attempt, step:
            case "train", 1, 1:
                world.nodes["node-a"] = {"CPU": 1.0}
                raise died("its node is gone")
            case "load", 2, 0:
                world.nodes["node-a"] = {"CPU": 0.0}
            case "train", 2, 3:
                world.nodes["node-b"] = {"CPU": 1.0}
                while not world.told("regrow"):
                    await asyncio.sleep(0.005)
            case "commit", 2, 3:
                world.nodes["node-a"] = {"CPU": 1.0}
            case _:
                pass

    world = grown(tmp_path, hook, {"node-a": {"CPU": 2.0}}, steps=8)
    check_whole(world, steps=8)
    assert [(line["attempt"], line["ranks"]) for line in world.told("learner")] == [(1, 2), (2, 1), (3, 2)]
    assert world.told("regrow") == world.told("regrow", attempt=2, ranks=1)
    assert world.told("resumed", attempt=3)[0]["step"] == 3
    assert len(world.told("attempt_failed")) == 1  # the resize is none
    assert {line["index"] for line in world.told("member", role="learner")} == {
        "1.0",
        "1.1",
        "2.0",
        "3.0",
        "3.1",
    }


def grown(here: Path, hook: Hook, nodes: Any, steps: int) -> World:
    """A learner that wants two ranks and can live with one."""
    worlds: list[World] = []

    async def known(world: World, *moment: Any) -> None:
        worlds.append(world)
        await hook(world, *moment)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            ranks.state, "available_resources_per_node", lambda: dict(worlds[-1].nodes) if worlds else nodes
        )
        return play(here, known, nodes=nodes, learner={"workers": 2, "min_workers": 1, "steps": steps})


def test_ranks_have_to_fit_on_nodes() -> None:
    wanted = LearnerSettings(workers=3, cpus=2, gpus=1)
    assert ranks_that_fit(wanted, []) == 0
    assert ranks_that_fit(wanted, [{"CPU": 8.0, "GPU": 1.0}]) == 1
    assert ranks_that_fit(wanted, [{"CPU": 1.0, "GPU": 1.0}, {"CPU": 1.0, "GPU": 1.0}]) == 0
    assert ranks_that_fit(wanted, [{"CPU": 4.0, "GPU": 8.0}, {"CPU": 2.0, "GPU": 1.0}]) == 3
    assert ranks_that_fit(wanted, [{"CPU": 80.0, "GPU": 8.0}]) == 3
    halves = LearnerSettings(workers=2, cpus=1, gpus=0.5)
    assert ranks_that_fit(halves, [{"CPU": 2.0, "GPU": 0.9999999999}]) == 2  # sums of parts are not exact


# -- what it rests on --------------------------------------------------------------------------------------


def test_a_step_that_was_given_back_cannot_be_trained(tmp_path: Path) -> None:
    """A learner that is slow to die must not commit a step whose groups the next attempt trains again."""
    refused: list[str] = []

    async def hook(world: World, what: str, attempt: int, step: int) -> None:
        if (what, attempt, step) == ("train", 1, 3):
            books = world.services.books
            await books.release()
            try:
                await books.trained(1, 3, {"loss": 1.0})
            except ValueError as error:
                refused.append(str(error))
            raise died()

    world = play(tmp_path, hook)
    check_whole(world)
    assert refused and "never handed out" in refused[0]


def test_attempts_start_without_torch() -> None:
    code = "import sys; import actors.attempts; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


def test_a_dead_service_fails_calls_under_way() -> None:
    """Of the world that these tests run in."""

    class Slow:
        async def answer(self) -> None:
            await for_ever()

    async def main() -> None:
        service = Mortal(Slow(), "ledger")
        call = asyncio.ensure_future(service.answer())
        await asyncio.sleep(0)
        service.die()
        with pytest.raises(RoleFailed, match="ledger_died"):
            await call

    asyncio.run(main())
