"""What the recipes of multimodal methods share: regions, pictures, similarities, the usual three terms."""

from __future__ import annotations

import importlib
from dataclasses import replace
from typing import Any, Literal

from pipelines.comparisons import Edges
from pipelines.objectives.anchor import Anchor
from pipelines.objectives.base import Objective
from pipelines.objectives.pair import Pair
from pipelines.perturbations.base import RegionSelector
from pipelines.perturbations.grounding import GroundedBoxes, GroundedMasks
from pipelines.perturbations.keywords import GraphRank
from pipelines.perturbations.regions import KeyRegions, KnownBoxes
from pipelines.perturbations.replace import Bank, FolderBank, Renderer
from pipelines.perturbations.selectors import RandomFraction
from pipelines.perturbations.similarity import ClipSimilarity, Similarity
from pipelines.recipe import Action, MergeAdapter, Refresh, Stage
from pipelines.worlds.glyphs.views import GlyphsBank

RegionKind = Literal["boxes", "grounded", "masks", "random", "whole"]
SIMILARITY = "pipelines.worlds.glyphs.views:similarity"
RENDERER = "pipelines.worlds.glyphs.views:render_text"
PAINTER = "pipelines.worlds.glyphs.views:render_anew"
TEXT_AND_MEDIA = Edges({"text": ("w@x", "l@x"), "media": ("w@x", "w@m")})


def three_terms(beta: float, delta: float = 0.0) -> Objective:
    """Text pair + media pair + anchor on the chosen answer, 1:1:1 (mDPO's objective)."""
    return Pair("text", beta) + Pair("media", beta) + Anchor("text.winner", delta, beta)


def regions_of(
    method: str,
    regions: RegionKind,
    keywords: int = 5,
    share: float = 0.2,
    detector: str | None = None,
    segmenter: str | None = None,
    threshold: float = 0.25,
) -> RegionSelector | None:
    """The selector that a recipe's parameters ask for; ValueError names a model path missing or unused.

    "boxes": the row's `boxes` that the `keywords` best words of the answer name; "grounded": those that a
    zero-shot `detector` finds; "masks": masks of these by a SAM 2 `segmenter`; "random": `share` of the
    pixels; "whole": everywhere.
    """
    wanted = {"detector": regions in ("grounded", "masks"), "segmenter": regions == "masks"}
    for name, path in (("detector", detector), ("segmenter", segmenter)):
        if wanted[name] != (path is not None):
            problem = "needs" if wanted[name] else "does not use"
            raise ValueError(
                f"{method}: regions={regions!r} {problem} `{name}` (path of a model), got {path!r}"
            )
    rank = GraphRank(keywords)
    if detector is not None and segmenter is not None:
        return KeyRegions(rank, GroundedMasks(detector, segmenter, threshold))
    if detector is not None:
        return KeyRegions(rank, GroundedBoxes(detector, threshold))
    if regions == "random":
        return RandomFraction(share)
    return KeyRegions(rank, KnownBoxes()) if regions == "boxes" else None


def plug(where: str) -> Any:
    """The object at "module:name". Raises ValueError when there is none."""
    module, colon, name = where.partition(":")
    try:
        if not colon:
            raise ValueError("expected module:name")
        return getattr(importlib.import_module(module), name)
    except Exception as error:  # a module of the user may fail in any way
        raise ValueError(f"{where!r} cannot be imported: {error}") from error


def similarity_of(where: str) -> Similarity:
    """A similarity of picture and text: "module:name", or the folder of a CLIP or SigLIP checkpoint."""
    return plug(where) if ":" in where else ClipSimilarity(where)


def renderer_of(where: str) -> Renderer:
    """What draws a picture of a text: "module:name"."""
    return plug(where)


def pictures_of(folder: str | None) -> Bank:
    """Other pictures: those of a folder, or None: 256 of the glyphs world."""
    return GlyphsBank(256) if folder is None else FolderBank(folder)


def renewed(lora: bool, rank: int | None = None) -> tuple[Action, ...]:
    """The reference becomes the policy: with LoRA by merging the adapter and starting a new one."""
    return (MergeAdapter(rank=rank), Refresh()) if lora else (Refresh(),)


def repeated(stage: Stage, number: int) -> tuple[Stage, ...]:
    """The stage several times over; nothing is renewed after the last. Raises ValueError below 1."""
    if number < 1:
        raise ValueError(f"expected at least 1 round, got {number}")
    return (stage,) * (number - 1) + (replace(stage, then=()),)
