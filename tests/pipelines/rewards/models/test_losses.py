"""Losses of preference models: hand-derived values and the identities that pin their meaning."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipelines.rewards.models import losses
from pipelines.rewards.models.heads import (
    Attributes,
    IdealPoint,
    Mixture,
    Prototypes,
    Scalar,
    States,
    spec_from_json,
    spec_to_json,
)


def tensor(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def states(n: int, width: int = 6, seed: int = 0, user: int = 0) -> States:
    torch.manual_seed(seed)
    users = torch.full((n,), user)
    return States(torch.randn(n, width).double(), torch.randn(n, width).double(), users)


FLOATS = st.lists(st.floats(-8, 8), min_size=2, max_size=5)


def test_bradley_terry_and_its_margin():
    """At equal rewards log 2; a margin of m is a reward gap of -m; sigma(log 3) = 3/4."""
    assert losses.bradley_terry(tensor(math.log(3)), tensor(0.0)).item() == pytest.approx(-math.log(0.75))
    with_margin = losses.bradley_terry(tensor(2.0), tensor(0.5), 1.5)
    assert with_margin.item() == pytest.approx(math.log(2))
    assert losses.centring(tensor(-3.0, 1.0)).item() == 1.0


def test_scorer_dpo_sees_only_what_changed():
    start = losses.scorer_dpo(tensor(5.0), tensor(-1.0), tensor(5.0), tensor(-1.0))
    assert start.item() == pytest.approx(math.log(2))
    plain = losses.scorer_dpo(tensor(3.0), tensor(1.0), tensor(0.0), tensor(0.0), beta=1.0)
    assert plain.item() == pytest.approx(losses.bradley_terry(tensor(3.0), tensor(1.0)).item())


# -- MiCRo and contexts --------------------------------------------------------------------------------------


def test_one_head_is_bradley_terry():
    margins = tensor(-2.0, 0.0, 3.0).unsqueeze(-1)
    expected = losses.bradley_terry(margins[:, 0], torch.zeros(3).double())
    torch.testing.assert_close(losses.mixture(torch.zeros(3, 1).double(), margins), expected)


@given(FLOATS, FLOATS)
def test_the_mixture_is_at_least_its_jensen_bound(logits, margins):
    """log sum f sigma(m) >= sum f log sigma(m)."""
    n = min(len(logits), len(margins))
    log_f, m = torch.log_softmax(tensor(*logits[:n]), 0), tensor(*margins[:n])
    likelihood = -losses.mixture(log_f, m)
    bound = (log_f.exp() * torch.nn.functional.logsigmoid(m)).sum()
    assert likelihood >= bound - 1e-9


def test_two_opposed_contexts_average():
    """p(z) = (1/2, 1/2) and margins +m and -m: p(w > l) = 1/2, whatever m is."""
    for m in (0.5, 4.0, 50.0):
        loss = losses.mixture(tensor(0.5, 0.5).log().unsqueeze(0), tensor(m, -m).unsqueeze(0))
        assert loss.item() == pytest.approx(math.log(2))


@given(FLOATS)
def test_the_entropy_term_is_least_when_uniform(logits):
    log_f = torch.log_softmax(tensor(*logits), 0)
    assert -math.log(len(logits)) - 1e-9 <= losses.negative_entropy(log_f).item() <= 1e-9
    uniform = torch.log_softmax(torch.zeros(len(logits)).double(), 0)
    assert losses.negative_entropy(uniform).item() == pytest.approx(-math.log(len(logits)))


def test_hedge_weights_between_their_limits():
    """f = (1/2, 1/4, 1/4), losses (log 8, 0, log 2), tau 1: weights (1/16, 1/4, 1/8) of 7/16."""
    log_f, missed = tensor(0.5, 0.25, 0.25).log(), tensor(math.log(8), 0.0, math.log(2))
    torch.testing.assert_close(losses.hedge_targets(log_f, missed, 1.0), tensor(1 / 7, 4 / 7, 2 / 7))
    torch.testing.assert_close(losses.hedge_targets(log_f, missed, 1e9), log_f.exp())
    torch.testing.assert_close(losses.hedge_targets(log_f, missed, 1e-3), tensor(0.0, 1.0, 0.0))


def test_the_routers_stage_moves_the_router_alone():
    head = Mixture(heads=3, hidden=4).build(6).double()
    loss = head.router_loss(states(5, seed=1), states(5, seed=2), tau=0.5).mean()
    loss.backward()
    moved = {name for name, p in head.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert moved and all(name.startswith("router.") for name in moved)


def test_the_mixture_head_sums_what_it_says():
    head = Mixture(heads=2, hidden=4, entropy=0.0).build(6).double()
    won, lost = states(4, seed=1), states(4, seed=2)
    f = head.log_weights(won).exp()
    by_hand = -torch.log((f * torch.sigmoid(head.components(won) - head.components(lost))).sum(-1))
    torch.testing.assert_close(head.pair_loss(won, lost), by_hand)
    torch.testing.assert_close(head(won), (f * head.components(won)).sum(-1))


# -- PAL -----------------------------------------------------------------------------------------------------


@given(st.lists(st.floats(-5, 5), min_size=3, max_size=3))
def test_moving_the_whole_space_changes_no_margin(shift):
    torch.manual_seed(0)
    winner, loser, ideal = torch.randn(3, 4, 3).double()
    moved = tensor(*shift)

    def margin(w: torch.Tensor, v: torch.Tensor, a: torch.Tensor) -> torch.Tensor:
        return losses.ideal_point_reward(w, a) - losses.ideal_point_reward(v, a)

    torch.testing.assert_close(
        margin(winner, loser, ideal), margin(winner + moved, loser + moved, ideal + moved)
    )


@pytest.mark.parametrize("kind", [IdealPoint, Prototypes])
def test_a_user_of_one_prototype_is_that_prototype(kind):
    """With w_u = (large, 0) the second prototype has no say; users with equal weights agree."""
    torch.manual_seed(1)
    head = kind(users=3, prototypes=2, dimension=5).build(6).double()
    with torch.no_grad():
        head.users.weight.copy_(torch.tensor([[200.0, 0.0], [0.0, 200.0], [200.0, 0.0]]))
        first, second, third = (head(states(4, user=u)) for u in range(3))
        torch.testing.assert_close(first, third)
        assert not torch.allclose(first, second)
        if kind is IdealPoint:
            ideal = head.project(head.prototypes[0])
            expected = -(head.project(states(4).answer) - ideal).norm(dim=-1)
        else:
            wanted = head.wanted(states(4).prompt)[:, :5]
            expected = torch.cosine_similarity(head.project(states(4).answer), wanted)
        torch.testing.assert_close(first, expected)


# -- lists and ratings ---------------------------------------------------------------------------------------


def test_a_list_of_two_is_ranknet():
    scores = tensor(1.5, -0.5).unsqueeze(0)
    expected = losses.bradley_terry(scores[:, 0], scores[:, 1])
    torch.testing.assert_close(losses.plackett_luce(scores), expected)
    labels = tensor(2.0, 1.0).unsqueeze(0)
    torch.testing.assert_close(losses.skip_wise(scores, labels), expected)


def test_plackett_luce_by_hand():
    """Scores log 4, log 2, log 1: the order has probability 4/7 * 2/3."""
    scores = tensor(math.log(4), math.log(2), 0.0).unsqueeze(0)
    assert losses.plackett_luce(scores).item() == pytest.approx(-math.log(4 / 7 * 2 / 3))
    padded = torch.cat([scores, tensor(99.0).unsqueeze(0)], dim=1)
    ranked = torch.tensor([[True, True, True, False]])
    assert losses.plackett_luce(padded, ranked).item() == pytest.approx(-math.log(4 / 7 * 2 / 3))


@given(FLOATS, st.floats(-10, 10))
def test_list_losses_do_not_see_a_shift_and_the_right_order_is_likeliest(scores, shift):
    ordered = tensor(*sorted(scores, reverse=True)).unsqueeze(0)
    loss = losses.plackett_luce(ordered)
    torch.testing.assert_close(loss, losses.plackett_luce(ordered + shift))
    assert loss <= losses.plackett_luce(ordered.flip(-1)) + 1e-9


def test_pairs_that_nobody_ordered_are_left_out():
    """Labels 3, 3, 1: of the adjacent pairs only (3, 1) counts; with skip 2 the outer pair as well."""
    scores, labels = tensor(0.0, 1.0, 2.0).unsqueeze(0), tensor(3.0, 3.0, 1.0).unsqueeze(0)
    adjacent = losses.bradley_terry(tensor(1.0), tensor(2.0)).item()
    outer = losses.bradley_terry(tensor(0.0), tensor(2.0)).item()
    assert losses.skip_wise(scores, labels).item() == pytest.approx(adjacent)
    assert losses.skip_wise(scores, labels, skip=2).item() == pytest.approx((adjacent + outer) / 2)
    assert losses.skip_wise(scores, labels, skip=2, least_gap=3.0).item() == 0.0


def test_unrated_attributes_do_not_count():
    """Errors 1 and 3 in the first row: 5; the second has only its first rated: 4."""
    predicted = torch.tensor([[1.0, 3.0], [2.0, 7.0]], requires_grad=True)
    ratings = torch.tensor([[0.0, 0.0], [0.0, float("nan")]])
    loss = losses.attribute_regression(predicted, ratings)
    assert loss.tolist() == [5.0, 4.0]
    loss.sum().backward()
    assert predicted.grad is not None and predicted.grad[1].tolist() == [4.0, 0.0]


@pytest.mark.parametrize(
    "spec",
    [Scalar(), Attributes(("a", "b")), Mixture(3, 5), IdealPoint(2, dimension=4), Prototypes(2, dimension=4)],
)
def test_heads_come_back_from_their_description(spec):
    head = spec_from_json(spec_to_json(spec)).build(6).double()
    assert head.components(states(3)).shape == (3, len(head.names)) and head(states(3)).shape == (3,)
    assert head.pair_loss(states(3, seed=1), states(3, seed=2)).isfinite().all()
    with pytest.raises(ValueError, match="unknown head 'Nothing'"):
        spec_from_json({"kind": "Nothing"})
