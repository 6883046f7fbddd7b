"""What pairwise and unpaired text methods are to each other, for any log-probabilities."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import strategies as st

from pipelines.objectives.base import Reads
from pipelines.objectives.links import Square
from pipelines.objectives.margins import Constant, ReferenceGate, ScoreGap, Together
from pipelines.objectives.pair import Pair
from pipelines.objectives.scoring import Alpha, Desensitised, FDivergence, LogOdds, Mean, Sum
from pipelines.objectives.sides import ApoZero, BcoPair, Sides
from pipelines.objectives.unpaired import Bco, Kto
from tests.pipelines.objectives.drawn import (
    PAIR,
    MakeReads,
    Rows,
    answers,
    beta,
    by_answer,
    given,
    reduced,
    row,
    same,
)

# -- pairs ---------------------------------------------------------------------------------------------------


@given(row, row, beta)
def test_dpo_at_the_reference_is_log_two_and_pulls_by_half_a_beta(
    make_reads: MakeReads, w: list[float], o: list[float], scale: float
) -> None:
    reads = make_reads([w, o], PAIR, reference=[w, o])
    loss = reduced(Pair("text", scale), reads)
    assert loss.item() == pytest.approx(math.log(2))
    assert by_answer(loss, reads) == pytest.approx([-scale / 2, scale / 2])


@given(answers(), st.floats(-3, 3))
def test_dpo_does_not_see_what_both_answers_share(
    make_reads: MakeReads, drawn: tuple[Rows, Rows], shift: float
) -> None:
    policy, reference = drawn
    moved = [[tokens[0] + shift, *tokens[1:]] for tokens in policy]
    one, other = (make_reads(rows, PAIR, reference=reference) for rows in (policy, moved))
    assert reduced(Pair(), one).item() == pytest.approx(reduced(Pair(), other).item(), abs=1e-9)


@given(answers(), beta)
def test_ipo_is_zero_at_a_margin_of_half_an_inverse_beta_per_token(
    make_reads: MakeReads, drawn: tuple[Rows, Rows], scale: float
) -> None:
    """The winner's tokens lifted by 1 / (2 beta), the loser's not: the sum form misses but for length 1."""
    _, reference = drawn
    lifted = [value + 1 / (2 * scale) for value in reference[0]]
    reads = make_reads([lifted, reference[1]], PAIR, reference=reference)
    assert reduced(Pair("text", scale, Square(), Mean()), reads).item() == pytest.approx(0.0, abs=1e-12)
    over = (len(lifted) - 1) / (2 * scale)
    assert reduced(Pair("text", scale, Square()), reads).item() == pytest.approx(over**2, abs=1e-9)


@given(answers(), beta, st.floats(0, 2))
def test_simpo_is_cpo_on_means_and_normalised_dpo_without_a_reference(
    make_reads: MakeReads, drawn: tuple[Rows, Rows], scale: float, gamma: float
) -> None:
    policy, _ = drawn
    free = make_reads(policy, PAIR)  # reference log-probs are 0
    simpo = Pair("text", scale, scoring=Mean(against=None), margin=Constant(0.0))
    same(simpo, Pair("text", scale, scoring=Mean()), free)
    shifted = Pair("text", scale, scoring=Mean(against=None), margin=Constant(gamma))
    own = make_reads(policy, {"text": [(0, 1, 0, gamma)]})
    assert reduced(shifted, free).item() == pytest.approx(
        reduced(Pair("text", scale, scoring=Mean(against=None)), own).item(), abs=1e-12
    )


@given(answers(), st.floats(0, 1))
def test_ld_dpo_is_dpo_with_alpha_one_or_equal_lengths(
    make_reads: MakeReads, drawn: tuple[Rows, Rows], alpha: float
) -> None:
    policy, reference = drawn
    reads = make_reads(policy, PAIR, reference=reference)
    same(Pair(scoring=Desensitised(1.0)), Pair(), reads)
    n = min(len(tokens) for tokens in policy)
    cut = make_reads([p[:n] for p in policy], PAIR, reference=[r[:n] for r in reference])
    same(Pair(scoring=Desensitised(alpha)), Pair(), cut)


@given(answers(), beta)
def test_f_dpo_with_reverse_kl_or_alpha_one_is_dpo(
    make_reads: MakeReads, drawn: tuple[Rows, Rows], scale: float
) -> None:
    policy, reference = drawn
    reads = make_reads(policy, PAIR, reference=reference)
    same(Pair("text", scale, scoring=FDivergence("reverse_kl")), Pair("text", scale), reads)
    same(Pair("text", scale, scoring=FDivergence("alpha", 1.0)), Pair("text", scale), reads)
    near = Pair("text", scale, scoring=FDivergence("alpha", 1 + 2e-6))
    assert reduced(near, reads).item() == pytest.approx(reduced(Pair("text", scale), reads).item(), rel=1e-3)


@given(answers())
def test_f_divergence_scores_are_zero_at_the_reference_and_bounded_above(
    make_reads: MakeReads, drawn: tuple[Rows, Rows]
) -> None:
    """1 - exp(-rho) < 1 and log 2 + log sigmoid(rho) < log 2; TRL's earlier forms lacked these constants."""
    policy, reference = drawn
    reads = make_reads(policy, PAIR, reference=reference)
    assert (FDivergence("forward_kl").cells(reads) < 1).all()
    assert (FDivergence("js").cells(reads) < math.log(2)).all()
    here = make_reads(policy, PAIR, reference=policy)
    for kind in ("forward_kl", "js", "alpha", "reverse_kl"):
        assert FDivergence(kind).cells(here).tolist() == pytest.approx([0.0, 0.0], abs=1e-12)


@given(answers())
def test_alpha_po_tends_to_simpo_and_log_odds_to_minus_infinity_s_log_prob(
    make_reads: MakeReads, drawn: tuple[Rows, Rows]
) -> None:
    reads = make_reads(drawn[0], PAIR)
    mean = Mean(against=None).cells(reads)
    torch.testing.assert_close(Alpha(0.0).cells(reads), mean)
    torch.testing.assert_close(Alpha(1e-7).cells(reads), mean, rtol=1e-5, atol=1e-5)
    p = mean.exp()
    torch.testing.assert_close(LogOdds().cells(reads), torch.log(p / (1 - p)))


@given(answers(), beta)
def test_reference_gating_trusts_the_reference_only_where_it_agrees(
    make_reads: MakeReads, drawn: tuple[Rows, Rows], scale: float
) -> None:
    policy, reference = drawn
    reads = make_reads(policy, PAIR, reference=reference)
    gated = Pair("text", scale, scoring=Sum(against=None), margin=ReferenceGate(scale))
    agrees = sum(reference[0]) > sum(reference[1])
    same(gated, Pair("text", scale, scoring=Sum() if agrees else Sum(against=None)), reads)


# -- several objectives --------------------------------------------------------------------------------------


@given(answers(), beta, st.floats(0.1, 1), st.floats(-2, 2), st.floats(-2, 2), st.floats(-5, 5))
def test_modpo_with_one_objective_is_dpo_and_does_not_see_shifted_rewards(
    make_reads: MakeReads,
    drawn: tuple[Rows, Rows],
    scale: float,
    w1: float,
    one: float,
    other: float,
    by: float,
) -> None:
    def reads(shift: float) -> Reads:
        scores = {"safety": ([one + shift], [other + shift])}
        return make_reads(drawn[0], PAIR, reference=drawn[1], annotated={"text": {"scores": scores}})

    def modpo(first: float) -> Pair:
        return Pair("text", scale / first, margin=ScoreGap((1 - first) / first, "safety"))

    same(modpo(1.0), Pair("text", scale), reads(0.0))
    first, second = (reduced(modpo(w1), reads(shift)).item() for shift in (0.0, by))
    assert first == pytest.approx(second, rel=1e-6, abs=1e-6)
    both = Together((ScoreGap((1 - w1) / w1, "safety"), Constant(0.5)))
    h = scale / w1 * (sum(drawn[0][0]) - sum(drawn[1][0]) - sum(drawn[0][1]) + sum(drawn[1][1]))
    h -= (1 - w1) / w1 * (one - other) + 0.5
    found = reduced(Pair("text", scale / w1, margin=both), reads(0.0)).item()
    assert found == pytest.approx(
        -F.logsigmoid(torch.tensor(h, dtype=torch.float64)).item(), rel=1e-9, abs=1e-9
    )


# -- single answers ------------------------------------------------------------------------------------------


@given(answers(), beta)
def test_kto_without_a_baseline_is_half_of_apo_zero(
    make_reads: MakeReads, drawn: tuple[Rows, Rows], scale: float
) -> None:
    """The mean over two answers against the sum of a pair."""
    reads = make_reads(drawn[0], PAIR, reference=drawn[1])
    kto = Kto("text.winner", "text.loser", None, scale)
    same(2.0 * kto, 1.0 * Sides("text", scale, ApoZero()), reads)


@given(answers(4), beta)
def test_kto_s_baseline_is_at_least_zero_and_carries_no_gradient(
    make_reads: MakeReads, drawn: tuple[Rows, Rows], scale: float
) -> None:
    """Which answers stand beside which prompt matters to z alone."""
    roles = {"good": [(0, 0)], "bad": [(1, 1)], "kl": [(2, 0), (3, 1)]}
    reads = make_reads(drawn[0], size=2, reference=drawn[1], roles=roles)
    term = Kto("good", "bad", "kl", scale)
    rho = [sum(p) - sum(r) for p, r in zip(*drawn, strict=True)]
    z = term.shift(reads)
    assert z.item() == pytest.approx(max(0.0, (rho[2] + rho[3]) / 2)) and not z.requires_grad
    (gradient,) = torch.autograd.grad(term.value(reads).sum(), reads.tokens["policy"])
    assert not gradient[2:].any()
    swapped = make_reads(drawn[0], size=2, reference=drawn[1], roles={**roles, "kl": [(3, 0), (2, 1)]})
    torch.testing.assert_close(term.value(swapped), term.value(reads))


@given(answers(), beta)
def test_bco_before_anything_was_seen_is_its_pairwise_form(
    make_reads: MakeReads, drawn: tuple[Rows, Rows], scale: float
) -> None:
    reads = make_reads(drawn[0], PAIR, reference=drawn[1])
    same(2.0 * Bco("text.winner", "text.loser", scale), 1.0 * Sides("text", scale, BcoPair()), reads)
