"""Corrupted tokens, cuts between tokens and differences of answers."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.perturbations.tokens import TokenCorruption, diff_classes, diff_spans, sentence_cuts
from pipelines.types import NOT_SCORED, Response

ids = st.lists(st.integers(0, 20), max_size=30)


@given(data=st.data(), tokens=ids, share=st.floats(0, 1), seed=st.integers(0, 999))
def test_what_is_corrupted_is_not_scored(
    data: st.DataObject, tokens: list[int], share: float, seed: int
) -> None:
    """The count is round(share * length), at least one, at most the positive weights; the rest stays."""
    weights = data.draw(
        st.lists(st.sampled_from([0.0, 0.2, 1.0]), min_size=len(tokens), max_size=len(tokens))
    )
    corruption = TokenCorruption(range(100, 140), share)
    fed, targets = corruption(tokens, weights, seed)
    hit = [i for i, target in enumerate(targets) if target == NOT_SCORED]
    wanted = max(round(share * len(tokens)), 1) if share > 0 else 0
    assert len(hit) == min(wanted, sum(weight > 0 for weight in weights))
    assert all(weights[i] > 0 and fed[i] >= 100 for i in hit)
    rest = [i for i in range(len(tokens)) if i not in hit]
    assert [fed[i] for i in rest] == [targets[i] for i in rest] == [tokens[i] for i in rest]
    assert (fed, targets) == corruption(tokens, weights, seed)
    Response(tokens=fed, targets=targets, text="")


def test_one_token_is_drawn_in_proportion_to_its_weight() -> None:
    """Weights 1, 3, 0: shares of 1/4 and 3/4. The error of 4,000 draws is 0.007, the tolerance 4 of these."""
    corruption = TokenCorruption((9,), 0.1)
    hits = Counter(corruption((1, 2, 3), (1.0, 3.0, 0.0), seed)[1].index(NOT_SCORED) for seed in range(4000))
    assert hits[0] / 4000 == pytest.approx(0.25, abs=0.028)
    assert hits[2] == 0


def test_what_is_put_in() -> None:
    """A random id is never the token itself; a mask id is always the mask."""
    put = {TokenCorruption((4, 5, 6), 1.0)((5,), (1.0,), seed)[0][0] for seed in range(30)}
    assert put == {4, 6}
    assert TokenCorruption(mask_id=7, share=1.0)((5, 7), (1.0, 1.0), 0) == ((7, 7), (NOT_SCORED, NOT_SCORED))
    assert TokenCorruption((5,), 1.0)((5,), (1.0,), 0) == ((5,), (NOT_SCORED,))  # there is no other one


@pytest.mark.parametrize("weights", [(1.0,), (1.0, -0.1), (1.0, float("nan")), (1.0, float("inf"))])
def test_bad_weights_are_errors(weights: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="2 finite weights of at least 0"):
        TokenCorruption((9,))((1, 2), weights, 0)


def test_huge_weights_do_not_overflow() -> None:
    assert TokenCorruption((9,), 1.0)((1, 2), (1e308, 1e308), 0)[0] == (9, 9)


def test_bad_parameters_are_errors() -> None:
    with pytest.raises(ValueError, match=r"0 to 1, got 1\.5"):
        TokenCorruption((9,), 1.5)
    with pytest.raises(ValueError, match="a vocabulary of ids to draw from, or a mask_id"):
        TokenCorruption()


def test_sentence_cuts_golden() -> None:
    """Id 0 ends a sentence: [1 2 0] and [3 4] are cut inside, the lone 0 and a lone last token cannot be."""
    assert {sentence_cuts((1, 2, 0, 0, 3, 4), {0}, seed) for seed in range(40)} == {
        ((0, 1, 3), (4, 5, 6)),
        ((0, 2, 3), (4, 5, 6)),
    }
    assert sentence_cuts((1, 0, 9), {0}, 0) == ((0, 1, 2),)
    assert sentence_cuts((), {0}, 0) == ()


@given(tokens=ids, seed=st.integers(0, 999))
def test_sentence_cuts_lie_inside(tokens: list[int], seed: int) -> None:
    cuts = sentence_cuts(tokens, {0, 1}, seed)
    for start, cut, end in cuts:
        assert start < cut < end
        assert start == 0 or tokens[start - 1] in (0, 1)
        assert not {0, 1} & set(tokens[start : end - 1])
        assert tokens[end - 1] in (0, 1) or end == len(tokens)


def test_diff_golden() -> None:
    """red -> blue is replaced, "very" deleted, "now" inserted."""
    a, b = ["a", "very", "red", "dog", "sits"], ["a", "blue", "dog", "sits", "now"]
    assert diff_classes(a, b) == (
        ("equal", "replace", "replace", "equal", "equal"),
        ("equal", "replace", "equal", "equal", "insert"),
    )
    assert diff_classes([1, 2, 3], [1, 3]) == (("equal", "delete", "equal"), ("equal", "equal"))
    assert diff_spans(a, b) == ((0, 1, 1, 0, 0), (0, 1, 0, 0, 1))


@given(a=ids, b=ids)
def test_what_does_not_differ_is_the_same(a: list[int], b: list[int]) -> None:
    """The equal tokens of both sides are one common subsequence; an answer does not differ from itself."""
    spans_a, spans_b = diff_spans(a, b)
    assert (len(spans_a), len(spans_b)) == (len(a), len(b))
    common_a = [token for token, span in zip(a, spans_a, strict=True) if not span]
    common_b = [token for token, span in zip(b, spans_b, strict=True) if not span]
    assert common_a == common_b
    assert not any(spans_a + spans_b) if a == b else any(spans_a + spans_b)
