"""What a recipe asks of a run beyond what its own slots say: checked before anything starts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any, Final, Literal, cast

from pipelines.decoding import Ability, Decoder
from pipelines.programs.damaging import Damage, DamageMany
from pipelines.programs.editing import Edited
from pipelines.programs.given import Offline, Recorded
from pipelines.recipe import Recipe
from pipelines.rollout import Pipe, Step
from pipelines.settings import Settings
from pipelines.training_requirements import training_problems

VLLM: Final[frozenset[Ability]] = frozenset({"prefix", "probe"})  # what the vLLM generator can


def backend_of(settings: Settings, recipe: Recipe) -> Literal["vllm", "transformers"]:
    """The engine of a run's generators: as set, or the first that can do what the recipe needs."""
    wanted = settings.rollout.engine.backend
    if wanted != "auto":
        return wanted
    if settings.deterministic:
        return "transformers"
    return "vllm" if needs_of(recipe) <= VLLM else "transformers"


def needs_of(recipe: Recipe) -> frozenset[Ability]:
    """Abilities of the engine, for programs and surveys."""
    probing = any(stage.order.key == "reference_gap" for stage in recipe.stages)
    survey: frozenset[Ability] = frozenset({"probe"}) if probing else frozenset()
    return recipe.needs | survey


def problems(settings: Settings, recipe: Recipe) -> Iterator[str]:
    """Why this run cannot follow this recipe: setting, cause and fix, one per line."""
    try:
        recipe.ends(settings.learner.steps)
    except ValueError as error:
        yield f"learner.steps: {error}"
    yield from training_problems(settings.learner, recipe)
    if settings.rollout.engine.backend == "vllm":
        yield from _beyond_vllm(recipe)
    if settings.sync.in_flight == "keep":
        yield from _against_mixed_versions(settings, recipe)
    if settings.editor == "world" and settings.data.source != "glyphs":
        for step in steps_of(recipe):
            if isinstance(step, Edited):
                yield (
                    f"editor: {recipe.name} rewrites answers ({step!r}), and 'world' edits captions of the "
                    "glyphs world alone; give your own editor as package.module:function"
                )
                break


def sees(recipe: Recipe) -> Step | None:
    """A step that every group of a stage has to pass and that drops prompts without media; None: no such."""
    for stage in recipe.stages:
        steps = stage.rollout.steps if isinstance(stage.rollout, Pipe) else (stage.rollout,)
        for step in steps:
            if isinstance(step, DamageMany) or (isinstance(step, Damage) and not step.optional):
                return step
    return None


def recorded_pairs(recipe: Recipe) -> bool:
    """Whether it learns from the columns `chosen` and `rejected`."""
    steps = list(steps_of(recipe))
    columns = {step.column for step in steps if isinstance(step, Recorded)}
    return any(isinstance(step, Offline) for step in steps) or columns >= {"chosen", "rejected"}


def other_models(recipe: Recipe) -> set[str]:
    """Paths of the checkpoints that its decoders read beside the policy and the reference."""
    decoders = [value for step in steps_of(recipe) for value in _values(step) if isinstance(value, Decoder)]
    return {decoder.checkpoint for decoder in decoders if decoder.checkpoint is not None}


def _against_mixed_versions(settings: Settings, recipe: Recipe) -> Iterator[str]:
    """Where an answer must not have tokens of several weight versions."""
    refused, fix = "sync.in_flight: keep mixes weight versions within an answer", "set it to wait or abort"
    if backend_of(settings, recipe) == "transformers":
        yield f"{refused}, and the Hugging Face generator decodes whole answers between two syncs; {fix}"
    for number, stage in enumerate(recipe.stages, start=1):
        lags = [settings.sync.max_lag, stage.freshness]
        if 0 in lags:
            yield f"{refused}, and stage {number} of {recipe.name} learns from the newest alone; {fix}"
        for _, term in stage.objective.terms:
            if "behaviour" in term.views:
                yield (
                    f"{refused}, and {term!r} of {recipe.name} compares the policy with the one version that "
                    f"sampled; {fix}"
                )


def _beyond_vllm(recipe: Recipe) -> Iterator[str]:
    for step in steps_of(recipe):
        beyond = sorted(step.needs - VLLM)
        if beyond and not any(inner.needs - VLLM for inner in _inside(step)):  # else the inner one is named
            yield (
                f"rollout.engine.backend: vLLM cannot do {beyond}, which {step!r} of {recipe.name} needs; "
                "set it to auto or transformers"
            )


def steps_of(recipe: Recipe) -> Iterator[Step]:
    """Every step of every program, those inside others included."""
    for stage in recipe.stages:
        yield from _all(stage.rollout)


def _all(step: Step) -> Iterator[Step]:
    yield step
    for inner in _inside(step):
        yield from _all(inner)


def _values(step: Step) -> list[Any]:
    return [getattr(step, entry.name) for entry in fields(step)] if is_dataclass(step) else []


def _inside(step: Step) -> Iterator[Step]:
    for value in _values(step):
        items: tuple[Any, ...] = cast("tuple[Any, ...]", value) if isinstance(value, tuple) else (value,)
        yield from (item for item in items if isinstance(item, Step))
