"""The books of one role: indices, who goes first, and how often starting may fail."""

from __future__ import annotations

import pytest

from actors.pool import FAILED_STARTS, Member, Pool
from pipelines.loop import RunFailed
from pipelines.scaling import Bounds


def pool(wanted: int = 2, standbys: int = 0) -> tuple[Pool, list[tuple[int, str, str]]]:
    told: list[tuple[int, str, str]] = []
    made = Pool(
        "generator",
        Bounds(low=1, start=wanted, high=9),
        standbys,
        lambda index: object(),
        lambda member, why: told.append((member.index, member.state, why)),
    )
    return made, told


def serving(p: Pool) -> Member:
    member = p.add(spare=False)
    p.move(member, "joining", "started")
    p.move(member, "serving", "proved")
    return member


def test_an_index_is_never_used_again() -> None:
    p, told = pool()
    for expected in range(5):
        member = p.add(spare=False)
        assert member.index == expected
        p.move(member, "gone", "lost")
    assert not p.members and [index for index, state, _ in told if state == "gone"] == list(range(5))


def test_states_are_told_once_and_nothing_comes_after_gone() -> None:
    p, told = pool()
    member = serving(p)
    member.version = 3
    p.move(member, "serving", "proved again")
    p.move(member, "gone", "lost")
    p.move(member, "serving", "a late answer")
    assert [state for _, state, _ in told] == ["starting", "joining", "serving", "gone"]
    assert member.version == -1 and p.left == {0: False}


def test_only_a_drained_member_has_left_on_purpose() -> None:
    p, _ = pool()
    killed, drained = serving(p), serving(p)
    p.move(drained, "draining", "1 wanted")
    p.move(killed, "gone", "killed")
    p.move(drained, "gone", "has left")
    assert p.left == {killed.index: False, drained.index: True}


def test_who_does_not_serve_yet_leaves_first_then_who_came_last() -> None:
    p, _ = pool(wanted=3)
    first, second = serving(p), serving(p)
    starting = p.add(spare=False)
    assert p.surplus() == []
    p.wanted = 2
    assert p.surplus() == [starting]
    p.wanted = 1
    assert p.surplus() == [starting, second]
    p.move(second, "draining", "")
    p.move(starting, "gone", "")
    assert p.surplus() == [] and p.working == [first]


def test_a_spare_counts_only_once_it_is_promoted() -> None:
    p, _ = pool(wanted=1, standbys=1)
    spare = p.add(spare=True)
    assert p.working == [] and p.spares == [spare] and not p.promote()  # it is not ready
    p.move(spare, "standby", "started")
    assert p.promote() and p.working == [spare] and p.spares == [] and spare.promoted.is_set()
    assert not p.promote()


def test_spares_that_are_too_many_leave_and_workers_stay() -> None:
    p, _ = pool(wanted=1, standbys=1)
    worker, ready, late = serving(p), p.add(spare=True), p.add(spare=True)
    p.move(ready, "standby", "started")
    assert p.surplus() == [late] and worker in p.working


def test_starts_in_a_row_that_fail_are_bounded_and_back_off() -> None:
    p, _ = pool()
    rests: list[float] = []
    for number in range(1, FAILED_STARTS):
        p.start_failed(p.add(spare=False), f"cause {number}")
        rests.append(p.resting_s)
    assert 0 < rests[0] < rests[1]
    with pytest.raises(RunFailed) as raised:
        p.start_failed(p.add(spare=False), "cause 3")
    said = str(raised.value)
    assert said.startswith("3 starts of a generator in a row failed: generator-0 (no node yet): cause 1; ")
    assert "generator-1" in said and said.endswith("cause 3")


def test_a_start_that_succeeds_ends_the_row() -> None:
    p, _ = pool()
    for _ in range(5):
        p.start_failed(p.add(spare=False), "")
        serving(p)
        assert p.resting_s == 0


def test_members_that_fail_together_count_once() -> None:
    p, _ = pool()
    together = [p.add(spare=False) for _ in range(9)]
    for member in together:
        p.start_failed(member, "its node is gone")
    assert p.resting_s > 0
