from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.admission import Admission, Stretch, admission_of
from pipelines.comparisons import Cells
from pipelines.objectives.base import Objective, Term
from pipelines.programs.sampling import Sample
from pipelines.recipe import Recipe, Stage
from pipelines.settings import Settings


class OneStage:
    """The bound of a run with one stage."""

    def __init__(self, max_lag: int, sync_every: int, groups: int, steps: int = 10**6) -> None:
        stages = (Stretch(last=steps, max_lag=max_lag),)
        self.gate = Admission(sync_every=sync_every, groups_per_step=groups, stages=stages)
        self.due = self.gate.due

    def admits(self, version: int, trained: int, live: int) -> bool:
        return self.gate.admits(version, 0, trained, live)


admission = OneStage


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
    ("broken", "named"),
    [
        ({"sync_every": 0}, "sync_every"),
        ({"groups_per_step": 0}, "groups_per_step"),
        ({"stages": ()}, "at least one step"),
        ({"stages": (Stretch(last=2, max_lag=0), Stretch(last=2, max_lag=0))}, r"end at \[2, 2\]"),
    ],
)
def test_refuses_sizes_that_make_no_sense(broken: dict[str, Any], named: str) -> None:
    good = {"sync_every": 1, "groups_per_step": 1, "stages": (Stretch(last=1, max_lag=0),)}
    with pytest.raises(ValueError, match=named):
        Admission(**(good | broken))
    with pytest.raises(ValueError, match="got -1, 1 and 0"):
        Stretch(last=1, max_lag=-1)


def test_a_stage_publishes_at_its_end_and_versions_are_counted_from_what_was_published() -> None:
    """sync_every 3, stages end at 2, 6 and 7: versions 1 after step 2, 2 after 3, 3 after 6; 7 is the end."""
    stages = tuple(Stretch(last=last, max_lag=1) for last in (2, 6, 7))
    gate = Admission(sync_every=3, groups_per_step=1, stages=stages)
    assert [step for step in range(1, 8) if gate.publishes(step)] == [2, 3, 6]
    assert [gate.due(step) for step in range(1, 9)] == [0, 0, 1, 2, 2, 2, 3, 3]
    assert [gate.stage_at(step) for step in (1, 2, 3, 6, 7, 8)] == [0, 0, 1, 1, 2, 2]
    assert [gate.first(stage) for stage in range(3)] == [1, 3, 7]


def test_nothing_passes_the_end_of_an_open_stage_and_old_weights_none_of_the_next() -> None:
    stages = (Stretch(last=2, max_lag=9), Stretch(last=5, max_lag=9))
    gate = Admission(sync_every=1, groups_per_step=2, stages=stages)
    assert gate.admits(0, 0, trained=0, live=3)
    assert not gate.admits(2, 0, trained=0, live=4)  # step 3 is of the next stage
    assert not gate.admits(1, 1, trained=4, live=0)  # whatever the lag allows
    assert gate.admits(2, 1, trained=4, live=5) and not gate.admits(2, 1, trained=4, live=6)


def test_the_bound_of_a_run_is_tightened_by_stages_and_terms() -> None:
    @dataclass(frozen=True)
    class Fresh(Term):
        @property
        def max_lag(self) -> int:
            return 0

    def stage(objective: Objective, **more: Any) -> Stage:
        return Stage(rollout=Sample(1), compare=Cells({"y": "y@x"}), objective=objective, **more)

    plain = stage(Objective(()), max_lag=3, share=3, uses=2, replay=0.5)
    recipe = Recipe(name="r", paper="", source="", stages=(plain, stage(1.0 * Fresh())))
    settings = Settings.model_validate({"learner": {"steps": 8}, "sync": {"max_lag": 2, "every": 4}})
    found = admission_of(settings, recipe)
    assert found.stages == (
        Stretch(last=6, max_lag=2, uses=2, replay=0.5),
        Stretch(last=8, max_lag=0),
    )
    assert (found.sync_every, found.groups_per_step, found.max_steps) == (4, 24, 8)


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


@given(
    st.lists(st.integers(1, 4), min_size=1, max_size=4),
    st.integers(1, 3),
    st.integers(1, 3),
    st.lists(st.integers(0, 2), min_size=4, max_size=4),
)
def test_no_stage_ends_in_a_deadlock(
    lengths: list[int], sync_every: int, groups: int, lags: list[int]
) -> None:
    """At every step of every stage: with the due version proved, the whole step is admitted."""
    stages = tuple(
        Stretch(last=last, max_lag=lag)
        for last, lag in zip(itertools.accumulate(lengths), lags, strict=False)
    )
    gate = Admission(sync_every=sync_every, groups_per_step=groups, stages=stages)
    published = 0
    for step in range(1, gate.max_steps + 1):
        assert published == gate.due(step)
        assert gate.admits(published, gate.stage_at(step), (step - 1) * groups, groups - 1)
        published += gate.publishes(step)
