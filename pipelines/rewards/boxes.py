"""Rewards for boxes in an answer: dual format, recall and precision after Hungarian matching (Vision-R1)."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from pipelines.rewards.aggregate import WeightedSum
from pipelines.rewards.base import missing
from pipelines.rewards.clock import Clock, Number, number
from pipelines.types import Prompt, Response, Score

Array = NDArray[np.float64]
_NUMBER = r"\s*(-?\d+(?:\.\d+)?)\s*"
_BOX = re.compile(rf"([^\[\],;\n]*)\[{','.join([_NUMBER] * 4)}\]")


@dataclass(frozen=True)
class Found:
    """A box that an answer or the gold names: corners (x0, y0, x1, y1) in one unit for both, and a label."""

    box: tuple[float, float, float, float]
    label: str = ""

    @property
    def proper(self) -> bool:
        return self.box[2] > self.box[0] and self.box[3] > self.box[1]


def read_boxes(text: str) -> list[Found]:
    """Every `label: [x0, y0, x1, y1]` of a text, in order; the label may be absent."""
    return [
        Found(
            (float(m.group(2)), float(m.group(3)), float(m.group(4)), float(m.group(5))),
            " ".join(re.findall(r"[\w'-]+", m.group(1).lower())),
        )
        for m in _BOX.finditer(text)
    ]


def overlaps(a: Array, b: Array) -> tuple[Array, Array]:
    """IoU and generalised IoU of boxes [n, 4] and [m, 4]: both [n, m].

    GIoU = IoU - (hull - union) / hull, in (-1, 1] (Rezatofighi et al., arXiv 1902.09630; from memory).
    """
    top = np.maximum(a[:, None, :2], b[None, :, :2])
    low = np.minimum(a[:, None, 2:], b[None, :, 2:])
    shared = np.prod(np.clip(low - top, 0, None), axis=-1)
    areas = [np.prod(boxes[:, 2:] - boxes[:, :2], axis=-1) for boxes in (a, b)]
    union = areas[0][:, None] + areas[1][None, :] - shared
    corners = np.maximum(a[:, None, 2:], b[None, :, 2:]) - np.minimum(a[:, None, :2], b[None, :, :2])
    hull = np.prod(corners, axis=-1)
    iou = shared / union
    return iou, iou - (hull - union) / hull


def matched(predicted: Sequence[Found], gold: Sequence[Found]) -> list[tuple[int, int, float]]:
    """(predicted, gold, IoU) of the assignment with the least total cost L1 + class - GIoU.

    Vision-R1 (arXiv 2503.18013; released code read): Hungarian matching on L1, class and GIoU; equal weights
    and corners divided by the largest gold coordinate are inferred. Only proper boxes take part.
    """
    from scipy import optimize  # pyright: ignore[reportMissingTypeStubs]

    rows = [i for i, found in enumerate(predicted) if found.proper]
    if not rows or not gold:
        return []
    a = np.array([predicted[i].box for i in rows], dtype=np.float64)
    b = np.array([found.box for found in gold], dtype=np.float64)
    iou, giou = overlaps(a, b)
    scale = float(np.abs(b).max()) or 1.0
    distance = np.abs(a[:, None] - b[None, :]).sum(axis=-1) / scale
    other = np.array([[predicted[i].label != g.label for g in gold] for i in rows], dtype=np.float64)
    assign: Any = optimize
    left, right = assign.linear_sum_assignment(distance + other - giou)
    return [(rows[i], int(j), float(iou[i, j])) for i, j in zip(left, right, strict=True)]


def gated(value: float, low: float, high: float) -> float:
    """0 below `low`, 1 from `high` on, unchanged between: rewards that tell good from nearly good apart."""
    return 0.0 if value < low else 1.0 if value >= high else value


def gold_boxes(gold: Any) -> list[Found]:
    """From [{"box": [4 numbers], "label": text or "words": [..]}], or plain lists of 4 numbers."""
    found: list[Found] = []
    for item in gold:
        named = cast("dict[str, Any]", item) if isinstance(item, dict) else {"box": item}
        x0, y0, x1, y1 = (float(v) for v in named["box"])
        label = named.get("label") or " ".join(named.get("words", ()))
        found.append(Found((x0, y0, x1, y1), str(label).lower()))
    return found


@dataclass(frozen=True)
class BoxFormat:
    """1 when the answer has the form of boxes and every box is a proper one: the dual format reward."""

    read: Callable[[str], Sequence[Found]] = read_boxes

    def __call__(self, prompt: Prompt, response: Response) -> Score:
        boxes = self.read(response.text)
        return Score(value=float(bool(boxes) and all(found.proper for found in boxes)))


@dataclass(frozen=True)
class BoxRecall:
    """Share of gold boxes that a matched box covers with an IoU of at least `hit`, gated."""

    hit: Number = 0.5
    low: Number = 0.5
    high: Number = 0.75
    key: str = "boxes"
    read: Callable[[str], Sequence[Found]] = read_boxes

    def __call__(self, prompt: Prompt, response: Response) -> Score:
        gold = gold_boxes(prompt.gold.get(self.key, ()))
        if not gold:
            return missing(f"no_gold_column: {self.key}")
        pairs = matched(self.read(response.text), gold)
        recall = sum(iou >= number(self.hit) for _, _, iou in pairs) / len(gold)
        return Score(value=gated(recall, number(self.low), number(self.high)), parts={"box_recall": recall})


@dataclass(frozen=True)
class BoxPrecision:
    """Mean IoU over all predicted boxes, 0 for those without a partner, gated."""

    low: Number = 0.5
    high: Number = 0.75
    key: str = "boxes"
    read: Callable[[str], Sequence[Found]] = read_boxes

    def __call__(self, prompt: Prompt, response: Response) -> Score:
        gold = gold_boxes(prompt.gold.get(self.key, ()))
        if not gold:
            return missing(f"no_gold_column: {self.key}")
        predicted = self.read(response.text)
        total = sum(iou for _, _, iou in matched(predicted, gold))
        precision = total / len(predicted) if predicted else 0.0
        return Score(
            value=gated(precision, number(self.low), number(self.high)), parts={"box_precision": precision}
        )


def vision_r1(ramp: int = 1500) -> WeightedSum:
    """Dual format + recall + precision with thresholds that tighten at step `ramp`.

    Vision-R1 (arXiv 2503.18013; released code read): the gate (0.5, 0.75) becomes (0.75, 0.9), and the IoU of
    a hit 0.5 becomes 0.75. That one gate serves recall and precision, and equal weights, are inferred.
    """
    low, high = Clock({0: 0.5, ramp: 0.75}), Clock({0: 0.75, ramp: 0.9})
    return WeightedSum(
        {
            "format": BoxFormat(),
            "recall": BoxRecall(hit=Clock({0: 0.5, ramp: 0.75}), low=low, high=high),
            "precision": BoxPrecision(low=low, high=high),
        }
    )
