"""Values derived by hand, one or more for each term, on one pair of answers.

w has two tokens, l one. Probabilities under the policy: w 1/2, 1/2, l 1/6; under the reference: w 1/2, 1/6,
l 1/2. So rho_w = ln 3 (all of it on the second token), rho_l = -ln 3, and with beta 1 the margin is h = ln 9:
sigmoid(h) = 9/10, sigmoid(rho_w) = 3/4, sigmoid(rho_l) = 1/4. KL(ref || pi) is 0.1 and 0.2 on w's tokens and
0.4 on l's. The log collision is -ln 4 on w's tokens and -ln 6 on l's. When they were sampled, w's tokens had
probability 1/4 each and l's 1/3. Scores are 1 and 0. The span "seg" is w's second token and all of l.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from math import exp, log, sqrt

import pytest
import torch
from torch import nn

from pipelines.objectives.anchor import Anchor
from pipelines.objectives.base import Head, Objective, Reads, Statistic, Term, advanced
from pipelines.objectives.fourier import FftTriplet
from pipelines.objectives.heads import Aux, Degree
from pipelines.objectives.implicit import FSft
from pipelines.objectives.kl import Bonus, LoserKl, ScoreKl, TokenKl
from pipelines.objectives.links import BoxCox, DiscoPop, Exo, Hinge, LogSigmoid, Robust, Square
from pipelines.objectives.margins import Constant, KLGap, ReferenceGate, ScoreGap, TaskEma
from pipelines.objectives.masks import Constant as Everywhere
from pipelines.objectives.masks import Learned, SparsePair
from pipelines.objectives.mcr import PermutationContrast
from pipelines.objectives.nll import ExpReward, Nll
from pipelines.objectives.pair import Linear, Pair, TwoBetas
from pipelines.objectives.policy_gradient import Nash, PolicyGradient, Reinforce
from pipelines.objectives.positions import PositionPair
from pipelines.objectives.quantiles import Aot
from pipelines.objectives.ranking import Lambda, PlackettLuce, Pro, Skip
from pipelines.objectives.rationale import LogProb
from pipelines.objectives.scoring import (
    Alpha,
    Desensitised,
    FDivergence,
    LogOdds,
    Mean,
    OnlySpans,
    Spans,
    Sum,
)
from pipelines.objectives.sides import ApoDown, ApoZero, BcoPair, Nca, Sides, Sppo, SppoHard
from pipelines.objectives.softmax import Softmax
from pipelines.objectives.unpaired import Bco, Kto
from pipelines.objectives.weightings import Confidence, Wpo, ZScore

MakeReads = Callable[..., Reads]
FREE = Mean(against=None)


def logistic(h: float) -> float:
    """-log sigmoid(h)"""
    return math.log1p(exp(-h))


@pytest.fixture
def reads(make_reads: MakeReads) -> Reads:
    def rows(w: list[float], o: float) -> torch.Tensor:
        return torch.tensor([w, [o, 0.0]], dtype=torch.float64)

    scores = {"value": ([1.0], [0.0]), "task": ([0.0], [0.0])}
    spans = {"seg": (torch.tensor([[0.0, 1.0]]), torch.tensor([[1.0, 0.0]]))}
    made = make_reads(
        [[-log(2), -log(2)], [-log(6)]],
        {"text": [(0, 1, 0)]},
        reference=[[-log(2), -log(6)], [-log(2)]],
        annotated={"text": {"scores": scores, "spans": spans}},
        roles={"y": [(0, 0), (1, 0)], "good": [(0, 0)], "bad": [(1, 0)]},
        scores={"y": {"value": [1.0, 0.0]}},
        features={"kl_forward": rows([0.1, 0.2], 0.4), "collision": rows([-log(4), -log(4)], -log(6))},
        carry={"bco": log(3), "bco.count": 8.0, "ema/0": -0.5, "z_value/mean": 0.5, "z_value/square": 0.5},
    )
    return replace(made, tokens={**made.tokens, "behaviour": rows([-log(4), -log(4)], -log(3))})


LAMBDA = 1 / log(2) - 1 / log(3)  # |2^1 - 2^0| times the discounts of ranks 1 and 2
CASES: list[tuple[Term, float]] = [
    (Pair("text", 1.0), log(10 / 9)),
    (Pair("text", 1.0, LogSigmoid(0.25)), 0.75 * log(10 / 9) + 0.25 * log(10)),
    (Pair("text", 0.25, Hinge()), 1 - log(9) / 4),
    (Pair("text", 1.0, Hinge()), 0.0),
    (Pair("text", 2.0, Square()), (log(9) - 1 / 4) ** 2),
    (Pair("text", 1.0, Robust(0.25)), (0.75 * log(10 / 9) - 0.25 * log(10)) / 0.5),
    (Pair("text", 1.0, Exo(0.1)), 0.0),  # (9/10, 1/10) is its label
    (Pair("text", 1.0, Exo(0.5)), 0.9 * log(1.8) + 0.1 * log(0.2)),
    (Pair("text", 1.0, DiscoPop(1.0)), 0.1 * log(10 / 9) + 0.9 / 9),  # m = 9/10, exp(-h) = 1/9
    (Pair("text", 1.0, BoxCox(0.5)), 2 * (1 - sqrt(0.9))),
    (Pair("text", 1.0, scoring=Mean()), logistic(1.5 * log(3))),  # ln 3 / 2 against -ln 3
    (Pair("text", 1.0, scoring=Sum(against=None)), log(5 / 3)),  # 1/4 against 1/6: h = ln 1.5
    (Pair("text", 1.0, scoring=FREE, margin=Constant(log(3))), log(2)),  # means 1/2 and 1/6: gap ln 3
    (Pair("text", 1.0, scoring=LogOdds()), log(6 / 5)),  # odds 1 and 1/5: h = ln 5
    (Pair("text", 1.0, scoring=Alpha(1.0)), logistic(4.0)),  # 1 - 1/p: -1 and -5
    (Pair("text", 1.0, scoring=FDivergence("forward_kl")), logistic(8 / 3)),  # 1 - 1/u: 2/3 and -2
    (Pair("text", 1.0, scoring=FDivergence("js")), log(4 / 3)),  # ln(2u / (1 + u)): ln 1.5 and ln 0.5
    (Pair("text", 1.0, scoring=FDivergence("alpha", 0.5)), logistic(4 / sqrt(3))),  # 2 (1 - u^-1/2)
    (Pair("text", 1.0, scoring=Desensitised(0.0)), log(4 / 3)),  # w's second token is beyond l: 0 + ln 3
    (Pair("text", 1.0, scoring=Spans("seg", 4.0)), logistic(8 * log(3))),
    (Pair("text", 1.0, scoring=Spans("seg", 4.0, True)), logistic(1.8 * log(3))),  # 4/5 and 4/4 of ln 3
    (Pair("text", 1.0, scoring=OnlySpans("seg")), log(10 / 9)),
    (Pair("text", 1.0, margin=ScoreGap(log(9))), log(2)),
    (Pair("text", 1.0, margin=KLGap(1.0)), logistic(log(9) - 0.1)),  # 0.4 - 0.3
    (Pair("text", 1.0, scoring=Sum(against=None), margin=ReferenceGate(1.0)), log(5 / 3)),  # it prefers l: 0
    (Pair("text", 1.0, scoring=FREE, margin=TaskEma("ema", 2.0, by="task")), logistic(log(3) + 1)),
    # R = -1/2: the gap ln 3 is cut to 1/2 * |R| = 1/4; to 4 * |R| = 2 it stays; nothing is known of "new"
    (Pair("text", 1.0, scoring=FREE, margin=TaskEma("ema", 2.0, by="task", clip=0.5)), logistic(1.25)),
    (Pair("text", 1.0, scoring=FREE, margin=TaskEma("ema", 2.0, by="task", clip=4.0)), logistic(log(3) + 1)),
    (Pair("text", 1.0, scoring=FREE, margin=TaskEma("new", 2.0, by="task", clip=0.5)), log(4 / 3)),
    (Pair("text", 1.0, weighting=Wpo()), 2 * log(10 / 9)),  # w: exp(ln 4 - ln 2) = 2, l: 1
    (Pair("text", 1.0, weighting=Confidence("value")), log(10 / 9)),
    (Pair("text", 1.0, weighting=ZScore("value", high=9.0)), 2 * log(10 / 9)),  # 1 + (1 - 0.5) / 0.5
    (Linear({"text": 2.0}, 1.0), logistic(2 * log(9))),
    (TwoBetas("text", 1.0, 0.0), log(4 / 3)),
    (Softmax("text", 1.0), log(10 / 9)),
    (Sides("text", 1.0, Nca()), log(4 / 3) + 0.5 * log(4) + 0.5 * log(4 / 3)),
    (Sides("text", 1.0, BcoPair()), 2 * log(4 / 3)),
    (Sides("text", 1.0, ApoZero()), 0.5),
    (Sides("text", 1.0, ApoDown()), 0.75 + 0.1),
    (Sides("text", 1.0, SppoHard()), 2 * (log(3) - 0.5) ** 2),
    (Sides("text", 1.0, Sppo("value")), (log(3) - 0.5) ** 2),
    (Anchor("text.winner", 0.0, 1.0), log(4 / 3)),
    (Anchor("text.winner", log(3), 1.0), log(2)),
    (Anchor("text.winner", 0.0, 1.0, sign=-1), log(4)),
    (Anchor("y", 0.0, 1.0), log(4 / 3) + log(4)),
    (Nll("text.winner", "sequence_mean"), log(2)),
    (Nll("text.winner", "sum"), log(4)),
    (Nll("y", "batch_tokens"), log(24)),  # over 3 tokens
    (Nll("y", "sum", ExpReward(0.5)), exp(2) * log(4) + log(6)),
    (LogProb("good", 1.0), log(5)),  # sigmoid(-ln 4) = 1/5
    (FSft("good", "kl", 1.0), -log(3)),
    (FSft("good", "pearson", 1.0), log(3) ** 2 / 4 - log(3)),
    (FSft("good", "hellinger", 1.0), -log(3) / (1 + log(3))),
    (FSft("bad", "hellinger", 1.0), 1 + 4 * (log(3) - 0.5)),  # h = -ln 3 lies on the tangent
    (TokenKl("text.winner"), 0.3),
    (LoserKl("text"), 0.1),
    (ScoreKl("y"), log(9) * (log(6) - log(4))),  # rho less the other's: ln 9, -ln 9
    (ScoreKl("y", "none"), log(3) * (log(6) - log(4))),
    (Bonus("bad", 0.5), -log(6) / 2),
    (Bonus("bad", 0.5, "reference"), -log(3) / 2),
    (Kto("good", "bad", None, 1.0), 0.5),
    (Kto("good", "bad", "good", 1.0), 0.5 + 0.1),  # z = ln 3: sigmoid(0) and sigmoid(-ln 9)
    (Kto("good", "bad", "bad", 1.0, 2.0, 3.0), 2 * 0.25 + 3 * 0.25),  # z = max(0, -ln 3)
    (Bco("good", "bad", 1.0), log(2) + log(10 / 9)),  # delta = ln 3
    (Bco("good", "bad", 1.0, current=True), logistic(0.2 * log(3)) + logistic(1.8 * log(3))),  # 8 ln 3 / 10
    (Aot("text", 1.0), log(10 / 9)),
    (PlackettLuce("y", 1.0), log(10 / 9)),
    (PlackettLuce(("bad", "good"), 1.0), log(10)),
    (Lambda("y", 1.0), LAMBDA * log(10 / 9)),
    (Skip("y", 1.0), log(10 / 9)),
    (Pro("y", sft=0.0), log(4 / 3)),  # T = 1, means 1/2 and 1/6
    (Pro("y", sft=0.5), log(4 / 3) + 0.5 * log(4)),
    (PolicyGradient("y", "centered", None), -0.5 * log(3)),  # (ln 2 - ln 6) / 2
    (PolicyGradient("y", "group", None), -0.5 / (sqrt(0.5) + 1e-4) * log(3)),
    (PolicyGradient("y", "centered", 0.2), -0.5 * 1.2 + 0.5 * 0.8),  # u = 2 is cut to 1.2, 1/2 to 0.8
    (PolicyGradient("y", "centered", 0.2, 0.5), -0.5 * 1.5 + 0.5 * 0.8),
    (PolicyGradient("y", "centered", 9.0, ratio="whole"), -0.5 * 4 + 0.5 * 0.5),
    (PolicyGradient("y", "centered", 9.0, ratio="sequence"), -0.5 * 2 + 0.5 * 0.5),
    (Reinforce("y"), log(4) - log(6)),  # 1 and -1 from the other's score
    # k3 = exp(-d) + d - 1: w's tokens d = 0 and ln 3, mean (1/3 + ln 3 - 1) / 2; l: d = -ln 3
    (PolicyGradient("y", "centered", 9.0, kl=1.0), -0.75 + (log(3) - 2 / 3) / 2 + 2 - log(3)),
    (Nash("text", 1.0, None), log(2) * (1 - log(3))),  # ln 3 (-ln 2) - (1 - 1/2) (-ln 4)
    (PositionPair("text", 1.0), log(4 / 3)),  # only the first position: 0 + ln 3
    (PositionPair("text", 1.0, "seg"), log(4 / 3)),
    (SparsePair("text", 1.0, Everywhere(1.0, 0.0), 0.1), log(10 / 9) + 0.3),  # three tokens of mask 1
    (SparsePair("text", 1.0, Everywhere(0.0, 1.0)), logistic(0.3 - 0.4)),  # d = -KL: the loser's is a penalty
    (PermutationContrast("text"), -log(3)),
]


@pytest.mark.parametrize(("term", "value"), CASES, ids=[term.label for term, _ in CASES])
def test_golden(term: Term, value: float, reads: Reads) -> None:
    assert term.value(reads).tolist() == pytest.approx([value], rel=1e-7, abs=1e-12)


@pytest.mark.parametrize(
    ("term", "weight"),
    [
        (Pair(), 1.0),
        (Nll("text.winner", "batch_tokens"), 2.0),
        (Nll("y"), 2.0),
        (Nll("y", "batch_tokens"), 3.0),
        (Kto(kl=None), 2.0),
        (PlackettLuce("y"), 1.0),
        (Skip("y", k=2), 0.0),
        (PolicyGradient("y"), 2.0),
        (Aot(), 1.0),
    ],
    ids=lambda part: part.label if isinstance(part, Term) else "",
)
def test_weights_are_edges_answers_tokens_or_lists(term: Term, weight: float, reads: Reads) -> None:
    assert term.weight(reads).tolist() == [weight]


def test_a_softmax_weighs_as_its_heaviest_edge_and_leaves_out_weight_zero(make_reads: MakeReads) -> None:
    """Cell 0 wins against 1 and 2 (margins ln 2, ln 3): log(1 + 1/2 + 1/3); without the second log(3/2).

    An edge's own margin of ln 2 brings its gap to 0: log(1 + 1 + 1/3)."""
    rho = [0.0, -log(2), -log(3)]

    def loss(*rows: tuple[float, ...]) -> tuple[float, float]:
        reads = make_reads(rho, {"text": rows})
        return Softmax("text", 1.0).value(reads).item(), Softmax("text", 1.0).weight(reads).item()

    assert loss((0, 1, 0), (0, 2, 0)) == pytest.approx((log(11 / 6), 1.0))
    assert loss((0, 1, 0), (0, 2, 0, 0.0, 0.0)) == pytest.approx((log(3 / 2), 1.0))
    assert loss((0, 1, 0, 0.0, 0.5), (0, 2, 0, 0.0, 2.0)) == pytest.approx((2 * log(11 / 6), 2.0))
    assert loss((0, 1, 0, log(2)), (0, 2, 0)) == pytest.approx((log(7 / 3), 1.0))


def test_missing_scores_weigh_nothing_and_are_never_zero(reads: Reads) -> None:
    """The same with one side unscored: edges drop out; a group's mean is that of the scored ones."""
    text, y = reads.edges["text"], reads.roles["y"]
    nan = torch.tensor([math.nan], dtype=torch.float64)
    half = replace(text, scores={"value": (nan, text.part("value")[1])})
    lone = replace(y, scores={"value": torch.tensor([math.nan, 3.0], dtype=torch.float64)})
    partly = replace(reads, edges={"text": half}, roles={**reads.roles, "y": lone})
    edge_terms: list[Term] = [
        Pair(margin=ScoreGap()),
        Pair(weighting=Confidence("value")),
        Pair(weighting=Confidence("nobody has it")),
        Pair(margin=TaskEma("ema", by="nobody has it")),
        Sides(form=Sppo("value")),
        Nash("text"),
        PlackettLuce("y"),
        Aux("y", parts=("value", "other")),
    ]
    for term in edge_terms:
        assert term.weight(partly).tolist() == [0.0], term
    counted: list[Term] = [PolicyGradient("y", clip=None), Nll("y", weighting=ExpReward())]
    for term in counted:
        assert term.weight(partly).tolist() == [1.0], term
    assert PolicyGradient("y", "centered", None).value(partly).tolist() == [0.0]


def test_the_spectrum_of_hidden_states_decides_the_triplet(make_reads: MakeReads) -> None:
    """Two numbers (a, b) have the spectrum (|a + b|, |a - b|): (1, 0) and (0, 1) have (1, 1), and (1, 1) has
    (2, 0), sqrt 2 away. With margin 2 the loss is 2 + 0 - sqrt 2; with margin 1/2 it is 0."""
    roles = {"w": [(0, 0)], "clean": [(1, 0)], "other": [(2, 0)]}
    hidden = torch.tensor([[[1.0, 0.0]], [[9.0, 9.0]], [[9.0, 9.0]]], dtype=torch.float64, requires_grad=True)
    reference = torch.tensor([[[9.0, 9.0]], [[0.0, 1.0]], [[1.0, 1.0]]], dtype=torch.float64)
    features = {"hidden": hidden, "reference_hidden": reference}
    reads = make_reads([0.0, 0.0, 0.0], roles=roles, features=features)
    near, far = (FftTriplet("w", "clean", "other", margin) for margin in (2.0, 0.5))
    assert near.value(reads).tolist() == pytest.approx([2 - sqrt(2)])
    assert far.value(reads).tolist() == [0.0]
    assert torch.isfinite(torch.autograd.grad(near.value(reads).sum(), hidden)[0]).all()
    alone = make_reads([0.0, 0.0], roles={"w": [(0, 0)], "clean": [(1, 0)]}, features=features)
    assert near.weight(alone).tolist() == [0.0]


def test_heads_see_the_mean_of_an_answer_s_hidden_states(make_reads: MakeReads) -> None:
    """Head x -> (x, 0) on means (1 + 3) / 2 = 2 and 0: cross-entropies ln(1 + e^-2), ln 2; errors 2, -1."""
    head = nn.Linear(1, 2).double()
    head.weight.data, head.bias.data = torch.tensor([[1.0], [0.0]]).double(), torch.zeros(2).double()
    hidden = torch.tensor([[[1.0], [3.0]], [[0.0], [5.0]]], dtype=torch.float64)
    reads = make_reads(
        [[0.0, 0.0], [0.0]],
        roles={"a": [(0, 0)], "b": [(1, 0)]},
        scores={"a": {"x": [0.0], "y": [1.0], "kind": [0.0]}},
        features={"hidden": hidden},
        heads={"degree": head, "box": head, "kind": head},
    )
    assert Degree(("a", "b")).value(reads).tolist() == pytest.approx([logistic(2.0) + log(2)])
    assert Degree(("a", "b")).heads == (Head(name="degree", outputs=2),)
    box = Aux("a", "box", ("x", "y"))
    assert box.value(reads).tolist() == pytest.approx([(4 + 1) / 2])
    bce = Aux("a", "box", ("x", "y"), "bce")
    assert bce.value(reads).tolist() == pytest.approx([(2 + logistic(2.0) + log(2)) / 2])
    assert Aux("a", "kind", ("kind",), "cross_entropy", 2).value(reads).tolist() == pytest.approx(
        [logistic(2.0)]
    )
    layers = [type(layer).__name__ for layer in Head(name="h", outputs=3, hidden=(4,)).build(2).children()]
    assert layers == ["Linear", "ReLU", "Linear"]
    assert Learned(shared=False).heads == (Head(name="mask", outputs=2),)


def test_running_statistics() -> None:
    """A mean of 1, 3 (two values, sum 4), then 8 is 4; an average with decay 0.9 starts at 2, then is 2.6."""
    both = (Statistic(name="m", kind="mean"), Statistic(name="e", kind="ema", decay=0.9))
    carry = advanced({}, both, {"m": (4.0, 2.0), "e/a": (4.0, 2.0), "e/b": (0.0, 0.0)})
    assert carry == {"m": 2.0, "m.count": 2.0, "e/a": 2.0}
    carry = advanced(carry, both, {"m": (8.0, 1.0), "e/a": (8.0, 1.0)})
    assert carry == pytest.approx({"m": 4.0, "m.count": 3.0, "e/a": 2.6})
    with pytest.raises(ValueError, match="declare only"):
        advanced({}, both, {"em": (1.0, 1.0)})


def test_what_terms_refuse() -> None:
    refused: list[tuple[Callable[[], object], str]] = [
        (lambda: Pair("text.winner"), "expected the name of an edge, such as 'text'"),
        (lambda: Pair(beta=0.0), "beta must be positive"),
        (lambda: Linear({}), "expected edges"),
        (lambda: Linear({"a": 1.0}, -1.0), "beta must be positive"),
        (lambda: TwoBetas("text", 0.1, -0.1), "beta_loser >= 0"),
        (lambda: Sides(beta=-1.0), "beta must be positive"),
        (lambda: Aot(beta=0.0), "beta must be positive"),
        (lambda: Softmax(beta=0.0), "beta must be positive"),
        (lambda: Nll("text.best"), "expected a role, 'text.winner' or 'text.loser'"),
        (lambda: Kto("text.", "bad"), "expected a role"),
        (lambda: Robust(0.5), "0 <= flip < 0.5"),
        (lambda: Exo(0.0), "0 < epsilon < 1"),
        (lambda: BoxCox(2.0), "0 <= q <= 1"),
        (lambda: Aux("y", parts=()), "names of score parts"),
        (lambda: Aux("y", "k", ("a", "b"), "cross_entropy", 3), "the class number"),
        (lambda: Anchor(sign=2), "sign is 1 or -1"),
    ]
    for build, message in refused:
        with pytest.raises(ValueError, match=message):
            build()


def test_an_objective_declares_what_its_terms_read() -> None:
    objective = (
        0.5 * Pair(margin=KLGap(0.1), weighting=Wpo()) + Kto() + SparsePair(masks=Learned()) + Reinforce("y")
    )
    assert objective.edges == {"text"} and objective.roles == {"good", "bad", "kl", "y"}
    assert objective.needs == {"kl_forward", "collision", "reference_hidden"}
    assert objective.heads == (Head(name="mask", outputs=1),)
    assert objective.coupled and objective.max_lag == 0
    assert (Pair(margin=TaskEma("ema")) + Bco()).statistics == (
        Statistic(name="ema", kind="ema"),
        Statistic(name="bco", kind="mean"),
    )
    free = Objective(((1.0, Pair(scoring=Mean(against=None))), (1.0, Nll())))
    assert free.views == {"policy"} and free.max_lag is None
    assert PolicyGradient("y").views == {"policy", "behaviour"}
    assert PolicyGradient("y", clip=None, kl=0.1).views == {"policy", "reference"}
