"""MFPO: modality-fair preference optimisation with noised key regions."""

from __future__ import annotations

from typing import Literal

from pipelines.comparisons import Edges
from pipelines.objectives.anchor import Anchor
from pipelines.objectives.pair import Pair
from pipelines.perturbations.base import RegionSelector
from pipelines.perturbations.diffuse import Diffuse
from pipelines.perturbations.grounding import GroundedBoxes, GroundedMasks
from pipelines.perturbations.keywords import GraphRank
from pipelines.perturbations.regions import KeyRegions, KnownBoxes
from pipelines.recipe import Recipe, Stage
from pipelines.rollout import Damage, best_and_worst
from pipelines.schedules import InOrder, Thirds

RegionKind = Literal["boxes", "grounded", "masks", "whole"]


def recipe(
    *,
    samples: int = 8,
    beta: float = 0.1,
    min_gap: float = 0.0,
    eta: float = 0.0,
    step: int = 500,
    space: Literal["pixels", "normalised"] = "pixels",
    regions: RegionKind = "boxes",
    detector: str | None = None,
    segmenter: str | None = None,
    threshold: float = 0.25,
    keywords: int = 5,
    curriculum: bool = True,
    survey: int = 8,
) -> Recipe:
    """Text pair + image pair + margin term, key regions noised, easy to hard.

    MFPO, arXiv 2410.15334 (abstract and one third-party note read; no code is public). Terms 1:1:1; the
    margin term is -log sigmoid(beta rho_w - eta). Regions are those of the `keywords` best words of the
    chosen answer: "boxes" takes them from the row's `boxes` column, "grounded" from a zero-shot `detector`,
    "masks" from that and a SAM 2 `segmenter`; "whole" noises the whole picture (the paper's ablation). When
    nothing is found the whole picture is noised and the damage says so. `curriculum` surveys `survey`
    answers per prompt and trains on equal thirds by semantic entropy.

    Inferred: beta, the number of keywords and of survey answers, entropy over clusters of equal meaning, a
    reference that stays frozen across the thirds, the detector between words and masks. The paper's pairs
    are offline; here the policy samples them.
    """
    damage = Damage("m", Diffuse(step, space), _selector(regions, detector, segmenter, threshold, keywords))
    return Recipe(
        name="mfpo",
        paper="Modality-Fair Preference Optimization for Trustworthy MLLM Alignment, arXiv 2410.15334",
        source="third-party note and abstract; defaults partly inferred. Online pairs are ours",
        stage=Stage(
            rollout=best_and_worst(samples, min_gap) >> damage,
            compare=Edges({"text": ("w@x", "l@x"), "media": ("w@x", "w@m")}),
            objective=Pair("text", beta) + Pair("media", beta) + Anchor("text.winner", eta, beta),
            order=Thirds(survey) if curriculum else InOrder(),
        ),
    )


def _selector(
    regions: RegionKind, detector: str | None, segmenter: str | None, threshold: float, keywords: int
) -> RegionSelector | None:
    """The selector that the parameters ask for; ValueError names a model path that is missing or unused."""
    wanted = {"detector": regions in ("grounded", "masks"), "segmenter": regions == "masks"}
    for name, path in (("detector", detector), ("segmenter", segmenter)):
        if wanted[name] != (path is not None):
            problem = "needs" if wanted[name] else "does not use"
            raise ValueError(f"mfpo: regions={regions!r} {problem} `{name}` (path of a model), got {path!r}")
    rank = GraphRank(keywords)
    if detector is not None and segmenter is not None:
        return KeyRegions(rank, GroundedMasks(detector, segmenter, threshold))
    if detector is not None:
        return KeyRegions(rank, GroundedBoxes(detector, threshold))
    return KeyRegions(rank, KnownBoxes()) if regions == "boxes" else None
