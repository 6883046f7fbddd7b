"""What the multimodal methods are to each other, for any log-probabilities."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import strategies as st

from pipelines.objectives.anchor import Anchor
from pipelines.objectives.base import Reads
from pipelines.objectives.kl import LoserKl, TokenKl
from pipelines.objectives.links import BoxCox
from pipelines.objectives.margins import KLGap, ScoreGap, TaskEma
from pipelines.objectives.mcr import PermutationContrast, game
from pipelines.objectives.nll import Nll
from pipelines.objectives.pair import Linear, Pair
from pipelines.objectives.positions import PositionPair
from pipelines.objectives.ranking import PlackettLuce
from pipelines.objectives.scoring import Mean, OnlySpans, Spans
from pipelines.objectives.sides import BcoPair, Sides
from pipelines.objectives.softmax import Softmax
from pipelines.objectives.unpaired import Bco
from pipelines.objectives.weightings import Confidence, ZScore
from tests.pipelines.objectives.drawn import PAIR, MakeReads, Rows, answers, beta, given, reduced, same

Drawn = tuple[Rows, Rows]
THREE = {"text": [(0, 1, 0)], "media": [(0, 2, 0)]}  # w@x, l@x, w@m
share = st.floats(0, 1)


def spanned(make_reads: MakeReads, drawn: Drawn, level: float, **extra: object) -> Reads:
    """w@x > l@x with the span "seg" of that weight on every token."""
    longest = max(len(tokens) for tokens in drawn[0])
    weights = torch.full((1, longest), level, dtype=torch.float64)
    annotated = {"text": {"spans": {"seg": (weights, weights)}}}
    return make_reads(drawn[0], PAIR, reference=drawn[1], annotated=annotated, **extra)


def kl_features(drawn: Drawn) -> dict[str, torch.Tensor]:
    longest = max(len(tokens) for tokens in drawn[0])
    rows = [[abs(p - r) for p, r in zip(*pair, strict=True)] for pair in zip(*drawn, strict=True)]
    padded = [[*row, *[0.0] * (longest - len(row))] for row in rows]
    return {"kl_forward": torch.tensor(padded, dtype=torch.float64).requires_grad_()}


@given(answers(3), beta, st.floats(-1, 1))
def test_mfpo_with_eta_zero_is_mdpo_and_eta_moves_the_anchor_alone(
    make_reads: MakeReads, drawn: Drawn, scale: float, eta: float
) -> None:
    """Whole-image noise or key regions: the loss sees an edge between the same answer under two prompts."""
    reads = make_reads(drawn[0], THREE, reference=drawn[1])

    def objective(delta: float) -> float:
        terms = Pair("text", scale) + Pair("media", scale) + Anchor("text.winner", delta, scale)
        return reduced(terms, reads).item()

    rho = [scale * (sum(p) - sum(r)) for p, r in zip(*drawn, strict=True)]
    mdpo = sum(math.log1p(math.exp(-h)) for h in (rho[0] - rho[1], rho[0] - rho[2], rho[0]))
    assert objective(0.0) == pytest.approx(mdpo)
    moved = math.log1p(math.exp(eta - rho[0])) - math.log1p(math.exp(-rho[0]))
    assert objective(eta) - objective(0.0) == pytest.approx(moved, abs=1e-9)


@given(answers(3), beta)
def test_adavip_with_one_negative_is_dpo_and_two_cost_more_than_either(
    make_reads: MakeReads, drawn: Drawn, scale: float
) -> None:
    reads = make_reads(drawn[0], THREE, reference=drawn[1])
    same(Softmax("text", scale), Pair("text", scale), reads)
    both, text, media = (
        reduced(term, reads).item()
        for term in (Softmax(("text", "media"), scale), Pair("text", scale), Pair("media", scale))
    )
    assert max(text, media) <= both + 1e-12 <= text + media + 1e-9
    rho = [scale * (sum(p) - sum(r)) for p, r in zip(*drawn, strict=True)]
    assert both == pytest.approx(math.log(1 + math.exp(rho[1] - rho[0]) + math.exp(rho[2] - rho[0])))


@given(answers(3), beta)
def test_adavip_leans_to_the_harder_negative(make_reads: MakeReads, drawn: Drawn, scale: float) -> None:
    reads = make_reads(drawn[0], THREE, reference=drawn[1])
    loss = reduced(Softmax(("text", "media"), scale), reads)
    gradient = torch.autograd.grad(loss, reads.tokens["policy"])[0][:, 0]
    text, media = (sum(p) - sum(r) for p, r in list(zip(*drawn, strict=True))[1:])
    harder, easier = (gradient[1], gradient[2]) if text >= media else (gradient[2], gradient[1])
    assert harder >= easier - 1e-12
    assert gradient[0].item() == pytest.approx(-(gradient[1] + gradient[2]).item())


@given(answers(), beta, share)
def test_chip_s_segments_of_weight_one_are_plain_and_normalised_ones_are_means(
    make_reads: MakeReads, drawn: Drawn, scale: float, level: float
) -> None:
    reads = spanned(make_reads, drawn, level)
    same(Pair("text", scale, scoring=Spans("seg", 1.0)), Pair("text", scale), reads)
    same(Pair("text", scale, scoring=Spans("seg", 1.0, True)), Pair("text", scale, scoring=Mean()), reads)
    same(Pair("text", scale, scoring=Spans("seg", 4.0, True)), Pair("text", scale, scoring=Mean()), reads)
    four = Pair("text", scale, scoring=Spans("seg", 4.0))
    same(four, Pair("text", (1 + 3 * level) * scale), reads)


@given(answers(3), beta)
def test_chip_released_with_weight_one_and_no_kl_is_one_sigmoid_over_both_margins(
    make_reads: MakeReads, drawn: Drawn, scale: float
) -> None:
    features = kl_features(drawn)
    reads = make_reads(drawn[0], THREE, reference=drawn[1], features=features)
    released = Linear({"text": 1.0, "media": 1.0}, scale, margin=KLGap(0.0))
    rho = [scale * (sum(p) - sum(r)) for p, r in zip(*drawn, strict=True)]
    h = 2 * rho[0] - rho[1] - rho[2]
    assert reduced(released, reads).item() == pytest.approx(math.log1p(math.exp(-h)))
    same(Linear({"text": 1.0}, scale), Pair("text", scale), reads)


@given(answers(), st.floats(0.01, 1))
def test_the_kl_gap_is_a_penalty_inside_the_sigmoid_and_a_reward_as_chip_s_paper_prints_it(
    make_reads: MakeReads, drawn: Drawn, gamma: float
) -> None:
    """d/d KL_l of -log sigmoid(h - g KL_l) is g sigmoid(g KL_l - h) > 0; of g (KL_w - KL_l) it is -g.

    The winner's KL carries no gradient in either.
    """
    features = kl_features(drawn)
    reads = make_reads(drawn[0], PAIR, reference=drawn[1], features=features)
    kl = features["kl_forward"]
    (inside,) = torch.autograd.grad(reduced(Pair(margin=KLGap(gamma)), reads), kl)
    (printed,) = torch.autograd.grad(reduced(-gamma * LoserKl("text"), reads), kl)
    assert (inside[1] > 0).all() and not inside[0].any()
    assert printed[1].tolist() == pytest.approx([-gamma] * len(printed[1])) and not printed[0].any()
    (both,) = torch.autograd.grad(reduced(Pair(margin=KLGap(gamma, frozen_winner=False)), reads), kl)
    torch.testing.assert_close(both[0], -both[1])


@given(answers(), beta)
def test_opa_aligns_positions_and_leaves_the_longer_answer_s_rest_alone(
    make_reads: MakeReads, drawn: Drawn, scale: float
) -> None:
    reads = make_reads(drawn[0], PAIR, reference=drawn[1])
    shared = min(len(tokens) for tokens in drawn[0])
    rho = [[p - r for p, r in zip(*pair, strict=True)] for pair in zip(*drawn, strict=True)]
    gaps = torch.tensor([rho[0][t] - rho[1][t] for t in range(shared)], dtype=torch.float64)
    loss = reduced(PositionPair("text", scale), reads)
    assert loss.item() == pytest.approx(-F.logsigmoid(scale * gaps).mean().item())
    (gradient,) = torch.autograd.grad(loss, reads.tokens["policy"])
    assert not gradient[:, shared:].any()


@given(answers(), beta)
def test_opa_on_answers_of_one_token_is_dpo_and_severities_scale_the_ratio(
    make_reads: MakeReads, drawn: Drawn, scale: float
) -> None:
    short = [tokens[:1] for tokens in drawn[0]], [tokens[:1] for tokens in drawn[1]]
    reads = spanned(make_reads, short, 2.0)
    same(PositionPair("text", scale), Pair("text", scale), reads)
    same(PositionPair("text", scale, "seg"), Pair("text", 2 * scale), reads)


@given(answers(), beta)
def test_rrpo_on_whole_answers_without_kl_is_dpo(make_reads: MakeReads, drawn: Drawn, scale: float) -> None:
    reads = spanned(make_reads, drawn, 1.0, features=kl_features(drawn))
    rrpo = Pair("text", scale, scoring=OnlySpans("seg")) + 0.0 * TokenKl("text.winner")
    same(rrpo, Pair("text", scale), reads)
    total = reads.features["kl_forward"][0].sum().item()
    assert reduced(TokenKl("text.winner"), reads).item() == pytest.approx(total)
    assert reduced(Pair("text", scale, scoring=OnlySpans("seg")), spanned(make_reads, drawn, 0.0)).item() == (
        pytest.approx(math.log(2))
    )


@given(answers(), beta)
def test_internvl_s_mixture_weighs_twice_bco_per_answer(
    make_reads: MakeReads, drawn: Drawn, scale: float
) -> None:
    """0.8 DPO + 0.2 BCO of a pair + NLL, before any reward was seen (delta = 0)."""
    reads = make_reads(drawn[0], PAIR, reference=drawn[1])
    rest = 0.8 * Pair("text", scale) + Nll("text.winner")
    mixture = rest + 2 * 0.2 * Bco("text.winner", "text.loser", scale)
    same(mixture, rest + 0.2 * Sides("text", scale, BcoPair()), reads)


@given(answers(3), st.floats(0.02, 0.5), st.floats(0.02, 0.5))
def test_povid_s_one_sigmoid_has_a_beta_for_each_edge(
    make_reads: MakeReads, drawn: Drawn, first: float, second: float
) -> None:
    edges = {"text": [(0, 1, 0)], "online": [(0, 2, 0)]}
    reads = make_reads(drawn[0], edges, reference=drawn[1])
    rho = [sum(p) - sum(r) for p, r in zip(*drawn, strict=True)]
    h = first * (rho[0] - rho[1]) + second * (rho[0] - rho[2])
    one = Linear({"text": 1.0, "online": second / first}, first)
    assert reduced(one, reads).item() == pytest.approx(math.log1p(math.exp(-h)))
    two = 0.5 * Pair("text", first) + 0.5 * Pair("online", second)
    assert reduced(one, reads).item() <= 2 * reduced(two, reads).item() + 1e-9


def test_a_linear_form_needs_all_of_its_edges_and_their_keys(make_reads: MakeReads) -> None:
    """Comparison 0 lacks "media"; in 1 the keys pair the edges crosswise; 2 takes the lightest weight."""
    text = [(0, 1, 0), (0, 1, 1), (2, 3, 1), (0, 1, 2, 0.0, 3.0)]
    media = [(4, 1, 1), (5, 1, 1), (0, 5, 2, 0.5, 0.25)]
    annotated = {"text": {"key": [0, 7, 8, 0]}, "media": {"key": [8, 7, 0]}}
    reads = make_reads([0.0, 1.0, 2.0, 3.0, 4.0, 5.0], {"text": text, "media": media}, 3, annotated=annotated)
    term = Linear({"text": 1.0, "media": 2.0}, 1.0)
    assert term.weight(reads).tolist() == [0.0, 2.0, 0.25]
    logistic = [math.log1p(math.exp(-h)) for h in (-1 + 2 * 4, -1 + 2 * 3, -1 + 2 * -5 - 0.5)]
    assert term.value(reads).tolist() == pytest.approx([0.0, logistic[0] + logistic[1], 0.25 * logistic[2]])
    twice = make_reads([0.0, 1.0], {"text": [(0, 1, 0)], "media": [(0, 1, 0), (0, 1, 0)]}, 1)
    with pytest.raises(ValueError, match="several edges 'media' share one"):
        term.value(twice)


@given(answers(3), beta)
def test_lpoi_of_two_media_is_the_media_pair(make_reads: MakeReads, drawn: Drawn, scale: float) -> None:
    roles = {"w@x": [(0, 0)], "w@m1": [(1, 0)], "w@m2": [(2, 0)]}
    edges = {"one": [(0, 1, 0)], "two": [(0, 2, 0)], "last": [(1, 2, 0)]}
    reads = make_reads(drawn[0], edges, reference=drawn[1], roles=roles)
    same(PlackettLuce(("w@x", "w@m1"), scale), Pair("one", scale), reads)
    same(
        PlackettLuce(("w@x", "w@m1", "w@m2"), scale),
        Softmax(("one", "two"), scale) + Pair("last", scale),
        reads,
    )


@given(answers(), beta, st.floats(-3, 3))
def test_uv_cot_without_a_score_gap_is_dpo(
    make_reads: MakeReads, drawn: Drawn, scale: float, score: float
) -> None:
    annotated = {"text": {"scores": {"value": ([score], [score])}}}
    reads = make_reads(drawn[0], PAIR, reference=drawn[1], annotated=annotated)
    same(Pair("text", scale, margin=ScoreGap()), Pair("text", scale), reads)


@given(answers(), beta)
def test_napo_with_q_zero_is_dpo(make_reads: MakeReads, drawn: Drawn, scale: float) -> None:
    reads = make_reads(drawn[0], PAIR, reference=drawn[1])
    same(Pair("text", scale, BoxCox(0.0)), Pair("text", scale), reads)


@given(answers(), st.floats(0, 3))
def test_mmedpo_s_weights_multiply_and_do_not_divide(
    make_reads: MakeReads, drawn: Drawn, weight: float
) -> None:
    annotated = {"text": {"scores": {"panel": ([weight], [math.nan])}}}
    reads = make_reads(drawn[0], PAIR, reference=drawn[1], annotated=annotated)
    same(1.0 * Pair(weighting=Confidence("panel")), weight * Pair(), reads)
    same(Pair(weighting=ZScore("panel")), Pair(), reads)  # nothing seen yet: z = 0, weight 1
    reads = make_reads(
        drawn[0], PAIR, annotated=annotated, carry={"z_panel/mean": 1.0, "z_panel/square": 1.25}
    )
    clipped = min(max(1 + (weight - 1) / 0.5, 0.0), 2.0)
    same(1.0 * Pair(weighting=ZScore("panel")), clipped * Pair(), reads)


@given(answers(), st.floats(-3, 3), st.floats(0.1, 2))
def test_molpo_s_margin_is_the_running_mean_of_its_task_and_its_clip_stops_the_pull(
    make_reads: MakeReads, drawn: Drawn, level: float, scale: float
) -> None:
    annotated = {"text": {"scores": {"task": ([4.0], [4.0])}}}
    reads = make_reads(drawn[0], PAIR, annotated=annotated, carry={"ema/4": level, "ema/5": 99.0})
    means = [sum(tokens) / len(tokens) for tokens in drawn[0]]
    scoring = Mean(against=None)
    term = Pair("text", scale, scoring=scoring, margin=TaskEma("ema", 0.5, by="task"))
    gap = scale * (means[0] - means[1])
    assert reduced(term, reads).item() == pytest.approx(math.log1p(math.exp(0.5 * level - gap)))
    clipped = Pair("text", scale, scoring=scoring, margin=TaskEma("ema", 0.5, by="task", clip=0.25))
    loss, bound = reduced(clipped, reads), 0.25 * abs(level)
    assert loss.item() == pytest.approx(math.log1p(math.exp(0.5 * level - min(gap, bound))))
    pulls = bool(torch.autograd.grad(loss, reads.tokens["policy"])[0].any())
    assert pulls == (gap < bound) or gap == pytest.approx(bound)
    ((total, count),) = term.observe(reads).values()
    assert set(term.observe(reads)) == {"ema/4"} and float(total / count) == pytest.approx(means[0])


@given(answers())
def test_the_identity_permutation_has_no_contrast(make_reads: MakeReads, drawn: Drawn) -> None:
    policy = drawn[0]
    reads = make_reads([policy[0], policy[0]], {"media": [(0, 1, 0)]})
    assert reduced(PermutationContrast(), reads).item() == 0.0


@given(st.floats(-2, 2), st.floats(-2, 2), st.floats(0, 1))
def test_an_independent_game_leaves_the_other_modality_out(own: float, other: float, scale: float) -> None:
    mine, theirs = ([torch.tensor([value], dtype=torch.float64)] for value in (own, other))
    for k, wanted in ((0, own), (1, own + other), (-1, own - other)):
        assert game(mine, theirs, k, scale)[0].item() == pytest.approx(scale * wanted)
