"""What is done when, and what the conductor's looks say about it."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.serving.chaos.schedule import schedule
from benchmarks.serving.chaos.watch import Look, closed, recovered, refusing, settled
from serving.wire import Standing, State

A, B = "v-a", "v-b"


def standing(replica: str, version: str | None, state: State = "serving", **more: object) -> Standing:
    facts = {"replica": replica, "slot": "stable", "version": version, "state": state, "in_flight": 0}
    return Standing(**(facts | more))  # type: ignore[arg-type]


def looks(*standings: list[Standing]) -> list[Look]:
    return [Look(at=float(second), standings=tuple(found)) for second, found in enumerate(standings)]


def test_ten_minutes_hold_every_fault() -> None:
    acts = Counter(act.kind for act in schedule(600, 30, 60))
    assert acts["kill"] + acts["kill swapping"] == 20
    assert acts["promote"] + acts["kill swapping"] + acts["roll back"] == 10 + 1  # and the damaged one's end
    assert (acts["promote damaged"], acts["kill conductor"]) == (1, 1)


@given(st.floats(30, 1200), st.floats(10, 60), st.floats(10, 60))
def test_acts_come_in_order_within_the_time_and_no_swap_is_at_a_kill_unless_it_is_to_be(
    seconds: float, kill_every: float, swap_every: float
) -> None:
    acts = schedule(seconds, kill_every, swap_every)
    assert acts == sorted(acts) and all(0 <= act.at <= seconds for act in acts)
    kills = [act.at for act in acts if act.kind in ("kill", "kill swapping")]
    assert len(kills) == len(set(kills)) == int(seconds // kill_every)
    damaged = [number for number, act in enumerate(acts) if act.kind == "promote damaged"]
    assert len(damaged) <= 1


def test_damaged_files_are_taken_back_after_the_kill_and_before_anything_else() -> None:
    acts = [act.kind for act in schedule(60, 20, 20)]
    start = acts.index("promote damaged")
    assert acts[start : start + 3] == ["promote damaged", "kill", "roll back"]


@given(st.floats(60, 1200), st.floats(10, 150), st.floats(10, 60))
def test_no_other_swap_is_near_damaged_files(seconds: float, kill_every: float, swap_every: float) -> None:
    acts = [act for act in schedule(seconds, kill_every, swap_every) if act.kind != "kill conductor"]
    kinds = [act.kind for act in acts]
    if "promote damaged" in kinds:
        start = kinds.index("promote damaged")
        assert kinds[start : start + 3] == ["promote damaged", "kill", "roll back"]
        others = [
            act.at for act in (*acts[:start], *acts[start + 3 :]) if act.kind in ("promote", "roll back")
        ]
        began, ended = acts[start].at, acts[start + 2].at
        assert all(at < began - 0.09 * kill_every or at > ended + 0.09 * kill_every for at in others)


@pytest.mark.parametrize("dead", [{}, {"r1": 0.5}])
def test_recovery_counts_the_living(dead: dict[str, float]) -> None:
    seen = looks(
        [standing("r1", A), standing("r2", A)],
        [standing("r1", A), standing("r2", A)],  # the conductor does not know yet
        [standing("r1", A), standing("r2", A), standing("r3", None, "loading")],
        [standing("r2", A), standing("r3", A)],
    )
    assert recovered(seen, 0.5, dead, 2) == (3.0 if dead else 1.0)
    assert recovered(seen[:3], 0.5, {"r1": 0.5}, 2) is None


def test_a_version_has_arrived_when_nobody_has_another() -> None:
    seen = looks(
        [standing("r1", A), standing("r2", A)],
        [standing("r1", B), standing("r2", A)],
        [standing("r1", B), standing("r2", A, "swapping")],
        [standing("r1", B)],  # the other one is silent
        [standing("r1", B), standing("r2", B)],
    )
    assert settled(seen, 0.5, B, {}, 2) == 4.0
    assert settled(seen, 0.5, B, {"r2": 1.5}, 1) == 2.0  # it was killed on the way
    assert settled(seen[:4], 0.5, B, {}, 2) is None


def test_how_long_gates_were_closed() -> None:
    seen = looks(
        [standing("r1", A, closed_s=9.0)],  # its start
        [standing("r1", A, "swapping", closed_s=9.0)],
        [standing("r1", B, closed_s=1.5)],
        [standing("r1", B, closed_s=1.5), standing("r2", B, closed_s=8.0)],
        [standing("r1", A, closed_s=1.25), standing("r2", B, closed_s=8.0)],
    )
    assert sorted(closed(seen)) == [1.25, 1.5]


def test_who_refused_a_version() -> None:
    seen = looks([standing("r1", A)], [standing("r1", A, refused=(B,)), standing("r2", A)])
    assert refusing(seen, B) == {"r1"}
