from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest

from pipelines.worlds import World
from pipelines.worlds.glyphs import Glyphs

WORLD: World = Glyphs()


@pytest.mark.parametrize("task", WORLD.tasks)
def test_rows_are_small_json_and_deterministic(task: str) -> None:
    rows = list(WORLD.rows("train", 20, 0, task))
    assert json.loads(json.dumps(rows)) == rows == list(WORLD.rows("train", 20, 0, task))
    assert len({row["id"] for row in rows}) == 20
    assert max(len(json.dumps(row)) for row in rows) < 1500
    assert {row["kind"] for row in rows} == {task}


@pytest.mark.parametrize("task", WORLD.tasks)
def test_rows_can_be_taken_from_anywhere(task: str) -> None:
    every = list(WORLD.rows("heldout", 12, 7, task))
    for start, count in ((0, 12), (1, 5), (4, 4), (7, 1), (3, 0)):
        assert list(WORLD.rows("heldout", count, 7, task, start=start)) == every[start : start + count]


def test_a_row_shows_a_picture_and_asks() -> None:
    row = next(WORLD.rows("train", 1, 0, "caption"))
    (message,) = row["prompt"]
    assert message["role"] == "user"
    assert message["content"] == [{"type": "image"}, {"type": "text", "text": "describe the image ."}]
    picture = WORLD.image(row)
    assert picture.shape == (64, 64, 3) and picture.dtype == np.uint8
    boxes = WORLD.boxes(row)
    assert len(boxes) == len(row["scene"]["objects"])
    assert all(picture[y0:y1, x0:x1].any() for x0, y0, x1, y1 in boxes)


@pytest.mark.parametrize("task", WORLD.tasks)
def test_the_rows_own_answer_is_worth_the_most(task: str) -> None:
    for row in WORLD.rows("heldout", 40, 0, task):
        best = len(row["scene"]["objects"]) if task == "caption" else 1
        parts = WORLD.verify(row, row["answer"])
        assert parts["value"] == best
        assert parts["wrong"] == parts["missed"] == parts["malformed"] == 0


@pytest.mark.parametrize("task", ["random", "popular", "adversarial"])
def test_question_rows_are_balanced(task: str) -> None:
    rows = list(WORLD.rows("heldout", 200, 0, task))
    assert Counter(row["answer"] for row in rows) == {"yes": 100, "no": 100}
    assert len({row["scene"]["id"] for row in rows}) == 100


def test_all_tasks_ask_about_the_same_scenes() -> None:
    captioned = [row["scene"] for row in WORLD.rows("heldout", 10, 0, "caption")]
    asked = [row["scene"] for row in WORLD.rows("heldout", 20, 0, "popular")]
    assert asked[::2] == asked[1::2] == captioned


def test_unknown_tasks_and_splits_are_named() -> None:
    with pytest.raises(ValueError, match="unknown task 'captions'; expected one of caption, random"):
        WORLD.rows("train", 1, 0, "captions")
    with pytest.raises(ValueError, match="unknown split 'test'"):
        list(WORLD.rows("test", 1, 0, "caption"))  # type: ignore[arg-type]
