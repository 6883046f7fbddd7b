from __future__ import annotations

import pytest

from pipelines.worlds.glyphs.scenes import Scene
from pipelines.worlds.glyphs.verify import (
    CaptionVerdict,
    summarise_answers,
    summarise_captions,
    verify_answer,
    verify_caption,
)


@pytest.mark.parametrize(
    ("text", "right", "wrong", "missed", "malformed", "value"),
    [
        ("a red seven top left and a blue one bottom right .", 2, 0, 0, 0, 2),
        ("a blue one bottom right and a red seven top left .", 2, 0, 0, 0, 2),  # order does not matter
        ("a red seven top left .", 1, 0, 1, 0, 0),
        # 2 right, and the invented blue two: 2 - 1
        ("a red seven top left and a blue one bottom right and a blue two top right .", 2, 1, 0, 0, 1),
        ("a green seven top left and a blue one bottom right .", 1, 1, 1, 0, -1),  # wrong colour
        ("a red seven top right and a blue one bottom right .", 1, 1, 1, 0, -1),  # wrong cell
        ("a red seven top left and a red seven top left .", 1, 1, 1, 0, -1),  # repeating is not free
        ("a red seven top left and a blue .", 1, 0, 1, 1, -1),
        ("", 0, 0, 2, 2, -4),
    ],
)
def test_caption_verdicts_by_hand(
    two_objects: Scene, text: str, right: int, wrong: int, missed: int, malformed: int, value: int
) -> None:
    verdict = verify_caption(two_objects, text)
    assert verdict == CaptionVerdict(right=right, wrong=wrong, missed=missed, malformed=malformed)
    assert verdict.value == value
    assert verdict.exact == (value == 2)


def test_chair_by_hand() -> None:
    """Right/wrong/missed 2/1/0, 1/0/1 and 1/1/0: 2 of 6 mentions wrong, in 2 of 3 captions; 4 of 5 found."""
    verdicts = [
        CaptionVerdict(right=2, wrong=1, missed=0, malformed=0),
        CaptionVerdict(right=1, wrong=0, missed=1, malformed=0),
        CaptionVerdict(right=1, wrong=1, missed=0, malformed=0),
        CaptionVerdict(right=1, wrong=0, missed=0, malformed=0),
    ]
    assert summarise_captions(verdicts[:3]) == pytest.approx(
        {"chair_i": 2 / 6, "chair_s": 2 / 3, "object_recall": 4 / 5, "exact_scene": 0.0}
    )
    assert summarise_captions(verdicts)["exact_scene"] == 1 / 4


def test_summaries_of_nothing_are_zero() -> None:
    assert set(summarise_captions([]).values()) == {0.0}
    assert set(summarise_answers([], []).values()) == {0.0}


def test_answers_are_worth_one_either_way_and_nonsense_counts_as_wrong() -> None:
    assert [verify_answer("yes", text).value for text in ("yes", "no", "maybe")] == [1, -1, -1]
    assert [verify_answer("no", text).malformed for text in ("yes", "no", "maybe")] == [0, 0, 1]
    measured = summarise_answers(["yes", "yes", "no", "no"], ["yes", "maybe", "yes", "no"])
    assert measured == {"accuracy": 0.5, "yes_ratio": 0.5}


def test_unequal_lengths_are_an_error() -> None:
    with pytest.raises(ValueError, match="shorter"):
        summarise_answers(["yes", "no"], ["yes"])
