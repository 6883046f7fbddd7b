"""What links and two-sided forms are to each other, for any margin."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor

from pipelines.objectives.base import Reads, Term
from pipelines.objectives.links import (
    BoxCox,
    DiscoPop,
    DynamicBoxCox,
    Exo,
    Hinge,
    Link,
    LogSigmoid,
    Robust,
    Square,
)
from pipelines.objectives.pair import Pair, TwoBetas
from pipelines.objectives.quantiles import Aot
from pipelines.objectives.sides import ApoDown, ApoZero, BcoPair, Nca, Sided, Sides, Sppo, SppoHard
from tests.pipelines.objectives.drawn import MakeReads, given

margin = st.floats(-20, 20)
flip = st.floats(0, 0.45)
beta = st.floats(0.01, 3)


def at(link: Link, h: float, scale: float = 1.0) -> tuple[float, float]:
    """(loss, slope)"""
    point = torch.tensor([h], dtype=torch.float64, requires_grad=True)
    value = link(point, scale)
    (slope,) = torch.autograd.grad(value.sum(), point)
    return value.item(), slope.item()


def close(found: float, wanted: float) -> None:
    assert found == pytest.approx(wanted, rel=1e-9, abs=1e-9)


@given(margin, flip)
def test_robust_is_dpo_minus_a_line(h: float, e: float) -> None:
    close(at(Robust(e), h)[0], at(LogSigmoid(), h)[0] - e / (1 - 2 * e) * h)
    close(at(Robust(0.0), h)[0], at(LogSigmoid(), h)[0])


@given(margin, flip)
def test_robust_is_unbiased_under_flips_in_value_and_gradient(h: float, e: float) -> None:
    (clean, slope), (flipped, other) = at(Robust(e), h), at(Robust(e), -h)
    wanted, gradient = at(LogSigmoid(), h)
    close((1 - e) * clean + e * flipped, wanted)
    close((1 - e) * slope - e * other, gradient)


@given(margin, st.floats(0.01, 0.45))
def test_smoothing_adds_a_line_and_rests_where_sigmoid_is_one_minus_it(h: float, e: float) -> None:
    close(at(LogSigmoid(e), h)[0], at(LogSigmoid(), h)[0] + e * h)
    close(at(LogSigmoid(e), math.log((1 - e) / e))[1], 0.0)


@given(margin, st.floats(0.01, 0.49))
def test_exo_is_zero_at_the_logit_of_its_label_and_positive_elsewhere(h: float, e: float) -> None:
    rest = math.log((1 - e) / e)
    close(at(Exo(e), rest)[0], 0.0)
    if abs(h - rest) > 1e-3:
        assert at(Exo(e), h)[0] > 0


@given(margin)
def test_dpo_swapped_differs_by_the_margin(h: float) -> None:
    close(at(LogSigmoid(), h)[0] - at(LogSigmoid(), -h)[0], -h)


def test_discopop_rises_at_zero() -> None:
    """At 0: m = 1/2, so (ln 2 + 1) / 2. Slope: -1/4 + (1 - ln 2) / (4 tau) - 1/2, +0.784 with tau = .05."""
    value, slope = at(DiscoPop(0.05), 0.0)
    close(value, (1 + math.log(2)) / 2)
    close(slope, -0.25 + (1 - math.log(2)) / (4 * 0.05) - 0.5)
    assert slope == pytest.approx(0.784, abs=1e-3)


@given(margin, st.floats(0.05, 0.9))
def test_discopop_is_its_formula_and_finite_far_away(h: float, tau: float) -> None:
    m = 1 / (1 + math.exp(-h / tau))
    close(at(DiscoPop(tau), h)[0], math.log1p(math.exp(-h)) * (1 - m) + math.exp(-h) * m)
    assert all(math.isfinite(number) for number in at(DiscoPop(0.05), -1e6))


@given(margin, st.floats(0.01, 1))
def test_box_cox_lies_between_its_ends_and_tends_to_the_logistic_loss(h: float, q: float) -> None:
    logistic, linear = at(LogSigmoid(), h)[0], 1 - 1 / (1 + math.exp(-h))
    assert linear - 1e-12 <= at(BoxCox(q), h)[0] <= logistic + 1e-12
    assert at(BoxCox(0.0), h)[0] == logistic
    assert at(BoxCox(1e-7), h)[0] == pytest.approx(logistic, rel=1e-4)
    close(at(BoxCox(1.0), h)[0], linear)


@given(margin)
def test_a_dynamic_box_cox_is_the_static_one_at_its_own_q(h: float) -> None:
    """The gradient does not see that q depends on h."""
    q = 1 / (1 + math.exp(h))
    if q > 1e-5:
        assert at(DynamicBoxCox(1.0), h) == pytest.approx(at(BoxCox(q), h), rel=1e-6, abs=1e-9)


@given(beta, st.floats(-10, 10))
def test_square_rests_at_half_an_inverse_beta(scale: float, gap: float) -> None:
    close(at(Square(), scale * gap, scale)[0], (gap - 1 / (2 * scale)) ** 2)
    close(at(Square(), 0.5, scale)[0], 0.0)


def test_every_link_but_discopop_never_rises_before_its_rest() -> None:
    rests = {Hinge(): 1.0, Exo(0.1): math.log(9), Square(): 0.5, LogSigmoid(0.1): math.log(9)}
    links = [LogSigmoid(), Robust(0.2), BoxCox(0.7), *rests]
    for link in links:
        grid = torch.linspace(-8, rests.get(link, 8.0), 200, dtype=torch.float64)
        assert (link(grid, 1.0).diff() <= 1e-12).all(), link


# -- at the first step, where the policy is the reference ----------------------------------------------------

FIRST: list[tuple[Term, Callable[[float], float]]] = [
    (Pair(), lambda b: math.log(2)),
    (Pair(link=Hinge()), lambda b: 1.0),
    (Pair(link=Square()), lambda b: 1 / (4 * b**2)),
    (Sides(form=SppoHard()), lambda b: 1 / (2 * b**2)),
    (Sides(form=BcoPair()), lambda b: 2 * math.log(2)),
    (Sides(form=Nca()), lambda b: 2 * math.log(2)),
    (Sides(form=ApoZero()), lambda b: 1.0),
    (Sides(form=ApoDown()), lambda b: 1.0),
    (Aot(), lambda b: math.log(2)),
    (Aot(paired=False), lambda b: math.log(2)),
    (TwoBetas(), lambda b: math.log(2)),
]


@pytest.mark.parametrize(("term", "wanted"), FIRST, ids=lambda part: getattr(part, "label", ""))
def test_the_first_step_of_every_pairwise_loss(
    make_reads: MakeReads, term: Term, wanted: Callable[[float], float]
) -> None:
    reads = make_reads([[-1.0, -2.0], [-0.5]], {"text": [(0, 1, 0)]}, reference=[[-1.0, -2.0], [-0.5]])
    close(term.value(reads).item(), wanted(0.1))


@pytest.mark.parametrize(
    ("form", "winner", "loser"),
    [(Nca(), -0.25, 0.25), (BcoPair(), -0.5, 0.5), (ApoZero(), -0.25, 0.25), (ApoDown(), 0.0, 0.25)],
)
def test_gradients_of_two_sided_forms_at_zero(
    make_reads: MakeReads, form: Sided, winner: float, loser: float
) -> None:
    """Nca: -1/2 + 1/4 and 1/4; BcoPair: -1/2 and 1/2; ApoZero: -1/4 and 1/4; ApoDown: 1/4 - 1/4 and 1/4."""
    reads = make_reads([0.0, 0.0], {"text": [(0, 1, 0)]})
    value = Sides("text", 1.0, form).value(reads).sum()
    (gradient,) = torch.autograd.grad(value, reads.tokens["policy"])
    torch.testing.assert_close(gradient[:, 0], torch.tensor([winner, loser], dtype=torch.float64))


# -- SPPO, Flex-DPO ------------------------------------------------------------------------------------------


@given(st.floats(-5, 5), st.floats(-5, 5), st.floats(0.05, 2))
def test_sppo_with_hard_probabilities_is_half_of_the_hard_form(
    make_reads: MakeReads, w: float, o: float, scale: float
) -> None:
    reads = make_reads([w, o], {"text": [(0, 1, 0)]})
    soft, hard = Sides("text", scale, Sppo()), Sides("text", scale, SppoHard())
    close(soft.value(reads).item(), hard.value(reads).item() / 2)


@given(st.floats(0, 1), st.floats(0.05, 2))
def test_sppo_rests_where_rho_is_the_win_probability_less_a_half_over_beta(
    make_reads: MakeReads, p: float, scale: float
) -> None:
    rest = (p - 0.5) / scale
    edges = {"text": [(0, 1, 0)]}
    own = make_reads([rest, -rest], edges, annotated={"text": {"probability": [p]}})
    close(Sides("text", scale, Sppo()).value(own).item(), 0.0)
    parts = {"scores": {"win": ([p], [1 - p])}}
    close(
        Sides("text", scale, Sppo("win"))
        .value(make_reads([rest, -rest], edges, annotated={"text": parts}))
        .item(),
        0,
    )


@given(st.floats(-5, 5), st.floats(-5, 5), beta)
def test_flex_dpo_with_equal_betas_is_dpo(make_reads: MakeReads, w: float, o: float, scale: float) -> None:
    reads = make_reads([w, o], {"text": [(0, 1, 0, 0.3, 2.0)]})
    close(TwoBetas("text", scale, scale).value(reads).item(), Pair("text", scale).value(reads).item())


@given(st.floats(-3, -0.01), st.floats(-3, -0.01), beta, st.just(0.0) | st.floats(0, 3))
def test_flex_dpo_gradients_by_probability_stand_as_the_betas_over_the_probabilities(
    make_reads: MakeReads, w: float, o: float, up: float, down: float
) -> None:
    """dL/dpi = dL/dlog pi / pi, so |d pi_l| / |d pi_w| = (beta_l / beta_w) pi_w / pi_l; beta_l = 0: none."""
    reads = make_reads([w, o], {"text": [(0, 1, 0)]})
    (gradient,) = torch.autograd.grad(TwoBetas("text", up, down).value(reads).sum(), reads.tokens["policy"])
    by_probability = gradient[:, 0] / torch.tensor([w, o], dtype=torch.float64).exp()
    ratio = (by_probability[1] / by_probability[0]).abs().item()
    assert ratio == pytest.approx(down / up * math.exp(w - o), rel=1e-6)


# -- optimal transport ---------------------------------------------------------------------------------------

several = st.lists(st.tuples(st.floats(-5, 5), st.floats(-5, 5), st.floats(-5, 5)), min_size=1, max_size=5)


def many(make_reads: MakeReads, rows: list[tuple[float, float, float]], losers: list[float]) -> Reads:
    n = len(rows)
    return make_reads(
        [*(w for w, _, _ in rows), *losers],
        {"text": [(i, n + i, i) for i in range(n)]},
        n,
        reference=[*(r for _, _, r in rows), *[0.0] * n],
    )


@given(st.floats(-5, 5), st.floats(-5, 5), st.booleans())
def test_aot_of_one_pair_is_dpo(make_reads: MakeReads, w: float, o: float, paired: bool) -> None:
    reads = make_reads([w, o], {"text": [(0, 1, 0)]})
    close(Aot("text", 0.5, paired=paired).value(reads).item(), Pair("text", 0.5).value(reads).item())


@given(several, st.data())
def test_unpaired_aot_does_not_see_who_lost_to_whom(
    make_reads: MakeReads, rows: list[tuple[float, float, float]], data: st.DataObject
) -> None:
    losers = [o for _, o, _ in rows]
    shuffled = data.draw(st.permutations(losers))
    term = Aot("text", 0.5, paired=False)
    one, other = (term.value(many(make_reads, rows, order)).sum().item() for order in (losers, shuffled))
    close(one, other)


def test_aot_is_not_separable(make_reads: MakeReads) -> None:
    """Margins 2 and -1, those of the reference 0 and 1. Alone: 2 - 0, -1 - 1. Together: -1 - 0, 2 - 1."""

    def total(*deltas: float) -> float:
        return sum(-F.logsigmoid(torch.tensor(d, dtype=torch.float64)).item() for d in deltas)

    def reads(rows: list[tuple[float, float]]) -> Tensor:
        n = len(rows)
        policy, reference = ([*(row[i] for row in rows), *[0.0] * n] for i in (0, 1))
        edges = {"text": [(i, n + i, i) for i in range(n)]}
        return Aot("text", 1.0).value(make_reads(policy, edges, n, reference=reference)).sum()

    close(reads([(2.0, 0.0)]).item() + reads([(-1.0, 1.0)]).item(), total(2.0, -2.0))
    close(reads([(2.0, 0.0), (-1.0, 1.0)]).item(), total(-1.0, 1.0))


def test_aot_books_each_quantile_where_its_winner_is_and_leaves_out_weight_zero(
    make_reads: MakeReads,
) -> None:
    """Margins 2, -1 and (weight 0) 7: of the sorted -1, 2 the second belongs to comparison 0."""
    edges = {"text": [(0, 3, 0), (1, 3, 1, 0.0, 2.5), (2, 3, 2, 0.0, 0.0)]}
    reads = make_reads([2.0, -1.0, 7.0, 0.0], edges, 3)
    for paired in (True, False):
        term = Aot("text", 1.0, paired=paired)
        wanted = [math.log1p(math.exp(-2)), math.log1p(math.exp(1)), 0.0]
        assert term.value(reads).tolist() == pytest.approx(wanted)
        assert term.weight(reads).tolist() == [1.0, 1.0, 0.0]
