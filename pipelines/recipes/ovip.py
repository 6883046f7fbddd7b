"""OViP: gated pairs of own answers, and a picture that was made to fit the rejected one."""

from __future__ import annotations

from pipelines.comparing.several import Each
from pipelines.perturbations.replace import Generate
from pipelines.programs.choosing import Choose, Gated, Pairs
from pipelines.programs.damaging import Damage
from pipelines.programs.given import Gold
from pipelines.programs.mixing import Otherwise
from pipelines.programs.repeating import ForEach
from pipelines.programs.sampling import Sample
from pipelines.recipe import Recipe, Stage
from pipelines.recipes._multimodal import RENDERER, TEXT_AND_MEDIA, renderer_of, three_terms
from pipelines.rewards.gates import Floors, MinGap


def recipe(
    *,
    samples: int = 16,
    pairs: int = 3,
    beta: float = 0.1,
    gap: float = 3.0,
    of_std: float = 2.0,
    floor: float = 6.0,
    replay: float = 0.25,
    renderer: str = RENDERER,
) -> Recipe:
    """Text pair + media pair + anchor; the rejected picture shows what the rejected answer says.

    OViP, arXiv 2505.15963 (code read). The i-th best answer meets the i-th worst while their gap is at least
    `gap` and `of_std` deviations of the group, and the winner scores at least `floor` (a judge's scale of 0
    to 10; choose them for the run's reward), up to `pairs` pairs. With bad samples only, the gold answer is
    chosen. There a language model writes an edit and FLUX draws it; here `renderer` ("module:function") draws
    the rejected answer. A share `replay` of a step's comparisons comes from earlier ones (share inferred).
    """
    gates = (MinGap(gap, of_std), Floors(floor))
    own = Pairs(gates, pairs)
    taught = Gold("g", judged=True) >> Choose(of="g", against="y") >> Gated((MinGap(gap, of_std),))
    draw = ForEach(("w", "l"), Damage("m", Generate(renderer_of(renderer)), of="l"))
    return Recipe(
        name="ovip",
        paper="OViP: Online Vision-Language Preference Learning for VLM Hallucination, arXiv 2505.15963",
        source="code read; share of replay inferred",
        stages=(
            Stage(
                rollout=Sample(samples) >> Otherwise(own, taught, frozenset({"winner_below_floor"})) >> draw,
                compare=Each(("w", "l"), TEXT_AND_MEDIA, prompts=("m",)),
                objective=three_terms(beta),
                replay=replay,
            ),
        ),
    )
