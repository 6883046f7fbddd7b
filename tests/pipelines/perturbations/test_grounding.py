"""Detectors and segmenters of transformers with random weights: a real path, meaningless regions."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from pipelines.perturbations import grounding, models
from pipelines.perturbations.base import DamageRequest, damage
from pipelines.perturbations.diffuse import Diffuse
from pipelines.perturbations.grounding import GroundedBoxes, GroundedMasks
from pipelines.perturbations.keywords import GraphRank
from pipelines.perturbations.regions import KeyRegions, box_mask
from pipelines.recipes import load
from pipelines.rollout import Draft
from pipelines.types import Media

NEVER = 1.0  # scores are sigmoids: none is above 1


@pytest.fixture(params=["owlv2", "grounding_dino"])
def detector(request: pytest.FixtureRequest) -> str:
    path: str = request.getfixturevalue(request.param)
    return path


def test_boxes_of_a_detector(detector: str, picture: Media) -> None:
    found = GroundedBoxes(detector, 0.0)(picture, ["red", "seven"], "", {})
    assert found is not None
    assert found.mask.shape == (40, 56)
    assert found.mask.dtype == np.bool_
    boxes = [tuple(box) for box in found.facts["boxes"]]
    assert np.array_equal(found.mask, box_mask(boxes, picture))
    scores = found.facts["scores"]
    assert scores == sorted(scores, reverse=True)
    assert len(scores) == len(boxes) == len(found.facts["labels"])
    json.dumps(found.facts)


def test_boxes_are_in_pixels_of_the_picture(owlv2: str, picture: Media) -> None:
    """The detector's boxes are a 4x4 grid over the picture padded to 56x56, so their sides are 14."""
    found = GroundedBoxes(owlv2, 0.0)(picture, ["red"], "", {})
    assert found is not None
    boxes = np.array(found.facts["boxes"])
    assert boxes.shape == (16, 4)
    assert boxes[:, 2] - boxes[:, 0] == pytest.approx(14.0, abs=0.1)
    assert boxes[:, 3] - boxes[:, 1] == pytest.approx(14.0, abs=0.1)


def test_below_the_threshold_the_whole_picture_is_damaged(detector: str, picture: Media) -> None:
    selector = KeyRegions(GraphRank(), GroundedBoxes(detector, NEVER))
    assert selector(picture, "a red seven", {}, 0) is None
    request = DamageRequest(perturbation=Diffuse(500), selector=selector, answer="a red seven", seed=3)
    damaged = damage(picture, request)
    assert damaged.op is not None and damaged.op.params["fallback"] is True
    assert damaged.digest == Diffuse(500)(picture, None, 3).digest


def test_masks_of_a_segmenter(detector: str, sam2: str, picture: Media) -> None:
    found = GroundedMasks(detector, sam2, 0.0)(picture, ["red", "seven"], "", {})
    assert found is not None
    assert found.mask.shape == (40, 56)
    assert found.mask.dtype == np.bool_
    assert found.mask.any()
    assert GroundedMasks(detector, sam2, NEVER)(picture, ["red"], "", {}) is None


def test_masks_are_united(sam2: str, picture: Media) -> None:
    """One mask per box, joined by "or"."""
    boxes = [(2.0, 3.0, 12.0, 20.0), (30.0, 4.0, 50.0, 18.0)]
    first, second = (grounding.segment(sam2, picture, [box]) for box in boxes)
    assert np.array_equal(grounding.segment(sam2, picture, boxes), first | second)


def test_a_model_is_loaded_once(owlv2: str, picture: Media) -> None:
    grounding.detect(owlv2, picture, ["red"], 0.5)
    before = models._loaded["detector", owlv2]
    grounding.detect(owlv2, picture, ["seven"], 0.5)
    assert models._loaded["detector", owlv2] is before


def test_a_path_without_a_model(tmp_path: object, picture: Media) -> None:
    with pytest.raises(ValueError, match=r"detector model .* cannot be loaded"):
        GroundedBoxes(str(tmp_path))(picture, ["red"], "", {})


def test_only_pictures(owlv2: str) -> None:
    sound = Media(kind="audio", space="pcm16", payload=np.zeros(100, dtype=np.int16))
    with pytest.raises(ValueError, match="reads images"):
        GroundedBoxes(owlv2)(sound, ["red"], "", {})


def test_mfpo_runs_on_models(
    make_draft: Callable[..., Draft], make_tools: Callable[..., Any], owlv2: str, sam2: str
) -> None:
    """The method with regions that models find; the record of the damage holds what was found."""
    for params in ({"regions": "grounded"}, {"regions": "masks", "segmenter": sam2}):
        recipe = load("mfpo", {"samples": 2, "detector": owlv2, "threshold": 0.0, **params})
        done = asyncio.run(recipe.stages[0].rollout(make_draft(), make_tools(), 17))
        op = done.media[done.prompts["m"].media[0]].op
        assert op is not None and op.params["fallback"] is False
        assert len(op.params["boxes"]) == len(op.params["scores"]) > 0
