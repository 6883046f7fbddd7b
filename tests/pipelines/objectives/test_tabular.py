"""Minimisers and expected gradients of terms on policies that are a table of probabilities."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pipelines.objectives.base import Objective, Reads, Term
from pipelines.objectives.kl import ScoreKl
from pipelines.objectives.links import LogSigmoid, Robust
from pipelines.objectives.margins import ScoreGap
from pipelines.objectives.pair import Pair

MakeReads = Callable[..., Reads]
Numbers = Sequence[float]


def duels(make_reads: MakeReads, win: Tensor, reference: Tensor, other: Numbers | None = None) -> Reads:
    """Every ordered pair of actions, weighed with the probability `win` [n, n] that the first one wins."""
    n = len(reference)
    pairs = [(i, j) for i in range(n) for j in range(n) if i != j]
    rows = [(i, j, 0, 0.0, win[i, j].item()) for i, j in pairs]
    scores = {"other": ([other[i] for i, _ in pairs], [other[j] for _, j in pairs])} if other else {}
    return make_reads(
        [0.0] * n,
        {"text": rows},
        reference=reference.log_softmax(0).tolist(),
        annotated={"text": {"scores": scores}},
    )


def minimiser(term: Term | Objective, reads: Reads) -> Tensor:
    """Log-probabilities [n] of the best tabular policy."""
    terms = term.terms if isinstance(term, Objective) else ((1.0, term),)
    theta = torch.zeros(len(reads.lengths), dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS(
        [theta], max_iter=500, tolerance_grad=1e-12, tolerance_change=1e-14, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        optimiser.zero_grad()
        tokens = {**reads.tokens, "policy": theta.log_softmax(0)[:, None]}
        value = torch.stack([w * t.value(replace(reads, tokens=tokens)).sum() for w, t in terms]).sum()
        value.backward()
        return value

    optimiser.step(loss)
    return theta.detach().log_softmax(0)


def bradley_terry(rewards: Numbers) -> Tensor:
    values = torch.tensor(rewards, dtype=torch.float64)
    return torch.sigmoid(values[:, None] - values)


three = st.lists(st.floats(-1, 1), min_size=3, max_size=3)


@settings(max_examples=10)
@given(three, three, three, st.floats(0.2, 2), st.floats(0.2, 1))
def test_modpo_s_optimum_is_the_reference_tilted_by_the_weighted_rewards(
    make_reads: MakeReads, one: list[float], other: list[float], start: list[float], beta: float, w1: float
) -> None:
    """pi proportional to pi_ref exp((w_1 r_1 + w_2 r_2) / beta), labels from r_1, r_2 the frozen margin."""
    reads = duels(make_reads, bradley_terry(one), torch.tensor(start, dtype=torch.float64), other)
    found = minimiser(Pair("text", beta / w1, margin=ScoreGap((1 - w1) / w1, "other")), reads)
    tilt = [w1 * a + (1 - w1) * b for a, b in zip(one, other, strict=True)]
    wanted = torch.tensor(start, dtype=torch.float64) + torch.tensor(tilt, dtype=torch.float64) / beta
    torch.testing.assert_close(found, wanted.log_softmax(0), rtol=0, atol=1e-4)


@settings(max_examples=20)
@given(three, three, st.sampled_from([1, 2, 3]))
def test_the_expected_score_function_gradient_is_that_of_the_kl(
    make_reads: MakeReads, start: list[float], now: list[float], k: int
) -> None:
    """Over all draws of k samples, with a leave-one-out baseline and without: grad KL(pi || pi_ref)."""
    theta = torch.tensor(now, dtype=torch.float64, requires_grad=True)
    logps = theta.log_softmax(0)
    reference = torch.tensor(start, dtype=torch.float64).log_softmax(0)
    (wanted,) = torch.autograd.grad((logps.exp() * (logps - reference)).sum(), theta, retain_graph=True)
    draws = torch.cartesian_prod(*[torch.arange(3)] * k).reshape(-1, k)
    cells = draws.flatten()
    roles = {"y": [(row, row // k) for row in range(len(cells))]}
    bare = make_reads([0.0] * len(cells), size=len(draws), roles=roles)
    reads = replace(bare, tokens={"policy": logps[cells, None], "reference": reference[cells, None]})
    probability = logps.detach()[draws].sum(-1).exp()
    for baseline in ("rloo", "none"):
        expected = (probability * ScoreKl("y", baseline).value(reads)).sum() / k
        (gradient,) = torch.autograd.grad(expected, theta, retain_graph=True)
        torch.testing.assert_close(gradient, wanted, rtol=1e-9, atol=1e-9)


@settings(max_examples=5)
@given(three)
def test_accelerated_preference_optimisation_grows_as_its_recursion(
    make_reads: MakeReads, rewards: list[float]
) -> None:
    """A round of DPO on a fixed reward multiplies the policy by exp(r / beta): one unit.

    With theta_hat the minimiser of a round and theta = theta_hat + alpha (theta_hat - theta_hat of the round
    before), alpha = 0.3: theta_hat = 1, 2.3, 3.69 units and theta = 1.3, 2.69, 4.107; the steps tend to
    1 / (1 - alpha). alpha = 0 is plain iteration. The best action stays the best.
    """
    beta, win = 0.5, bradley_terry(rewards)
    unit = torch.tensor(rewards, dtype=torch.float64) / beta

    def rounds(alpha: float, count: int) -> list[Tensor]:
        theta = before = torch.zeros(3, dtype=torch.float64)
        reached: list[Tensor] = []
        for _ in range(count):
            found = minimiser(Pair("text", beta), duels(make_reads, win, theta))
            theta, before = found + alpha * (found - before), found
            reached.append(theta)
        return reached

    for alpha, units in ((0.3, (1.3, 2.69, 4.107)), (0.0, (1.0, 2.0, 3.0))):
        for theta, u in zip(rounds(alpha, 3), units, strict=True):
            torch.testing.assert_close(theta.log_softmax(0), (u * unit).log_softmax(0), rtol=0, atol=1e-3)
    u, before = 0.0, 0.0
    for _ in range(60):
        u, last, before = u + 1 + 0.3 * (u + 1 - before), u, u + 1
    assert u - last == pytest.approx(1 / 0.7)


def test_flipped_labels_shrink_dpo_smoothing_shrinks_it_more_the_robust_link_undoes_it(
    make_reads: MakeReads,
) -> None:
    """P = 0.9 with 30% flips is 0.9 * 0.7 + 0.1 * 0.3 = 0.66. The best h: DPO logit 0.66; robust logit 0.9;
    cDPO with e = 0.3 logit(0.66 * 0.7 + 0.34 * 0.3) = logit 0.564."""
    flip, clean = 0.3, torch.tensor([[0.5, 0.9], [0.1, 0.5]], dtype=torch.float64)
    noisy = (1 - flip) * clean + flip * (1 - clean)
    reads = duels(make_reads, noisy, torch.zeros(2, dtype=torch.float64))

    def gap(link: LogSigmoid | Robust) -> float:
        found = minimiser(Pair("text", 1.0, link), reads)
        return (found[0] - found[1]).item()

    def logit(p: float) -> float:
        return math.log(p / (1 - p))

    assert gap(LogSigmoid()) == pytest.approx(logit(0.66), abs=1e-4)
    assert gap(Robust(flip)) == pytest.approx(logit(0.9), abs=1e-4)
    assert gap(LogSigmoid(flip)) == pytest.approx(logit(0.564), abs=1e-4)


def test_the_robust_minimiser_nears_the_true_one_as_data_grows(make_reads: MakeReads) -> None:
    """Labels of three actions are drawn from a known reward and flipped with probability 0.3. The error of
    the robust policy falls with n (seeds are fixed) and DPO's does not."""
    rewards = [1.0, 0.0, -1.0]
    truth = torch.tensor(rewards, dtype=torch.float64).log_softmax(0)
    clean = bradley_terry(rewards)
    noisy = 0.7 * clean + 0.3 * clean.T

    def error(link: LogSigmoid | Robust, n: int) -> float:
        draws = [torch.Generator().manual_seed(seed) for seed in range(8)]
        errors: list[float] = []
        for generator in draws:
            won = torch.zeros(3, 3, dtype=torch.float64)
            for i, j in ((0, 1), (0, 2), (1, 2)):
                won[i, j] = (torch.rand(n, generator=generator) < noisy[i, j]).double().mean()
                won[j, i] = 1 - won[i, j]
            found = minimiser(Pair("text", 1.0, link), duels(make_reads, won, torch.zeros(3).double()))
            errors.append((found - truth).abs().max().item())
        return sum(errors) / len(errors)

    small, large = error(Robust(0.3), 300), error(Robust(0.3), 30_000)
    assert large < small / 3 and large < 0.1
    assert error(LogSigmoid(), 30_000) > 3 * large
