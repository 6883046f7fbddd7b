"""The whole loop in one process, on the embedded base model: short runs, a few groups per step."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from actors.heldout import heldout_rows
from actors.in_process import Run, Trained, train
from actors.inline import InlineExecutor
from pipelines import recipes
from pipelines.loop import RunFailed
from pipelines.programs.sampling import Sample
from pipelines.recipe import Recipe, Refresh
from pipelines.rollout import Draft, Drop, Tools
from pipelines.schedules import EasyToHard
from pipelines.settings import Settings, load

BUDGET = (
    "learner.steps=2",
    "learner.groups_per_step=3",
    "learner.warmup_steps=0",
    "learner.lr=3e-4",
    "learner.zero_stage=0",
    "sync.max_lag=0",
    "data.questions=0.0",
    "method.samples=4",
)


def settings(*given: str) -> Settings:
    return load(None, [*BUDGET, *given])


def recipe(run: Settings, **changes: Any) -> Recipe:
    """The run's recipe, with some slots of its only stage changed."""
    made = recipes.load(run.recipe, run.method)
    return replace(made, stages=(replace(made.stages[0], **changes),))


def test_a_run_trains_and_its_generator_holds_the_last_weights():
    run_settings = settings()
    seen: list[Trained] = []
    with train(run_settings, recipe(run_settings), on_step=seen.append) as run:
        assert [metrics["step"] for metrics in run.metrics] == [1, 2]
        assert [trained.step for trained in seen] == [1, 2] and all(t.result.applied for t in seen)
        assert [len(groups) for groups in run.steps] == [3, 3] == [len(t.groups) for t in seen]
        assert [proof.version for proof in run.proofs] == [0, 1, 2] and all(p.holds for p in run.proofs)
        assert {proof.canary_change for proof in run.proofs} == {"proved"}
        assert run.versions() == {0: 2} and run.counts["trained"] == 6
        versions = [{group.version for group in groups} for groups in run.steps]
        assert versions == [{0}, {1}]  # strictly on-policy
        assert run.metrics[0]["loss"] == pytest.approx(np.log(2), abs=1e-5)  # DPO where policy = reference
        learner = run.learner
        assert learner is not None
        canary = run.canaries[0]
        own = run.do(run.generator.logprob(canary.prompt, canary.media, canary.tokens))
        assert own == pytest.approx(learner.canary(run.canaries)[0], abs=1e-3)
        rows = list(heldout_rows(4, 2))
        measured = run.evaluate(rows)
        assert measured["items"] == {"caption": 4, "random": 2, "popular": 2, "adversarial": 2}
        assert len(run.records(rows)) == 10


def test_the_same_seed_repeats_a_run_exactly():
    """Losses, margins and answers are equal to the last bit; another seed gives other answers."""

    def outcome(seed: int) -> tuple[Any, ...]:
        run_settings = settings(f"seed={seed}")
        with train(run_settings, recipe(run_settings)) as run:
            tokens = [
                r.tokens for groups in run.steps for g in groups for c in g.comparisons for r in c.responses
            ]
            timed = ("seconds", "per_s", "time_s")
            kept = [{k: v for k, v in m.items() if not any(t in k for t in timed)} for m in run.metrics]
            return tokens, kept

    first, again, other = outcome(3), outcome(3), outcome(4)
    assert first == again
    assert first[0] != other[0]


def test_stages_follow_each_other():
    """The second stage starts against a refreshed reference: its first loss is log 2 again."""
    run_settings = settings("learner.steps=4", "sync.every=2", "sync.max_lag=1")
    one = recipe(run_settings).stages[0]
    both = replace(recipe(run_settings), stages=(replace(one, then=(Refresh(),), share=3), one))
    with train(run_settings, both) as run:
        losses = [metrics["loss"] for metrics in run.metrics]
        assert len(losses) == 4 and losses[3] == pytest.approx(np.log(2), abs=1e-5)
        assert losses[2] != pytest.approx(np.log(2), abs=1e-4)
        assert [{c.stage for g in groups for c in g.comparisons} for groups in run.steps] == [{0}] * 3 + [{1}]
        assert [proof.version for proof in run.proofs] == [
            0,
            1,
            2,
            3,
        ]  # after steps 2, 3 (the boundary) and 4


def test_an_adapter_travels_alone():
    run_settings = settings("learner.lora.rank=4", "learner.lr=3e-3")
    with train(run_settings, recipe(run_settings)) as run:
        assert all(proof.holds for proof in run.proofs) and run.versions() == {0: 2}
        assert {proof.canary_change for proof in run.proofs[1:]} == {"proved"}
        assert all(".lora_" in name for name in run.weights())
        elements = run.proofs[-1].detail["elements"]
        assert elements["written"] == elements["elements"] == sum(a.size for a in run.weights().values())


def test_a_survey_orders_the_prompts():
    """The six prompts of both steps are surveyed; each step trains on the easiest of those that are left."""
    run_settings = settings("max_drop_share=1.0")
    orders: list[list[int]] = []

    class Noted(EasyToHard):
        def __call__(self, difficulty: Any) -> list[int]:
            orders.append(super().__call__(difficulty))
            return orders[-1]

    with train(run_settings, recipe(run_settings, order=Noted(samples=4, parts=6))) as run:
        [order] = orders
        assert sorted(order) == list(range(6)) != order
        trained = [
            [int(g.comparisons[0].prompts[0].id.split("-")[3]) for g in groups] for groups in run.steps
        ]
        ranks = [[order.index(p) if p < 6 else p for p in positions] for positions in trained]
        assert max(ranks[0]) < min(ranks[1])


class Broken(Sample):
    """A program that finds nothing, or that fails."""

    def __init__(self, error: Exception) -> None:
        super().__init__(2)
        object.__setattr__(self, "error", error)

    @property
    def makes(self) -> frozenset[str]:
        return frozenset({"x", "w", "l"})

    async def __call__(self, draft: Draft, tools: Tools, seed: int) -> Draft:
        raise self.error  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("error", "names"), [(Drop("tie"), "tie"), (ValueError("row 7 is odd"), "value_error")]
)
def test_a_run_that_cannot_go_on_says_why(error: Exception, names: str):
    run_settings = settings("max_drop_share=0.5")
    with pytest.raises(RunFailed, match=names):
        train(run_settings, recipe(run_settings, rollout=Broken(error)))


def test_a_weight_version_that_is_not_the_learners_ends_the_run():
    run_settings = settings()
    with Run(run_settings, recipe(run_settings)) as run:
        learner = run.learner
        assert learner is not None
        stream, taken = learner.stream, learner.train_step

        def train_step(*args: Any) -> Any:
            learner.stream = lambda: ((n, a * 1.01) for n, a in stream())  # type: ignore[method-assign]
            return taken(*args)

        learner.train_step = train_step  # type: ignore[method-assign]
        with pytest.raises(RunFailed, match="could not prove weight version 1"):
            run.train()


def test_a_saved_run_is_the_start_of_another(tmp_path: Path):
    run_settings = settings("learner.steps=1")
    with train(run_settings, recipe(run_settings)) as run:
        run.save(tmp_path / "model")
        rows = list(heldout_rows(6, 0))
        texts = run.greedy(rows)
    with Run(settings(f"model={tmp_path / 'model'}"), recipe(run_settings)) as other:
        assert other.greedy(rows) == texts


def test_work_is_done_where_it_is_submitted():
    order: list[int] = []
    futures = [InlineExecutor(1).submit(order.append, number) for number in range(3)]
    assert order == [0, 1, 2] and all(future.done() for future in futures)
    assert isinstance(InlineExecutor(1).submit(lambda: 1 / 0).exception(), ZeroDivisionError)
