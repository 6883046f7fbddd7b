"""What is trained: a recipe, and what differs from the common budget."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from pipelines import recipes
from pipelines.comparisons import Edges
from pipelines.objectives.anchor import Anchor
from pipelines.objectives.base import Objective, Term
from pipelines.objectives.pair import Pair
from pipelines.perturbations.crop import Crop
from pipelines.perturbations.diffuse import Diffuse
from pipelines.perturbations.selectors import RandomFraction
from pipelines.programs.choosing import best_and_worst
from pipelines.programs.damaging import Blind, Damage
from pipelines.programs.given import Offline
from pipelines.recipe import Recipe, Refresh, Stage
from pipelines.rollout import Draft, Step, Tools

__all__ = ["ARMS", "Arm"]

Cells = Mapping[str, tuple[str, str]]
SAMPLES = 4
TEXT = ("w@x", "l@x")
MEDIA = ("w@x", "w@m")


@dataclass(frozen=True)
class Arm:
    """`build` makes the recipe; `settings` are dotted overrides of the budget."""

    build: Callable[[], Recipe]
    settings: Mapping[str, Any] = field(default_factory=dict[str, Any])
    shows: tuple[str, ...] = ()  # recipes of the library that it stands for


def named(name: str, **parameters: Any) -> Arm:
    """A recipe of the library as it is."""
    return Arm(lambda: recipes.load(name, parameters), shows=(name,))


def made(
    name: str, objective: Term | Objective, program: Step, edges: Mapping[str, tuple[str, str]]
) -> Recipe:
    stage = Stage(rollout=program, compare=Edges(edges), objective=1.0 * objective)
    return Recipe(name=name, paper="an arm of a comparison", source="this file", stages=(stage,))


def pairs() -> Step:
    return best_and_worst(SAMPLES)


def blind_dpo() -> Recipe:
    """DPO whose pairs are scored without the picture (they were sampled with it)."""
    edges = {"text": ("w@blind", "l@blind")}
    return made("dpo_no_image", Pair("text"), pairs() >> Blind("blind"), edges)


def three_terms(damage: Damage, *, text: bool = True, media: bool = True, anchor: bool = True) -> Recipe:
    """mDPO's and MFPO's loss, with terms left out."""
    terms: list[Term] = [
        term
        for term, used in ((Pair("text"), text), (Pair("media"), media), (Anchor("text.winner"), anchor))
        if used
    ]
    objective = Objective(tuple((1.0, term) for term in terms))
    return made("three_terms", objective, pairs() >> damage, {"text": TEXT, "media": MEDIA})


def with_damage(damage: Damage) -> Arm:
    return Arm(lambda: three_terms(damage))


def ablated(damage: Damage, **terms: bool) -> Arm:
    return Arm(lambda: three_terms(damage, **terms))


@dataclass(frozen=True)
class Flip(Step):
    """Swaps chosen and rejected answer of a share of the prompts, always the same: a labeller who errs."""

    share: float

    async def __call__(self, draft: Draft, tools: Tools, seed: int) -> Draft:
        if random.Random(draft.prompt.id).random() >= self.share:
            return draft
        chosen = {**draft.chosen, "w": draft.chosen["l"], "l": draft.chosen["w"]}
        return replace(draft, chosen=chosen)


def flipped(name: str, share: float = 0.3, **parameters: Any) -> Arm:
    """A recipe on few recorded pairs with flipped labels, seen so often that the flips can be learned."""

    def build() -> Recipe:
        recipe = recipes.load(name, {"pairs": "recorded", **parameters})
        stages = tuple(replace(stage, rollout=stage.rollout >> Flip(share)) for stage in recipe.stages)
        return replace(recipe, stages=stages)

    return Arm(build, {"data.count": 48, "learner.steps": 40, "learner.lr": 1e-4}, shows=(name,))


def rounds(count: int, *, refresh: bool) -> Arm:
    """Online DPO in rounds; the reference is renewed after each, or never."""

    def build() -> Recipe:
        recipe = recipes.load("dpo", {"samples": SAMPLES})
        stage = replace(recipe.stages[0], then=(Refresh(),) if refresh else ())
        return replace(recipe, stages=(stage,) * count)

    return Arm(build, shows=("dpo",))


def corrections(*, aligned: bool) -> Arm:
    """OPA-DPO, or its second stage alone: DPO on corrections that the policy would not say."""

    def build() -> Recipe:
        recipe = recipes.load("opa_dpo", {})
        return recipe if aligned else replace(recipe, stages=recipe.stages[1:])

    return Arm(build, shows=("opa_dpo",))


def _key_regions() -> Damage:
    return _damage_of("mfpo", samples=SAMPLES)


def _damage_of(name: str, **parameters: Any) -> Damage:
    """The damage step of a recipe."""
    program = recipes.load(name, parameters).stages[0].rollout
    return next(step for step in getattr(program, "steps", ()) if isinstance(step, Damage))


def longer(name: str) -> Arm:
    """An arm with a budget after which little changes."""
    return Arm(lambda: ARMS[name].build(), {"learner.steps": 40, "learner.lr": 4e-5}, (SHOWN[name],))


SHOWN = {"dpo": "dpo", "mdpo": "mdpo", "mfpo_once": "mfpo"}
KEY = _key_regions()
WHOLE = Damage("m", Diffuse(500))
SOMEWHERE = Damage("m", Diffuse(500), RandomFraction(0.2))
CROP = Damage("m", Crop(0.01, 0.2))
ROUND = 5  # learner steps of a round of accelerated optimisation

ARMS: dict[str, Arm] = {
    "dpo": Arm(
        lambda: made("dpo", Pair("text"), pairs() >> KEY, {"text": TEXT, "media": MEDIA}), shows=("dpo",)
    ),
    "dpo_no_image": Arm(blind_dpo),
    "mdpo": Arm(lambda: three_terms(CROP), shows=("mdpo",)),
    "mdpo_no_text": ablated(CROP, text=False),
    "mdpo_no_media": ablated(CROP, media=False),
    "mdpo_no_anchor": ablated(CROP, anchor=False),
    "mfpo_once": Arm(lambda: three_terms(KEY), shows=("mfpo",)),
    "mfpo_thirds": named("mfpo", samples=SAMPLES, survey=4),
    "mfpo_random_region": with_damage(SOMEWHERE),
    "mfpo_whole": with_damage(WHOLE),
    "mfpo_no_text": ablated(KEY, text=False),
    "mfpo_no_media": ablated(KEY, media=False),
    "mfpo_no_anchor": ablated(KEY, anchor=False),
    "dpo_long": longer("dpo"),
    "mdpo_long": longer("mdpo"),
    "mfpo_long": longer("mfpo_once"),
    "opa_dpo": corrections(aligned=True),
    "corrections_dpo": corrections(aligned=False),
    "rounds_refreshed": rounds(3, refresh=True),
    "rounds_fixed": rounds(3, refresh=False),
    "recorded_dpo": named("dpo", pairs="recorded"),
    "sampled_dpo": named("dpo", samples=SAMPLES),
    "mixed_dpo": named("mixed_dpo", samples=SAMPLES),
    "dpo_flipped": flipped("dpo"),
    "robust_flipped": flipped("robust_dpo", flip=0.3),
    "cdpo_flipped": flipped("cdpo", smoothing=0.3),
    "apo_2": replace(
        named("apo_accelerated", samples=SAMPLES, rounds=2), settings={"learner.steps": 2 * ROUND}
    ),
    "plain_2": replace(
        named("apo_accelerated", samples=SAMPLES, rounds=2, alpha=0.0), settings={"learner.steps": 2 * ROUND}
    ),
    "plain_3": replace(
        named("apo_accelerated", samples=SAMPLES, rounds=3, alpha=0.0), settings={"learner.steps": 3 * ROUND}
    ),
    "curri": named("curri_dpo"),
    "curri_same_reference": named("curri_dpo", refresh=False),
    "mfpo_recorded": Arm(
        lambda: made(
            "mfpo_recorded",
            Pair("text") + Pair("media") + Anchor("text.winner"),
            Offline() >> KEY,
            {"text": TEXT, "media": MEDIA},
        ),
        shows=("mfpo",),
    ),
    # Three pairs a group: a third of the groups, as many pairs.
    "pooled": replace(named("curri_dpo", pooled=True), settings={"learner.groups_per_step": 4}),
}
