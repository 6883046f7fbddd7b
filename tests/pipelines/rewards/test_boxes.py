"""Boxes: overlaps by hand, assignments that greedy matching gets wrong, and Vision-R1's thresholds."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.rewards.boxes import (
    BoxFormat,
    BoxPrecision,
    BoxRecall,
    Found,
    gated,
    matched,
    overlaps,
    read_boxes,
    vision_r1,
)

GOLD = [{"box": [0, 0, 10, 10], "label": "red seven"}, {"box": [20, 20, 40, 40], "words": ["blue", "one"]}]


def test_overlaps_by_hand():
    """[0,0,2,2] and [1,1,3,3]: shared 1, union 7, hull 9: IoU 1/7, GIoU 1/7 - 2/9. Apart: IoU 0, GIoU < 0."""
    a, b = np.array([[0.0, 0, 2, 2]]), np.array([[1.0, 1, 3, 3], [0, 0, 2, 2], [4, 0, 6, 2]])
    iou, giou = overlaps(a, b)
    assert iou[0] == pytest.approx([1 / 7, 1, 0])
    assert giou[0] == pytest.approx([1 / 7 - 2 / 9, 1, -4 / 12])


BOX = st.tuples(st.integers(0, 50), st.integers(0, 50), st.integers(1, 30), st.integers(1, 30)).map(
    lambda b: [b[0], b[1], b[0] + b[2], b[1] + b[3]]
)


@given(BOX, BOX)
def test_overlaps_are_symmetric_and_bounded(a, b):
    one, other = np.array([a], float), np.array([b], float)
    iou, giou = overlaps(one, other)
    back = overlaps(other, one)
    assert iou == pytest.approx(back[0]) and giou == pytest.approx(back[1])
    assert 0 <= iou[0, 0] <= 1 and -1 < giou[0, 0] <= iou[0, 0]


def test_boxes_are_read_from_text():
    text = "red seven: [1, 2.5, 30, 40]; [0,0,1,1] and a Blue one [5, 6, 7, 8]."
    assert read_boxes(text) == [
        Found((1, 2.5, 30, 40), "red seven"),
        Found((0, 0, 1, 1), ""),
        Found((5, 6, 7, 8), "and a blue one"),
    ]
    assert read_boxes("no box [1, 2, 3]") == []


def test_the_assignment_is_the_best_one_over_all_boxes():
    """Greedily the first box would take the only gold that the second can reach."""
    gold = [Found((0, 0, 10, 10)), Found((6, 0, 16, 10))]
    predicted = [Found((4, 0, 14, 10)), Found((7, 0, 17, 10)), Found((5, 5, 5, 9))]
    pairs = matched(predicted, gold)
    assert [(i, j) for i, j, _ in pairs] == [(0, 0), (1, 1)]  # the third box has no area
    assert pairs[0][2] == pytest.approx(60 / 140) and pairs[1][2] == pytest.approx(90 / 110)
    labelled = [Found((0, 0, 10, 10), "b"), Found((0, 0, 10, 10), "a")]
    assert [(i, j) for i, j, _ in matched(labelled, [Found((0, 0, 10, 10), "a")])] == [(1, 0)]


def test_recall_and_precision(rollout, group):
    """One box exact, one IoU 0.5625 (15 x 15 of 20 x 20), one stray: recall 1 of 2 at 0.75, precision
    (1 + 0.5625) / 3."""
    text = "red seven: [0,0,10,10]; blue one: [20,20,35,35]; x: [60,60,70,70]"
    answers = [rollout(text, boxes=GOLD), rollout("none", boxes=GOLD), rollout(text)]
    recall = group(BoxRecall(hit=0.75, low=0.0, high=2.0), answers)
    precision = group(BoxPrecision(low=0.0, high=2.0), answers)
    assert [s.value for s in recall] == [0.5, 0.0, None]
    assert precision[0].value == pytest.approx(1.5625 / 3) and precision[1].value == 0.0
    assert recall[2].missing == "no_gold_column: boxes"
    assert group(BoxRecall(hit=0.5), answers)[0].value == 1.0


def test_gates_and_format(rollout, group):
    assert [gated(v, 0.5, 0.75) for v in (0.49, 0.5, 0.74, 0.75)] == [0.0, 0.5, 0.74, 1.0]
    texts = ["a: [0,0,1,1]", "a: [0,0,1,1]; b: [5,5,5,9]", "none"]
    assert [s.value for s in group(BoxFormat(), [rollout(t) for t in texts])] == [1.0, 0.0, 0.0]


def test_the_thresholds_tighten(rollout, group):
    """Both boxes at IoU 0.64 (16 x 16 of 20 x 20, 8 x 8 of 10 x 10): hits early, misses from the ramp on."""
    answer = [rollout("red seven: [0,0,8,8]; blue one: [20,20,36,36]", boxes=GOLD)]
    early, late = (group(vision_r1(ramp=100), answer, step)[0] for step in (99, 100))
    assert early.parts["recall"] == 1.0 and early.parts["precision"] == pytest.approx(0.64)
    assert late.parts["recall"] == 0.0 and late.parts["precision"] == 0.0
    assert early.value == pytest.approx(2.64) and late.value == 1.0
