"""What likelihoods, bonuses and rationales add to a pairwise loss."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import strategies as st

from pipelines.objectives.kl import Bonus
from pipelines.objectives.nll import Nll
from pipelines.objectives.pair import Linear, Pair
from pipelines.objectives.rationale import LogProb
from tests.pipelines.objectives.drawn import (
    PAIR,
    MakeReads,
    Rows,
    answers,
    beta,
    by_answer,
    given,
    reduced,
    same,
)

# -- regularisers --------------------------------------------------------------------------------------------


@given(answers(), st.floats(0, 2), beta)
def test_rpo_adds_its_likelihood_in_three_reductions(
    make_reads: MakeReads, drawn: tuple[Rows, Rows], eta: float, scale: float
) -> None:
    """The sum form adds -eta beta to the gradient of log pi(w); with answers of one token all three agree."""
    reads = make_reads(drawn[0], PAIR, reference=drawn[1])
    dpo = Pair("text", scale)
    same(dpo + 0.0 * Nll(), dpo, reads)
    base = by_answer(reduced(dpo, reads), reads)
    rpo = by_answer(reduced(dpo + eta * scale * Nll("text.winner", "sum"), reads), reads)
    assert rpo == pytest.approx([base[0] - eta * scale, base[1]], abs=1e-9)
    short = make_reads([tokens[:1] for tokens in drawn[0]], PAIR)
    for reduction in ("sequence_mean", "batch_tokens"):
        same(Nll("text.winner", reduction), Nll("text.winner", "sum"), short)


@given(answers(4))
def test_the_reductions_weigh_long_answers_differently(
    make_reads: MakeReads, drawn: tuple[Rows, Rows]
) -> None:
    policy = drawn[0]
    reads = make_reads(policy, size=4, roles={"y": [(i, i) for i in range(4)]})
    sums, lengths = [sum(tokens) for tokens in policy], [len(tokens) for tokens in policy]
    wanted = {
        "sum": -sum(sums) / 4,
        "sequence_mean": -sum(s / n for s, n in zip(sums, lengths, strict=True)) / 4,
        "batch_tokens": -sum(sums) / sum(lengths),
    }
    for reduction, value in wanted.items():
        assert reduced(Nll("y", reduction), reads).item() == pytest.approx(value)


@given(answers(3), beta, st.floats(0, 0.5))
def test_vpo_is_rpo_offline_and_xpo_online(
    make_reads: MakeReads, drawn: tuple[Rows, Rows], scale: float, alpha: float
) -> None:
    """sign -1 on the chosen answers: RPO with eta = alpha, but for the reference's constant. sign +1 on the
    reference's answers: XPO with alpha_XPO = alpha beta."""
    reads = make_reads(drawn[0], PAIR, reference=drawn[1], roles={"r": [(2, 0)]})
    dpo = Pair("text", scale)
    pessimist = dpo + Bonus("text.winner", -alpha * scale, against="reference")
    rpo = dpo + alpha * scale * Nll("text.winner", "sum")
    same(pessimist, rpo, reads, offset=alpha * scale * sum(drawn[1][0]))
    optimist = dpo + Bonus("r", alpha * scale, against="reference")
    same(optimist, dpo + alpha * scale * Bonus("r"), reads, offset=-alpha * scale * sum(drawn[1][2]))
    same(dpo + Bonus("r", 0.0), dpo, reads)
    up, down = (by_answer(reduced(Bonus("r", sign), reads), reads)[2] for sign in (-1.0, 1.0))
    assert up < 0 < down  # minimising raises log pi under pessimism and lowers it under optimism


@given(answers(), st.floats(0.001, 2))
def test_a_rationale_far_from_likely_adds_its_likelihood(
    make_reads: MakeReads, drawn: tuple[Rows, Rows], gamma: float
) -> None:
    """-log sigmoid(g) = -g + log(1 + exp(g)): log 2 more near 0, nothing far below it."""
    reads = make_reads([drawn[0][0]], roles={"e": [(0, 0)]})
    g = gamma * sum(drawn[0][0])
    found = reduced(LogProb("e", gamma), reads).item()
    assert found == pytest.approx(-g + math.log1p(math.exp(g)))
    assert reduced(LogProb("e", 1e-9), reads).item() == pytest.approx(math.log(2), abs=1e-6)
    far = make_reads([[-60.0 / gamma]], roles={"e": [(0, 0)]})
    same(LogProb("e", gamma), gamma * Nll("e", "sum"), far)


@given(answers(), beta)
def test_mapl_on_one_prompt_twice_is_log_two_and_reversed_prompts_swap(
    make_reads: MakeReads, drawn: tuple[Rows, Rows], scale: float
) -> None:
    policy, reference = drawn
    twice = make_reads([policy[0], policy[0]], PAIR, reference=[reference[0], reference[0]])
    assert reduced(Pair("text", scale), twice).item() == pytest.approx(math.log(2))
    edges = {"wide": [(0, 1, 0)], "base": [(0, 1, 0)]}
    wide = Linear({"wide": 1.0, "base": -1.0}, scale)
    still = make_reads(policy, edges, reference=reference)
    loss = reduced(wide, still)
    assert loss.item() == pytest.approx(math.log(2))
    assert not torch.autograd.grad(loss, still.tokens["policy"])[0].any()
    reads = make_reads(
        [*policy, [0.0], [0.0]],
        {"wide": [(0, 1, 0)], "base": [(2, 3, 0)]},
        reference=[*reference, [0.0], [0.0]],
    )
    other = Linear({"base": 1.0, "wide": -1.0}, scale)
    h = scale * (sum(policy[0]) - sum(reference[0]) - sum(policy[1]) + sum(reference[1]))
    assert reduced(wide, reads).item() - reduced(other, reads).item() == pytest.approx(-h, abs=1e-9)
