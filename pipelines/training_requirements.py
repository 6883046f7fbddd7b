"""What a recipe's stages ask of the learner, refused before it starts where it cannot be done."""

from __future__ import annotations

from collections.abc import Iterator

from pipelines.objectives.base import REFERENCE_FEATURES, Objective
from pipelines.recipe import Extrapolate, MergeAdapter, Recipe, Refresh, Stage
from pipelines.references import Blended, Harmonic, NoReference
from pipelines.settings import LearnerSettings

SMALLEST_BLEND = 2**-6  # of a bfloat16 weight: a smaller share of a difference is mostly rounded away


def require_possible(settings: LearnerSettings, recipe: Recipe) -> None:
    """Raises ValueError naming each stage that these settings cannot train, with the reason and the fix."""
    if problems := list(training_problems(settings, recipe)):
        raise ValueError("; ".join(problems))


def training_problems(settings: LearnerSettings, recipe: Recipe) -> Iterator[str]:
    """Why the learner cannot train this recipe: stage, reason and fix."""
    for number, stage in enumerate(recipe.stages):
        for check in (_adapter_problems, _reference_problems, _coupling_problems):
            for problem in check(stage, settings):
                yield f"stage {number} of recipe {recipe.name!r}: {problem}"
    heads = {head for stage in recipe.stages for head in stage.objective.heads}
    if len({head.name for head in heads}) < len(heads):
        names = sorted(head.name for head in heads)
        yield f"recipe {recipe.name!r} declares different heads of one name: {names}; rename one"


def _adapter_problems(stage: Stage, settings: LearnerSettings) -> Iterator[str]:
    merged = False
    for action in stage.then:
        if isinstance(action, MergeAdapter):
            merged = True
            if settings.lora is None:
                yield "it merges an adapter, but learner.lora is null; set learner.lora.rank"
        if isinstance(action, Refresh) and settings.lora is not None and not merged:
            yield (
                "with LoRA the reference is the base without the adapter, so it cannot be refreshed alone; "
                "put MergeAdapter() in front of Refresh(), or set learner.lora=null"
            )
        if isinstance(action, Extrapolate) and settings.lora is not None:
            yield "extrapolating LoRA factors is not extrapolating weights; set learner.lora=null"
    if isinstance(stage.reference, Blended) and settings.lora is not None:
        yield "blending LoRA factors is not blending weights; set learner.lora=null"


def _reference_problems(stage: Stage, settings: LearnerSettings) -> Iterator[str]:
    objective, reference = stage.objective, stage.reference
    if isinstance(reference, NoReference) and objective.reads_reference:
        yield f"{_first(objective)} reads a reference, but the stage has none; give it one"
    if isinstance(reference, Harmonic) and (features := sorted(REFERENCE_FEATURES & objective.needs)):
        reader = next(repr(term) for _, term in objective.terms if REFERENCE_FEATURES & term.needs)
        yield (
            f"a harmonic mean of several models is defined for answers, not for the {features} that "
            f"{reader} needs; use one reference"
        )
    small = isinstance(reference, Blended) and reference.alpha < SMALLEST_BLEND
    if small and settings.dtype == "bfloat16":
        yield (
            f"in bfloat16 a blend of less than {SMALLEST_BLEND:g} is lost to rounding; blend more and less "
            "often, or set learner.dtype=float32"
        )


def _first(objective: Objective) -> str:
    return next(repr(t) for _, t in objective.terms if "reference" in t.views or REFERENCE_FEATURES & t.needs)


def _coupling_problems(stage: Stage, settings: LearnerSettings) -> Iterator[str]:
    for _, term in stage.objective.terms:
        if term.coupled and (term.needs or term.heads):
            yield (
                f"{term!r} is coupled, so it reads log-probabilities of the global batch alone: no features "
                "and no heads"
            )
