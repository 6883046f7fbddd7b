"""TARS: preferences that hold while tokens are corrupted, with a spectral triplet on hidden states."""

from __future__ import annotations

from pipelines.comparisons import Cells, Edges
from pipelines.objectives.fourier import FftTriplet
from pipelines.objectives.pair import Pair
from pipelines.perturbations.diffuse import Diffuse
from pipelines.programs.damaging import Damage
from pipelines.programs.editing import Corrupt
from pipelines.recipe import Recipe
from pipelines.recipes._multimodal import SIMILARITY, similarity_of
from pipelines.recipes._text import Pairs, one_stage, pairs_from


def recipe(
    *,
    pairs: Pairs = "online",
    samples: int = 8,
    min_gap: float = 0.0,
    beta: float = 0.1,
    share: float = 0.05,
    targeted: bool = True,
    similarity: str = SIMILARITY,
    step: int = 500,
    spectral: float = 0.1,
    margin: float = 0.5,
) -> Recipe:
    """Text pair and media pair on corrupted answers + 0.1 * a triplet of Fourier spectra.

    TARS, arXiv 2507.21584 (code read). The min-max game's inner step draws: a `share` of both answers' tokens
    is replaced where fed and not scored there, likelier where a token fits the picture less (`targeted`; else
    uniformly, an ablation). The media twin is the picture at diffusion `step`. The triplet wants the spectrum
    of the corrupted winner's hidden states nearer to the reference's of the clean winner than of the loser,
    by `margin`. `similarity`: "module:name" or the folder of a CLIP checkpoint. There the pairs are recorded.
    """
    corrupt = Corrupt({"cw": "w", "cl": "l"}, share, similarity_of(similarity) if targeted else None)
    return one_stage(
        "tars",
        paper="TARS: MinMax Token-Adaptive Preference Strategy for Hallucination Reduction in MLLMs, "
        "arXiv 2507.21584",
        source="code read. Replacements come from the group's own answers",
        rollout=pairs_from(pairs, samples, min_gap) >> corrupt >> Damage("m", Diffuse(step)),
        compare=Edges({"text": ("cw@x", "cl@x"), "media": ("cw@x", "cw@m")})
        | Cells({"clean": "w@x", "clean_loser": "l@x"}),
        objective=Pair("text", beta)
        + Pair("media", beta)
        + spectral * FftTriplet("text.winner", "clean", "clean_loser", margin),
    )
