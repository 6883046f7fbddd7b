"""What lists, masks and policy gradients are to the losses that they extend."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor

from pipelines.objectives.base import Reads, Term
from pipelines.objectives.implicit import FSft
from pipelines.objectives.kl import ScoreKl
from pipelines.objectives.margins import KLGap
from pipelines.objectives.masks import Activation, Learned, SparsePair
from pipelines.objectives.masks import Constant as Everywhere
from pipelines.objectives.nll import ExpReward, Nll
from pipelines.objectives.pair import Pair
from pipelines.objectives.policy_gradient import Nash, PolicyGradient, Reinforce
from pipelines.objectives.ranking import Lambda, PlackettLuce, Pro, Skip
from pipelines.objectives.ratios import AdvantageRegression, Cispo, Gmpo, Sapo, Vespo
from pipelines.objectives.scoring import Mean, StepWeighted
from pipelines.objectives.weightings import LambdaGap
from tests.pipelines.objectives.drawn import (
    PAIR,
    MakeReads,
    Rows,
    answers,
    beta,
    given,
    reduced,
    same,
)

# -- lists ---------------------------------------------------------------------------------------------------


def listed(make_reads: MakeReads, rows: Rows, reference: Rows, rewards: list[float]) -> Reads:
    roles = {"y": [(i, 0) for i in range(len(rows))]}
    edges = {"text": [(i, j, 0) for i in range(len(rows)) for j in range(i + 1, len(rows))]}
    return make_reads(rows, edges, reference=reference, roles=roles, scores={"y": {"value": rewards}})


@given(answers(), st.just(0.0) | st.floats(0, 3))
def test_pro_of_two_is_the_logistic_loss_of_the_mean_gap_times_the_reward_gap(
    make_reads: MakeReads, drawn: tuple[Rows, Rows], gap: float
) -> None:
    """Equal rewards give log 2 and no signal; it is DPO on means without a reference, beta = T."""
    policy, zeros = drawn[0], [[0.0] * len(tokens) for tokens in drawn[0]]
    reads = listed(make_reads, policy, zeros, [gap, 0.0])
    p, q = (sum(tokens) / len(tokens) for tokens in policy)
    wanted = -F.logsigmoid(torch.tensor(gap * (p - q), dtype=torch.float64)).item()
    assert reduced(Pro("y", sft=0.0), reads).item() == pytest.approx(wanted, abs=1e-9)
    if gap == 0:
        value = reduced(Pro("y", sft=0.0), reads)
        assert not torch.autograd.grad(value, reads.tokens["policy"])[0].any()
    if gap > 0.01:
        same(Pro("y", sft=0.0), Pair("text", gap, scoring=Mean(against=None)), reads)
    likelihood = 0.05 * -sum(policy[0])  # w (n - 1)^2 of the best answer
    if gap > 0:
        assert reduced(Pro("y"), reads).item() == pytest.approx(wanted + likelihood, abs=1e-9)


@given(answers(4), st.permutations(range(4)))
def test_lists_do_not_see_the_order_in_which_candidates_come(
    make_reads: MakeReads, drawn: tuple[Rows, Rows], order: list[int]
) -> None:
    rewards = [0.5, -1.0, 2.0, 0.0]
    rows = listed(make_reads, *drawn, rewards)
    mixed = listed(make_reads, *([part[i] for i in order] for part in drawn), [rewards[i] for i in order])
    for term in (Pro("y"), PlackettLuce("y"), Lambda("y"), Skip("y", k=2)):
        assert term.value(rows).item() == pytest.approx(term.value(mixed).item(), rel=1e-9), term


@given(answers(), beta)
def test_plackett_luce_neighbours_and_lambda_of_two_are_dpo(
    make_reads: MakeReads, drawn: tuple[Rows, Rows], scale: float
) -> None:
    """lambda of the scores 1 and 0 at ranks 1 and 2: (2 - 1) |1 / ln 2 - 1 / ln 3|."""
    reads = listed(make_reads, *drawn, [1.0, 0.0])
    dpo = Pair("text", scale)
    same(PlackettLuce("y", scale), dpo, reads)
    same(Skip("y", scale), dpo, reads)
    same(1.0 * Lambda("y", scale), (1 / math.log(2) - 1 / math.log(3)) * dpo, reads)


@given(answers(4), beta)
def test_lambda_on_a_role_is_the_weighted_sum_over_all_pairs_as_edges(
    make_reads: MakeReads, drawn: tuple[Rows, Rows], scale: float
) -> None:
    """Unit step weights change nothing; ties and their pairs weigh nothing."""
    rewards = [1.5, 1.5, 0.0, -1.0]
    reads = listed(make_reads, *drawn, rewards)
    table = reads.edges["text"]
    values = torch.tensor(rewards, dtype=torch.float64)
    table.scores["value"] = (values[table.winner], values[table.loser])  # type: ignore[index]
    ones = torch.ones(6, reads.mask.shape[1], dtype=torch.float64)
    table.spans["steps"] = (ones, ones)  # type: ignore[index]
    edges = Pair("text", scale, weighting=LambdaGap(), scoring=StepWeighted("steps"))
    assert Lambda("y", scale).value(reads).item() == pytest.approx(edges.value(reads).item(), rel=1e-9)
    weights = LambdaGap()(reads, table)
    assert weights[0] == 0 and (weights[1:] > 0).all()


# -- sparse masks --------------------------------------------------------------------------------------------


def sparse_reads(make_reads: MakeReads, drawn: tuple[Rows, Rows]) -> Reads:
    policy, reference = drawn
    longest = max(len(tokens) for tokens in policy)
    base = torch.arange(2 * longest * 3, dtype=torch.float64).reshape(2, longest, 3).sin()
    mask = torch.arange(longest) < torch.tensor([[len(tokens)] for tokens in policy])
    features = {"reference_hidden": base, "kl_forward": base[..., 0].abs() * mask}
    head = torch.nn.Linear(3, 1).double()
    head.weight.data = torch.tensor([[0.5, -0.2, 0.1]], dtype=torch.float64)
    head.bias.data = torch.tensor([0.3], dtype=torch.float64)
    return make_reads(policy, PAIR, reference=reference, features=features, heads={"mask": head})


@given(answers(), beta, st.floats(0.1, 3))
def test_sparse_masks_of_one_are_tdpo_and_without_divergences_dpo(
    make_reads: MakeReads, drawn: tuple[Rows, Rows], scale: float, c: float
) -> None:
    reads = sparse_reads(make_reads, drawn)
    tdpo = Pair("text", scale, margin=KLGap(scale, frozen_winner=False))
    same(SparsePair("text", scale, Everywhere(1.0, 1.0)), tdpo, reads)
    same(SparsePair("text", scale, Everywhere(1.0, 0.0)), Pair("text", scale), reads)
    same(SparsePair("text", scale, Everywhere(c, 0.0)), Pair("text", scale * c), reads)
    silent = reduced(SparsePair("text", scale, Everywhere(0.0, 0.0)), reads)
    assert silent.item() == pytest.approx(math.log(2))
    assert not torch.autograd.grad(silent, reads.tokens["policy"])[0].any()


@given(answers(), st.floats(0.1, 5), st.floats(-5, 5))
def test_activation_masks_lie_in_the_unit_interval_and_ignore_scale_and_shift(
    make_reads: MakeReads, drawn: tuple[Rows, Rows], scale: float, shift: float
) -> None:
    reads = sparse_reads(make_reads, drawn)
    mask = Activation()(reads)[0]
    assert ((mask >= 0) & (mask <= 1)).all() and not mask[~reads.mask].any()
    reads.features["reference_hidden"] = scale * reads.features["reference_hidden"] + shift  # type: ignore[index]
    torch.testing.assert_close(Activation()(reads)[0], mask)


def test_the_size_of_learned_masks_is_what_l1_adds(make_reads: MakeReads) -> None:
    reads = sparse_reads(make_reads, ([[-1.0, -2.0], [-0.5]], [[-1.0, -1.0], [-1.0]]))
    free, dear = SparsePair("text", 0.1, Learned()), SparsePair("text", 0.1, Learned(), 0.5)
    size = sum(mask.sum() for mask in Learned()(reads))
    assert isinstance(size, Tensor)
    torch.testing.assert_close(dear.value(reads) - free.value(reads), 0.5 * size.reshape(1))
    head = reads.heads["mask"]
    assert any(g.any() for g in torch.autograd.grad(dear.value(reads).sum(), list(head.parameters())))


# -- fresh samples -------------------------------------------------------------------------------------------


@given(answers(), beta)
def test_a_fair_duel_leaves_nash_md_with_its_kl_alone(
    make_reads: MakeReads, drawn: tuple[Rows, Rows], scale: float
) -> None:
    policy, reference = drawn
    reads = make_reads(
        policy, {"duel": [(0, 1, 0)]}, reference=reference, annotated={"duel": {"probability": [0.5]}}
    )
    kl = sum((p - r) * p for p, r in zip(policy[0], reference[0], strict=True))
    assert reduced(Nash("duel", scale, None), reads).item() == pytest.approx(scale * kl, abs=1e-9)


@given(answers(4))
def test_policy_gradients_ignore_a_reward_shift_and_teach_nothing_without_a_spread(
    make_reads: MakeReads, drawn: tuple[Rows, Rows]
) -> None:
    roles = {"y": [(i, 0) for i in range(4)]}

    def value(term: Term, rewards: list[float]) -> float:
        return term.value(make_reads(drawn[0], roles=roles, scores={"y": {"value": rewards}})).item()

    for term in (PolicyGradient("y", clip=None), PolicyGradient("y", "centered", None), Reinforce("y")):
        shifted = value(term, [1.0, 2.0, 0.0, 5.0]), value(term, [4.0, 5.0, 3.0, 8.0])
        assert shifted[0] == pytest.approx(shifted[1], abs=1e-6)
        assert value(term, [1.0] * 4) == pytest.approx(0.0, abs=1e-9)


@given(answers(3))
def test_fresh_samples_make_the_clipped_ratio_plain_reinforce(
    make_reads: MakeReads, drawn: tuple[Rows, Rows]
) -> None:
    """At u = 1 the gradient of -u A is that of -A log pi, whatever the form of the ratio."""
    roles, scores = {"y": [(i, 0) for i in range(3)]}, {"y": {"value": [1.0, 0.0, 3.0]}}
    reads = make_reads(drawn[0], roles=roles, scores=scores)
    reads.tokens["behaviour"] = torch.full_like(reads.tokens["reference"], torch.nan)  # type: ignore[index]

    def gradient(term: Term) -> Tensor:
        return torch.autograd.grad(term.value(reads).sum(), reads.tokens["policy"])[0] * reads.mask

    plain = gradient(PolicyGradient("y", clip=None))
    mean = "sequence_mean"
    forms = PolicyGradient("y"), PolicyGradient("y", ceiling=1.1), PolicyGradient("y", ratio="sequence")
    for term in (*forms, Cispo("y", reduction=mean), Sapo("y"), Vespo("y", reduction=mean), Gmpo("y")):
        torch.testing.assert_close(gradient(term), plain)


@given(answers(2), st.floats(0.05, 2), st.floats(-2, 2), st.floats(-2, 2))
def test_regression_on_the_advantage_rests_where_beta_rho_is_the_advantage(
    make_reads: MakeReads, drawn: tuple[Rows, Rows], scale: float, first: float, second: float
) -> None:
    """(beta rho - (r - V))^2: 0 with r = V + beta rho, quadratic in what V misses."""
    rho = [sum(p) - sum(r) for p, r in zip(*drawn, strict=True)]
    optimal = [first, second]
    rewards = [v + scale * x for v, x in zip(optimal, rho, strict=True)]
    roles, parts = {"y": [(0, 0), (1, 0)]}, {"value": rewards, "optimal": optimal}
    term = AdvantageRegression("y", scale)
    reads = make_reads(drawn[0], reference=drawn[1], roles=roles, scores={"y": parts})
    assert reduced(term, reads).item() == pytest.approx(0.0, abs=1e-9)
    parts = {**parts, "optimal": [first + 0.5, math.nan]}  # the second is missing and weighs nothing
    missed = make_reads(drawn[0], reference=drawn[1], roles=roles, scores={"y": parts})
    assert reduced(term, missed).item() == pytest.approx(0.25)


@given(answers(), beta)
def test_f_sft_starts_as_sft_under_every_divergence(
    make_reads: MakeReads, drawn: tuple[Rows, Rows], scale: float
) -> None:
    reads = make_reads(drawn[0], PAIR, reference=drawn[1])
    offset = scale * sum(drawn[1][0])
    same(FSft("text.winner", "kl", scale), scale * Nll("text.winner", "sum"), reads, offset)
    start = make_reads(drawn[0], PAIR, reference=drawn[0])
    for divergence in ("pearson", "hellinger"):
        same(FSft("text.winner", divergence, scale), FSft("text.winner", "kl", scale), start)


@given(answers(3), st.floats(0.2, 3))
def test_rewards_equal_to_zero_leave_the_likelihood_alone(
    make_reads: MakeReads, drawn: tuple[Rows, Rows], temperature: float
) -> None:
    reads = make_reads(drawn[0], roles={"y": [(i, 0) for i in range(3)]}, scores={"y": {"value": [0.0] * 3}})
    same(Nll("y", "sum", ExpReward(temperature)), Nll("y", "sum"), reads)
    same(2.0 * Nll("y", "sum", ExpReward(temperature, kind="sigmoid")), 1.0 * Nll("y", "sum"), reads)


@given(answers(3))
def test_the_score_function_of_the_kl_vanishes_at_the_reference(
    make_reads: MakeReads, drawn: tuple[Rows, Rows]
) -> None:
    reads = make_reads(drawn[0], reference=drawn[0], roles={"y": [(i, 0) for i in range(3)]})
    value = ScoreKl("y").value(reads).sum()
    assert not torch.autograd.grad(value, reads.tokens["policy"])[0].any()
