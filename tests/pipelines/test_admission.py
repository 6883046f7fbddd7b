from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.admission import Admission


def admission(max_lag: int, sync_every: int, groups: int, steps: int = 10**6) -> Admission:
    return Admission(max_lag=max_lag, sync_every=sync_every, groups_per_step=groups, max_steps=steps)


def test_strictly_on_policy_admits_exactly_one_step_per_version() -> None:
    """max_lag 0, sync_every 1, 4 groups a step: version u may fill up to (u + 1) * 4 groups."""
    gate = admission(0, 1, 4)
    assert gate.admits(0, trained=0, live=3)
    assert not gate.admits(0, trained=0, live=4)
    assert not gate.admits(0, trained=4, live=0)  # version 1 is out and not proved here
    assert gate.admits(1, trained=4, live=3)
    assert not gate.admits(1, trained=4, live=4)


def test_lag_counts_published_versions_not_steps() -> None:
    """max_lag 1, sync_every 3, 2 groups: version 2 serves until step (2 + 2) * 3 = 12, that is 24 groups."""
    gate = admission(1, 3, 2)
    assert gate.admits(2, trained=18, live=5)
    assert not gate.admits(2, trained=18, live=6)
    assert [gate.due(step) for step in (1, 3, 4, 6, 7)] == [0, 0, 1, 1, 2]


def test_never_admits_more_than_the_run_needs() -> None:
    gate = admission(5, 4, 3, steps=2)
    assert gate.admits(0, trained=3, live=2)
    assert not gate.admits(0, trained=3, live=3)


@pytest.mark.parametrize(
    "broken", [{"max_lag": -1}, {"sync_every": 0}, {"groups_per_step": 0}, {"max_steps": 0}]
)
def test_refuses_sizes_that_make_no_sense(broken: dict[str, int]) -> None:
    [name] = broken
    sizes = {"max_lag": 0, "sync_every": 1, "groups_per_step": 1, "max_steps": 1, **broken}
    with pytest.raises(ValueError, match=name):
        Admission(**sizes)


sizes = st.tuples(st.integers(0, 3), st.integers(1, 3), st.integers(1, 4))


@given(sizes, st.lists(st.sampled_from(["issue", "train", "prove"]), max_size=200))
def test_in_order_training_never_exceeds_the_lag(sizes: tuple[int, int, int], moves: list[str]) -> None:
    """Groups are trained in the order in which they were admitted; each keeps the version it was given."""
    max_lag, sync_every, groups = sizes
    gate = admission(*sizes)
    proved, steps, queue = 0, 0, []
    for move in moves:
        if move == "issue" and gate.admits(proved, steps * groups, len(queue)):
            queue.append(proved)
        elif move == "train" and len(queue) >= groups:
            steps += 1
            step, queue = queue[:groups], queue[groups:]
            assert max(gate.due(steps) - version for version in step) <= max_lag
        elif move == "prove":
            proved = min(proved + 1, steps // sync_every)


@given(st.integers(1, 4), st.randoms(use_true_random=False))
def test_zero_lag_holds_in_any_order_of_completion(groups: int, random) -> None:
    gate = admission(0, 1, groups)
    proved, steps, live = 0, 0, []
    for _ in range(200):
        move = random.choice(["issue", "train", "prove", "drop"])
        if move == "issue" and gate.admits(proved, steps * groups, len(live)):
            live.append(proved)
        elif move == "train" and len(live) >= groups:
            steps += 1
            random.shuffle(live)
            assert {live.pop() for _ in range(groups)} == {gate.due(steps)}
        elif move == "prove":
            proved = min(proved + 1, steps)
        elif move == "drop" and live:
            live.pop(random.randrange(len(live)))


@given(sizes, st.integers(0, 50))
def test_the_next_step_can_always_be_filled(sizes: tuple[int, int, int], steps: int) -> None:
    """No deadlock: once the due version is proved, a whole step of live groups is admitted."""
    _, sync_every, groups = sizes
    gate = admission(*sizes)
    assert gate.admits(steps // sync_every, steps * groups, groups - 1)
