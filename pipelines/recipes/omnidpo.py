"""OmniDPO: a text pair, and one media pair per kind of media."""

from __future__ import annotations

from pipelines.comparisons import Edges
from pipelines.objectives.pair import Pair
from pipelines.perturbations.noise import Gaussian
from pipelines.programs.asking import Ask
from pipelines.programs.choosing import Unlike, best_and_worst
from pipelines.programs.damaging import Damage
from pipelines.programs.sampling import Sample
from pipelines.recipe import Recipe
from pipelines.recipes._text import one_stage
from pipelines.rollout import Step
from pipelines.types import MediaKind


def recipe(
    *,
    kinds: tuple[MediaKind, ...] = ("image",),
    samples: int = 8,
    min_gap: float = 0.0,
    hint: str | None = None,
    beta: float = 0.1,
    lam: float = 1.0,
    std: float = 0.3,
) -> Recipe:
    """Text pair + lam * a pair (w under x, w under x with that kind of media noised) for every kind.

    OmniDPO, arXiv 2509.00723 (third-party note), has `kinds` ("video", "audio"): each edge damages one kind
    and leaves the other. Noise is Gaussian; its `std` is not reported. A prompt without a kind is dropped by
    name ("no_audio_to_damage"). The noise for video and audio is a plug of its own; the one here refuses all
    but images.

    There the chosen answer was given with a caption of the sound and the rejected one without; `hint` names
    the column with such a text. Without `hint` the pair is the best and the worst of `samples` answers.
    """
    if not kinds or len(set(kinds)) < len(kinds):
        raise ValueError(f"omnidpo: kinds must name each kind of media once, got {kinds}")
    program: Step = best_and_worst(samples, min_gap)
    if hint is not None:
        program = (
            Ask("hinted", f"{{{hint}}}")
            >> Sample(1, "w", under="hinted", judged=False)
            >> Sample(1, "l", judged=False)
            >> Unlike("w", "l")
        )
    edges = {"text": ("w@x", "l@x")}
    objective = 1.0 * Pair("text", beta)
    for kind in kinds:
        program = program >> Damage(kind, Gaussian(std), kinds=(kind,))
        edges[kind] = ("w@x", f"w@{kind}")
        objective = objective + lam * Pair(kind, beta)
    return one_stage(
        "omnidpo",
        paper="OmniDPO: A Preference Optimization Framework to Address Omni-Modal Hallucination, "
        "arXiv 2509.00723",
        source="third-party note; strength of the noise inferred",
        rollout=program,
        compare=Edges(edges),
        objective=objective,
        experimental=True,
    )
