"""Pair and Anchor: goldens by hand, gradients in closed form, stability, absent edges."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from pipelines.objectives.anchor import Anchor
from pipelines.objectives.base import Objective, Reads
from pipelines.objectives.pair import Pair

MakeReads = Callable[..., Reads]


def test_pair_golden(make_reads: MakeReads) -> None:
    """rho_w - rho_l = ln 3 / 0.5, beta 0.5: the logit is ln 3, sigmoid 3/4, loss ln(4/3).

    A margin of ln 3 brings the logit to 0 and the loss to ln 2; weight 2 doubles it.
    """
    gap = math.log(3) / 0.5
    reads = make_reads([gap, 0.0, gap, 0.0], {"text": [(0, 1, 0), (2, 3, 1, math.log(3), 2.0)]}, 2)
    loss = Pair("text", beta=0.5)(reads)
    torch.testing.assert_close(
        loss.value.detach(), torch.tensor([math.log(4 / 3), 2 * math.log(2)], dtype=torch.float64)
    )
    assert loss.weight.tolist() == [1.0, 2.0]


def test_edges_of_one_comparison_are_summed(make_reads: MakeReads) -> None:
    """Two edges with logits ln 3 and 0, weights 1 and 3: value ln(4/3) + 3 ln 2, weight 4."""
    reads = make_reads([math.log(3), 0.0, 0.0], {"text": [(0, 1, 0), (1, 2, 0, 0.0, 3.0)]}, 1)
    loss = Pair("text", beta=1.0)(reads)
    assert loss.value.item() == pytest.approx(math.log(4 / 3) + 3 * math.log(2), abs=1e-12)
    assert loss.weight.item() == 4.0


def test_reference_is_subtracted(make_reads: MakeReads) -> None:
    """Adding the same number to policy and reference of a cell changes nothing."""
    reads = make_reads([1.0, -1.0], {"text": [(0, 1, 0)]}, 1)
    shift = torch.tensor([[-37.0], [-11.0]], dtype=torch.float64)
    moved = replace(reads, tokens={view: values + shift for view, values in reads.tokens.items()})
    for term in (Pair("text"), Anchor()):
        torch.testing.assert_close(term(moved).value, term(reads).value)


def test_anchor_golden(make_reads: MakeReads) -> None:
    """rho_w = 2 ln 3, beta 0.5: logit ln 3, so ln(4/3), and ln 2 at delta ln 3; rho_l is 0."""
    reads = make_reads([2 * math.log(3), 0.0], {"text": [(0, 1, 0)]}, 1)
    assert Anchor(beta=0.5)(reads).value.item() == pytest.approx(math.log(4 / 3), abs=1e-12)
    assert Anchor(beta=0.5, delta=math.log(3))(reads).value.item() == pytest.approx(math.log(2), abs=1e-12)
    assert Anchor("text.loser", beta=0.5)(reads).value.item() == pytest.approx(math.log(2), abs=1e-12)


def test_anchor_counts_a_shared_cell_once(make_reads: MakeReads) -> None:
    """Cell 0 wins two edges of weights 1 and 3: one anchor of weight 3, at rho 0 worth 3 ln 2."""
    reads = make_reads([0.0, 0.0, 0.0], {"text": [(0, 1, 0), (0, 2, 0, 0.0, 3.0)]}, 1)
    loss = Anchor()(reads)
    assert loss.value.item() == pytest.approx(3 * math.log(2), abs=1e-12)
    assert loss.weight.item() == 3.0


def test_gradients_in_closed_form(make_reads: MakeReads) -> None:
    """-w log s(z), z = beta (rho_w - rho_l) - m: by rho_w it is -w beta s(-z), by rho_l the negative."""
    beta, margin, weight = 0.3, 0.4, 1.7
    reads = make_reads([1.1, -0.6], {"text": [(0, 1, 0, margin, weight)]}, 1)
    policy = reads.tokens["policy"]
    (gradient,) = torch.autograd.grad(Pair("text", beta)(reads).value.sum(), policy)
    expected = -weight * beta / (1 + math.exp(beta * 1.7 - margin))
    torch.testing.assert_close(gradient[:, 0], torch.tensor([expected, -expected], dtype=torch.float64))
    (gradient,) = torch.autograd.grad(Anchor("text.winner", 0.2, beta)(reads).value.sum(), policy)
    expected = -weight * beta / (1 + math.exp(beta * 1.1 - 0.2))
    torch.testing.assert_close(gradient[:, 0], torch.tensor([expected, 0.0], dtype=torch.float64))


@pytest.mark.parametrize("gap", [1e6, -1e6])
def test_large_arguments_stay_finite_in_single_precision(gap: float, make_reads: MakeReads) -> None:
    """-log sigmoid(z) tends to 0 for z -> inf and to -z for z -> -inf, without overflow; so do gradients."""
    reads = make_reads([gap, 0.0], {"text": [(0, 1, 0)]}, 1)
    policy = reads.tokens["policy"].detach().float().requires_grad_()
    reads = replace(reads, tokens={"policy": policy, "reference": torch.zeros(2, 1)})
    for term in (Pair("text"), Anchor()):
        value = term(reads).value
        assert value.item() == pytest.approx(max(-0.1 * gap, 0.0))
        (gradient,) = torch.autograd.grad(value.sum(), policy)
        assert gradient[0, 0].item() == pytest.approx(-0.1 if gap < 0 else 0.0)


def test_a_comparison_without_the_edge_has_value_and_weight_zero(make_reads: MakeReads) -> None:
    reads = make_reads([0.5, 0.0, 0.5, 0.0, 0.0], {"text": [(0, 1, 0), (2, 3, 2)], "media": [(2, 4, 2)]}, 3)
    for term in (Pair("text"), Pair("media"), Anchor(), Anchor("media.winner")):
        loss = term(reads)
        there = [True, False, True] if "text" in term.edges else [False, False, True]
        assert [weight == 1.0 for weight in loss.weight.tolist()] == there
        assert [value > 0 for value in loss.value.tolist()] == there
    nowhere = Pair("audio")(reads)
    assert nowhere.value.tolist() == nowhere.weight.tolist() == [0.0, 0.0, 0.0]


def test_weights_do_not_depend_on_the_policy(make_reads: MakeReads) -> None:
    for term in (Pair("text"), Anchor()):
        assert not term(make_reads([0.5, 0.0], {"text": [(0, 1, 0)]}, 1)).weight.requires_grad


def test_what_a_term_refuses() -> None:
    with pytest.raises(ValueError, match=r"'text\.winner'.*name of an edge"):
        Pair("text.winner")
    with pytest.raises(ValueError, match=r"expected a role, 'text\.winner' or 'text\.loser'"):
        Anchor("text.best")
    for build in (lambda: Pair("text", beta=0.0), lambda: Anchor(beta=-1.0)):
        with pytest.raises(ValueError, match="beta must be positive"):
            build()


def test_terms_add_up_to_an_objective() -> None:
    objective = 0.2 * Pair("media") + Anchor("text.winner") + Pair("text")
    assert objective == Objective(((0.2, Pair("media")), (1.0, Anchor("text.winner")), (1.0, Pair("text"))))
    assert objective.edges == {"text", "media"}
    assert objective.views == {"policy", "reference"}
