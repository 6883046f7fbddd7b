"""Every recipe trains: a few real steps on the glyphs world, through the same loop as a run, in one process.

What must hold for all of them: losses and gradients are finite and not zero, the reference has storage of its
own and moves only when its stage says so, frozen parameters stay, heads move, and the comparisons hold what
the objective reads.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from actors.in_process import Run, Trained
from pipelines import recipes
from pipelines.data.glyphs import GlyphsSource
from pipelines.recipe import Extrapolate, MergeAdapter, Recipe, Refresh, Stage
from pipelines.references import Blended, NoReference
from pipelines.rewards.world import World
from pipelines.settings import Settings, load
from pipelines.types import NEVER_STALE, Comparison, Group, Media, Prompt, Response, Score
from pipelines.worlds.glyphs import BASE_MODEL

GROUPS = 3
BUDGET = (
    f"learner.groups_per_step={GROUPS}",
    "learner.warmup_steps=0",
    "learner.lr=3e-4",
    "learner.zero_stage=0",
    "sync.max_lag=0",
    "data.questions=0.0",
    "data.count=240",
    "rollout.max_tokens=32",
)


class UsersSource(GlyphsSource):
    """The world's rows, each with four choices that its user made before."""

    def prompt(self, row: Any) -> tuple[Prompt, dict[str, Media]]:
        prompt, media = super().prompt(row)
        pair = {side: prompt.gold[side] for side in ("chosen", "rejected")}
        shots = [{"question": "describe the image .", **pair}] * 4
        return replace(prompt, gold={**prompt.gold, "shots": shots}), media


@dataclass(frozen=True)
class Aspects:
    """The world's verdict, with parts that pull apart: what is said well, and how little is said."""

    def __call__(self, prompt: Prompt, response: Response) -> Score:
        score = World()(prompt, response)
        parts = {"helpfulness": score.parts["right"], "brevity": -float(len(response.text.split()))}
        return replace(score, parts={**score.parts, **parts})


@dataclass(frozen=True, kw_only=True)
class Needs:
    """What a recipe is given, and why its defaults do not do."""

    why: str
    method: Mapping[str, Any] = field(default_factory=dict[str, Any])
    settings: tuple[str, ...] = ()
    source: Callable[[], Any] = lambda: None
    reward: Any = None


# Run with their defaults, but for four samples where they take a number of them.
AS_THEY_ARE = """
    adavip aigi_holmes alpha_po aot aot_unpaired apo_accelerated apo_down apo_zero bco bco_pair bdhs best_of_n
    bpo_mmsafe cat_adpo cdpo chip chip_released clip_dpo cpo critic_v dcd discopop dpo exo f_dpo fact_rlhf
    fine_grained_edits flex_dpo harmo haven_tdpo hinge_dpo hypo_coverage hypo_gating implicit_sft internvl_mpo
    ipo ipo_sum kto language_feedback ld_dpo llava_critic_r1 ln_dpo lpoi m3id_dpo mapl mcr mdpo mfpo mia_dpo
    mixed_dpo mmedpo molpo mrdpo napo nash_md nca omnidpo online_dpo opa_dpo orpo ovip pami_vdpo povid pref_ft
    pro ranklist rationale_dpo rationale_orpo realign_rdpo remedy_regression robust_dpo rpo_sft rrpo rwr simpo
    single_source slic sparse_po spo_degrees sport sppo sppo_hard synthalign_pds tars task_po temple tpo_tree
    tpo_triple unified_reward unified_reward_think uv_cot vdd vision_r1 vpo_incentivized wpo xpo
"""
WITH = {
    "carevl": Needs(
        why="its judges agree on nearly all short captions, and the small model knows one form of questions",
        method={"judges": ("helpfulness", "brevity"), "template": "is there {first} not {second} ?"},
        settings=("rollout.temperature=1.5",),
        reward=Aspects(),
    ),
    "curri_dpo": Needs(why="three answers have to be worse than the best one", method={"samples": 12}),
    "dpa": Needs(why="it follows two parts of a score", reward=Aspects()),
    "fspo": Needs(why="it shows a user's earlier choices", source=lambda: UsersSource(count=60, seed=0)),
    "modpo": Needs(why="one objective alone would be DPO", method={"others": {"right": 0.5}}),
    "mrpo": Needs(why="one reference alone would be DPO", method={"others": (str(BASE_MODEL),)}),
    "tr_dpo": Needs(why="two steps have to see the reference move", method={"every": 1, "alpha": 0.5}),
}
FORMS = {  # further forms of a recipe that take other paths through the learner
    "dpo, recorded": ("dpo", Needs(why="nobody samples", method={"pairs": "recorded"})),
    "dpo, mixed and reused": (
        "dpo",
        Needs(
            why="fresh and recorded pairs, trained twice",
            method={"pairs": "mixed", "on_policy": 0.5, "uses": 2},
        ),
    ),
    "sparse_po, learned": ("sparse_po", Needs(why="a head makes masks", method={"masks": "independent"})),
    "curri_dpo, pooled": ("curri_dpo", Needs(why="three edges", method={"samples": 12, "pooled": True})),
    "povid, one sigmoid": ("povid", Needs(why="joined edges", method={"form": "one_sigmoid"})),
    "mrdpo, adapters": (
        "mrdpo",
        Needs(why="adapters are merged", method={"lora": True}, settings=("learner.lora.rank=4",)),
    ),
}
CASES = {name: (name, Needs(why="")) for name in AS_THEY_ARE.split()}
CASES |= {name: (name, needs) for name, needs in WITH.items()} | FORMS


def test_every_recipe_is_run() -> None:
    assert set(AS_THEY_ARE.split()).isdisjoint(WITH) and all(needs.why for needs in WITH.values())
    assert sorted({name for name, _ in CASES.values()}) == recipes.names()


def built(name: str, needs: Needs) -> tuple[Settings, Recipe]:
    """With as many steps as it takes for each stage to get one, and at least two."""
    samples = {"samples": 4} if any(p.name == "samples" for p in recipes.parameters(name)) else {}
    recipe = recipes.load(name, {**samples, **needs.method})

    def fits(steps: int) -> bool:
        try:
            return bool(recipe.ends(steps))
        except ValueError:
            return False

    steps = next(steps for steps in count(2) if fits(steps))
    return load(None, [*BUDGET, f"learner.steps={steps}", *needs.settings]), recipe


Weights = dict[str, Tensor]


def copied(module: torch.nn.Module) -> Weights:
    return {name: value.detach().clone() for name, value in module.named_parameters()}


def same(one: Weights, other: Weights) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


class Watch:
    """Looks at the learner after each step of a run."""

    def __init__(self, run: Run) -> None:
        assert run.learner is not None
        self.recipe, self.ends = run.recipe, run.recipe.ends(run.settings.learner.steps)
        self.policy = copied(run.learner.policy.model)
        self.start = dict(self.policy)
        self.heads = copied(torch.nn.ModuleDict(run.learner.heads.modules))
        self.reference: Weights | None = None
        self.stage = 0
        self.lora = run.settings.learner.lora is not None

    def __call__(self, trained: Trained) -> None:
        stage = self.recipe.stages[trained.learner.stage]
        assert trained.learner.stage == self.recipe.stage_at(trained.step, self.ends[-1])
        self._numbers(trained, stage)
        self._reference(trained, stage)
        self._policy(trained, stage)
        check_groups(trained.groups, stage, trained)

    def _numbers(self, trained: Trained, stage: Stage) -> None:
        metrics = trained.result.metrics
        assert trained.result.applied and not trained.result.bad
        assert math.isfinite(metrics["loss"]) and 0 < metrics["grad_norm"] < math.inf
        assert metrics["lag_max"] == 0 and metrics["groups"] == GROUPS
        logged = {key for key in metrics if key.startswith("loss/")}
        assert logged and len(logged) <= len(stage.objective.terms)

    def _policy(self, trained: Trained, stage: Stage) -> None:
        """Frozen parameters are what they were, bit for bit; some of the trained ones moved."""
        model = trained.learner.policy.model
        now, free = copied(model), {n for n, p in model.named_parameters() if p.requires_grad}
        if trained.learner.stage == self.stage:
            before = self.policy
            moved = {name for name in now if name in before and not torch.equal(now[name], before[name])}
            assert moved <= free and moved
        if stage.trainable:
            assert 0 < len(free) < len(now)
        elif not self.lora:
            assert free == set(now)
        elif trained.learner.stage > self.stage and stage.init == "previous":
            then = self.recipe.stages[self.stage].then
            assert trained.learner.policy.merged is any(isinstance(action, MergeAdapter) for action in then)
        self.policy, self.stage = now, trained.learner.stage

    def _reference(self, trained: Trained, stage: Stage) -> None:
        """Its storage is its own, it takes no gradient, and it is what the stages made of it."""
        twin = trained.learner.references.twin
        if not stage.objective.reads_reference:
            assert twin is None or trained.learner.stage > 0
            return
        if self.lora:
            assert twin is None  # the base without its adapter
            return
        assert twin is not None and not isinstance(stage.reference, NoReference)
        held = {tensor.data_ptr() for tensor in trained.learner.policy.model.state_dict().values()}
        assert held.isdisjoint(tensor.data_ptr() for tensor in twin.model.state_dict().values())
        assert not any(parameter.requires_grad for parameter in twin.model.parameters())
        now = copied(twin.model)
        expected = self._expected(trained, stage)
        if expected is not None:
            assert all(torch.allclose(now[name], expected[name], atol=1e-6) for name in now)
        assert isinstance(stage.reference, Blended) or expected is None or same(now, expected)
        self.reference = now

    def _expected(self, trained: Trained, stage: Stage) -> Weights | None:
        """None: the stage before extrapolated, which is tested with the learner."""
        before = self.reference or self.start
        if isinstance(stage.reference, Blended):
            share, now = stage.reference.alpha, copied(trained.learner.policy.model)
            return {name: (1 - share) * before[name] + share * now[name] for name in before}
        if trained.learner.stage == self.stage:
            return before
        then = self.recipe.stages[self.stage].then
        if any(isinstance(action, Extrapolate) for action in then):
            return None
        return self.policy if any(isinstance(action, Refresh) for action in then) else before

    def finish(self, run: Run) -> None:
        """All steps were trained, each version proved, and heads moved where a stage trains one."""
        assert run.learner is not None
        assert len(run.metrics) == self.ends[-1] and all(proof.holds for proof in run.proofs)
        trained = {head.name for stage in self.recipe.stages for head in stage.objective.heads}
        assert set(run.learner.heads.modules) == trained
        after = copied(torch.nn.ModuleDict(run.learner.heads.modules))
        for name in trained:
            own = [key for key in after if key.startswith(f"{name}.")]
            assert own and any(not torch.equal(after[key], self.heads[key]) for key in own), name


def check_groups(groups: Sequence[Group], stage: Stage, trained: Trained) -> None:
    """What the objective reads is there, fresh, and shown with its media."""
    comparisons = [comparison for group in groups for comparison in group.comparisons]
    edges = {edge.name for comparison in comparisons for edge in comparison.preferences}
    roles = {cell.role for comparison in comparisons for cell in comparison.candidates}
    optional = {"kl"} if trained.step == 1 else set()  # nobody answered another prompt yet
    assert stage.objective.edges <= edges and stage.objective.roles <= roles | optional
    for group in groups:
        assert group.version in (trained.step - 1, NEVER_STALE) or group.use > 1
        for comparison in group.comparisons:
            assert comparison.stage == trained.learner.stage
            check_comparison(comparison, group)


def check_comparison(comparison: Comparison, group: Group) -> None:
    for prompt in comparison.prompts:
        assert set(prompt.media) <= set(group.media) and not prompt.acts
    for cell in comparison.candidates:
        if cell.behaviour is not None:
            assert len(cell.behaviour.logps) == len(comparison.responses[cell.response].tokens)
    for edge in comparison.preferences:
        sides = [comparison.candidates[side] for side in (edge.winner, edge.loser)]
        one, other = (comparison.prompts[side.prompt] for side in sides)
        if comparison.axis(edge) == "text":
            first, second = (comparison.responses[side.response] for side in sides)
            assert (first.tokens, first.scored) != (second.tokens, second.scored)
        elif comparison.axis(edge) == "media" and one.media and other.media:
            assert one.messages != other.messages
            for clean, damaged in zip(one.media, other.media, strict=False):
                check_damage(group.media[clean], group.media[damaged])
        for weights, side in (
            (w, s) for spans in edge.spans.values() for w, s in zip(spans, sides, strict=True)
        ):
            assert len(weights) == len(comparison.responses[side.response].tokens)


def check_damage(clean: Media, damaged: Media) -> None:
    """A picture damaged in boxes is the same outside of them."""
    if clean.digest == damaged.digest or damaged.op is None or damaged.parent != clean.digest:
        return
    assert damaged.payload.shape != clean.payload.shape or (damaged.payload != clean.payload).any()
    boxes = damaged.op.params.get("boxes")
    if not boxes or damaged.op.params.get("fallback") or damaged.payload.shape != clean.payload.shape:
        return
    inside = np.zeros(clean.payload.shape[:2], dtype=np.bool_)
    for x0, y0, x1, y1 in boxes:
        inside[math.floor(y0) : math.ceil(y1), math.floor(x0) : math.ceil(x1)] = True
    assert np.array_equal(clean.payload[~inside], damaged.payload[~inside])


@pytest.mark.parametrize("case", sorted(CASES))
def test_it_trains(case: str) -> None:
    name, needs = CASES[case]
    settings, recipe = built(name, needs)
    with Run(settings, recipe, source=needs.source(), reward=needs.reward) as run:
        watch = Watch(run)
        run.train(watch)
        watch.finish(run)
