"""Known boxes and key regions."""

from __future__ import annotations

import numpy as np
import pytest

from pipelines.perturbations.keywords import GraphRank, words_of
from pipelines.perturbations.regions import KeyRegions, KnownBoxes, OneObject, box_mask, spoken_of
from pipelines.types import Media

SEVEN = {"box": [2, 3, 12, 20], "words": ["red", "seven", "top left"]}
THREE = {"box": [30, 4, 50, 18], "words": ["red", "three", "top right"]}
ONE = {"box": [31, 22, 56, 40], "words": ["blue", "one", "bottom right"]}
GOLD = {"boxes": [SEVEN, THREE, ONE]}


def boxes_of(
    media: Media, keywords: list[str], answer: str, gold: dict[str, object] | None = None
) -> list[list[float]]:
    found = KnownBoxes()(media, keywords, answer, GOLD if gold is None else gold)
    return [] if found is None else list(found.facts["boxes"])


def test_box_mask_golden(picture: Media) -> None:
    """Whole pixels that a box touches; what lies outside is cut off."""
    mask = box_mask([(1.5, 2.0, 3.2, 4.0), (54.0, 38.5, 99.0, 99.0), (-9.0, -9.0, -1.0, -1.0)], picture)
    expected = np.zeros((40, 56), dtype=np.bool_)
    expected[2:4, 1:4] = True
    expected[38:40, 54:56] = True
    assert np.array_equal(mask, expected)


def test_a_keyword_selects_the_object_that_the_answer_means(picture: Media) -> None:
    """Two objects are "red": the other words of the answer decide; both are taken where it names both."""
    assert boxes_of(picture, ["red"], "a red seven top left .") == [SEVEN["box"]]
    both = "a red seven top left and a red three top right ."
    assert boxes_of(picture, ["red"], both) == [SEVEN["box"], THREE["box"]]
    assert boxes_of(picture, ["three"], both) == [THREE["box"]]
    assert boxes_of(picture, ["one", "seven"], "a red seven and a blue one") == [SEVEN["box"], ONE["box"]]


def test_nothing_named_is_none(picture: Media) -> None:
    assert KnownBoxes()(picture, ["green"], "a green two", GOLD) is None
    assert KnownBoxes()(picture, ["red"], "a red two", {"boxes": []}) is None


def test_rows_that_come_back_from_a_columnar_store(picture: Media) -> None:
    entry = {"box": np.array([2, 3, 12, 20]), "words": np.array(["red", "seven"], dtype=object)}
    assert boxes_of(picture, ["red"], "a red seven", {"boxes": np.array([entry], dtype=object)}) == [
        SEVEN["box"]
    ]


@pytest.mark.parametrize(
    ("gold", "message"),
    [
        ({"caption": "x"}, r"no 'boxes', only \['caption'\]"),
        ({"boxes": [SEVEN, {"box": [0, 0, 5, 5]}]}, r"boxes\[1\]: expected"),
        ({"boxes": [{"box": [0, 0, 5], "words": []}]}, r"boxes\[0\]: expected"),
        ({"boxes": [{"box": [0, 0, 57, 5], "words": []}]}, r"x1 <= 56 .* got \[0, 0, 57, 5\]"),
        ({"boxes": [{"box": [5, 0, 5, 5], "words": []}]}, r"got \[5, 0, 5, 5\]"),
    ],
)
def test_bad_boxes_are_errors(gold: dict[str, object], message: str, picture: Media) -> None:
    with pytest.raises(ValueError, match=message):
        KnownBoxes()(picture, ["red"], "a red seven", gold)


def test_key_regions(picture: Media) -> None:
    regions = KeyRegions(GraphRank(2), KnownBoxes())(picture, "a red seven top left .", GOLD, 0)
    assert regions is not None
    assert np.array_equal(regions.mask, box_mask([(2, 3, 12, 20)], picture))
    assert regions.facts == {"keywords": ["seven", "top"], "boxes": [[2.0, 3.0, 12.0, 20.0]]}


def test_no_keyword_no_regions(picture: Media) -> None:
    assert KeyRegions(GraphRank(), KnownBoxes())(picture, "it is .", GOLD, 0) is None


FIVE = {"box": [0, 22, 10, 40], "words": ["green", "five", "top right"]}  # in the picture, not in the answer
ANSWER = "a blue one bottom right and a red three top right and a red seven top left ."


def test_one_object_counts_in_the_order_of_the_answer(picture: Media) -> None:
    """The answer comes to the one, the three, the seven; 3 counts round to the first. "top right" belongs to
    the three, which has more words there, so the five is not spoken of.
    """
    gold = {"boxes": [SEVEN, THREE, FIVE, ONE]}
    chosen = [OneObject(which)(picture, ANSWER, gold, 0) for which in range(4)]
    assert [regions and regions.facts["object"] for regions in chosen] == [3, 1, 0, 3]
    assert chosen[0] is not None
    assert np.array_equal(chosen[0].mask, box_mask([(31, 22, 56, 40)], picture))
    drawn = {OneObject(None)(picture, ANSWER, gold, seed).facts["object"] for seed in range(40)}  # type: ignore[union-attr]
    assert drawn == {0, 1, 3}
    assert OneObject()(picture, "nothing to see", gold, 0) is None


def test_an_object_may_be_called_by_any_of_its_words() -> None:
    """Synonyms: "puppy" is the dog; two words far apart still speak of one object."""
    objects = [frozenset({"cat", "kitten"}), frozenset({"dog", "puppy", "brown"})]
    assert spoken_of(objects, words_of("a puppy, brown as earth, and a kitten")) == [1, 0]
    assert spoken_of(objects, []) == []
