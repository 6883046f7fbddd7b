"""Measures by hand, and what must hold for any records."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.evaluation import BadRecord, compare, heldout, read_records


def caption(
    name: str, right: int, wrong: int, missed: int, malformed: int = 0, text: str = "a b"
) -> dict[str, Any]:
    counts = {"right": right, "wrong": wrong, "missed": missed, "malformed": malformed}
    return {"id": name, "kind": "caption", "text": text, **counts}


def question(name: str, kind: str, truth: str, said: str) -> dict[str, Any]:
    counts = {
        "right": int(said == truth),
        "wrong": int(said in ("yes", "no") and said != truth),
        "missed": 0,
        "malformed": int(said not in ("yes", "no")),
    }
    return {"id": name, "kind": kind, "text": said, "answer": truth, **counts}


def test_caption_measures_by_hand() -> None:
    """Mentions 2+1, 1+0, 0+3 give chair_i 4/7; two of three captions hallucinate; 3 of 2+1+3 objects are
    recalled; only the second is exact (the first adds an object); words 3, 1, 2 give length 2."""
    result = heldout(
        [
            caption("a", right=2, wrong=1, missed=0, text="x y z"),
            caption("b", right=1, wrong=0, missed=0, text="x"),
            caption("c", right=0, wrong=3, missed=3, malformed=1, text="x y"),
        ]
    )
    assert result["chair_i"] == pytest.approx(4 / 7, abs=0)
    assert result["chair_s"] == pytest.approx(2 / 3, abs=0)
    assert result["object_recall"] == 3 / 6
    assert result["exact_scene"] == pytest.approx(1 / 3, abs=0)
    assert result["malformed"] == pytest.approx(1 / 3, abs=0)
    assert result["mean_length"] == 2
    assert result["items"] == {"caption": 3}
    assert "pope" not in result


def test_exact_scene_needs_a_well_formed_caption_without_misses() -> None:
    records = [caption("a", 2, 0, 0, malformed=1), caption("b", 2, 0, 1), caption("c", 2, 0, 0)]
    assert heldout(records)["exact_scene"] == pytest.approx(1 / 3)


def test_token_lengths_win_over_words_and_must_be_complete() -> None:
    first, second = caption("a", 1, 0, 0), caption("b", 1, 0, 0)
    assert heldout([{**first, "length": 9}, {**second, "length": 10}])["mean_length"] == 9.5
    with pytest.raises(BadRecord, match="1 of 2 caption records"):
        heldout([{**first, "length": 9}, second])


def test_question_measures_by_hand() -> None:
    """Truths y y n n, said y n y "hm": one of four is right, two are yes, "hm" is wrong and no yes."""
    said = [("q1", "yes", "yes"), ("q2", "yes", "no"), ("q3", "no", "yes"), ("q4", "no", "hm")]
    records = [question(name, "popular", truth, text) for name, truth, text in said]
    result = heldout([*records, question("r", "random", "no", "no")])
    assert result["pope"]["popular"] == {"accuracy": 0.25, "yes_ratio": 0.5, "malformed": 0.25}
    assert result["pope"]["random"] == {"accuracy": 1.0, "yes_ratio": 0.0, "malformed": 0.0}
    assert result["items"] == {"random": 1, "popular": 4}
    assert set(result["intervals"]) >= {"pope.popular.accuracy", "pope.random.yes_ratio"}


def test_nothing_to_count_is_none_not_zero() -> None:
    """Captions without any mention have no hallucination rate; recall of scenes with one object is 0."""
    silent = [caption("a", 0, 0, 1), caption("b", 0, 0, 1)]
    result = heldout(silent)
    assert result["chair_i"] is None
    assert result["intervals"]["chair_i"] is None
    assert result["object_recall"] == 0
    change = compare(silent, [caption("a", 1, 0, 0), caption("b", 1, 0, 0)])["chair_i"]
    assert (change["before"], change["after"], change["difference"], change["interval"]) == (
        None,
        0,
        None,
        None,
    )
    assert change["ratio"] is None


def test_empty_evaluation_has_no_measures() -> None:
    assert heldout([]) == {"items": {}, "intervals": {}}
    assert compare([], []) == {}


def test_paired_change_by_hand() -> None:
    """chair_i 2/4 before, 1/4 after: difference -1/4, ratio 1/2."""
    before = [caption("a", 1, 1, 0), caption("b", 1, 1, 0)]
    after = [caption("b", 1, 1, 0), caption("a", 2, 0, 0)]
    change = compare(before, after)["chair_i"]
    assert (change["before"], change["after"], change["difference"], change["ratio"]) == (
        0.5,
        0.25,
        -0.25,
        0.5,
    )
    assert change["interval"] == [-0.5, 0.0]  # only a drawn: -1/2; only b drawn: 0


def test_other_items_are_refused() -> None:
    with pytest.raises(BadRecord, match=r"1 only before \['caption a'\] and 1 only after \['caption b'\]"):
        compare([caption("a", 1, 0, 0)], [caption("b", 1, 0, 0)])
    with pytest.raises(BadRecord, match="same items"):
        compare([caption("a", 1, 0, 0)], [question("a", "random", "no", "no")])


def test_items_of_a_cluster_are_resampled_together() -> None:
    """Two questions about one scene, one right and one wrong: every resample of scenes has accuracy 1/2."""
    pairs = [
        {**question(f"{scene}-{truth}", "random", truth, "yes"), "cluster": f"s{scene}"}
        for scene in range(20)
        for truth in ("yes", "no")
    ]
    assert heldout(pairs)["intervals"]["pope.random.accuracy"] == [0.5, 0.5]
    alone = [{key: value for key, value in record.items() if key != "cluster"} for record in pairs]
    low, high = heldout(alone)["intervals"]["pope.random.accuracy"]
    assert low < 0.5 < high
    with pytest.raises(BadRecord, match="other clusters"):
        compare(pairs, alone)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ({"kind": "capton"}, "expected one of caption, random"),
        ({"text": None}, "expected an id and a text"),
        ({"wrong": None}, "wrong is None, expected a number"),
        ({"right": float("nan")}, "right is nan"),
        ({"missed": -1}, "missed is -1"),
        ({"malformed": True}, "malformed is True"),
        ({"kind": "random"}, "the true answer is None"),
        ({"kind": "random", "answer": "yes"}, r"right, wrong, malformed are \[2, 1, 0\]"),
    ],
)
def test_a_bad_record_names_itself(broken: dict[str, Any], message: str) -> None:
    with pytest.raises(BadRecord, match=message) as caught:
        heldout([{**caption("a", 2, 1, 0), **broken}])
    assert "held-out record 0 (id 'a')" in str(caught.value)


def test_an_item_counted_twice_is_refused() -> None:
    with pytest.raises(BadRecord, match="second caption record"):
        heldout([caption("a", 1, 0, 0), caption("a", 1, 0, 0)])


def test_unreadable_lines_are_named(tmp_path: Any) -> None:
    path = tmp_path / "after.jsonl"
    path.write_text('{"id": "a", "text": "one\u2028line"}\n\n{"id": \n', encoding="utf-8")
    with pytest.raises(BadRecord, match=r"after\.jsonl, line 3: not JSON"):
        read_records(path)
    path.write_text('{"id": "a", "text": "one\u2028line"}\n', encoding="utf-8")
    assert read_records(path) == [{"id": "a", "text": "one\u2028line"}]
    path.write_text("[1]\n", encoding="utf-8")
    with pytest.raises(BadRecord, match="expected a JSON object"):
        read_records(path)


counts = st.tuples(st.integers(0, 4), st.integers(0, 4), st.integers(0, 4), st.integers(0, 1))
evaluations = st.lists(st.tuples(counts, counts), min_size=1, max_size=12)


def both_sides(pairs: list[tuple[tuple[int, ...], tuple[int, ...]]]) -> tuple[list[dict[str, Any]], ...]:
    before = [caption(f"i{n}", *old) for n, (old, _) in enumerate(pairs)]
    return before, [caption(f"i{n}", *new) for n, (_, new) in enumerate(pairs)]


@settings(max_examples=40, deadline=None)
@given(evaluations, st.integers(0, 3))
def test_intervals_hold_their_estimates(pairs: list[Any], seed: int) -> None:
    before, after = both_sides(pairs)
    result = heldout(before, seed)
    for name, bounds in result["intervals"].items():
        if result[name] is None:
            assert bounds is None
        else:
            assert bounds[0] <= result[name] <= bounds[1]
    for change in compare(before, after, seed).values():
        if change["difference"] is not None:
            assert change["interval"][0] <= change["difference"] <= change["interval"][1]


@settings(max_examples=30, deadline=None)
@given(evaluations)
def test_no_change_is_exactly_zero(pairs: list[Any]) -> None:
    before, _ = both_sides(pairs)
    for name, change in compare(before, before).items():
        if change["before"] is not None:
            assert change["interval"] == [0, 0]
        if name == "chair_i" and change["before"]:
            assert change["ratio_interval"] == [1, 1]


@settings(max_examples=30, deadline=None)
@given(evaluations, st.randoms(use_true_random=False))
def test_order_changes_nothing(pairs: list[Any], shuffler: random.Random) -> None:
    before, after = both_sides(pairs)
    moved = list(before)
    shuffler.shuffle(moved)
    assert heldout(moved) == heldout(before)
    assert compare(moved, after) == compare(before, after)
