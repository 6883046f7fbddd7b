"""However comparisons are batched, sum(value) / sum(weight) over all of them is the same; for every term.

The exceptions are `COUPLED`: they look at the global batch at once, and their gradient is replayed.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping, Sequence
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pipelines import objectives
from pipelines.objectives.anchor import Anchor
from pipelines.objectives.base import EdgeTable, Reads, Term
from pipelines.objectives.batch import tabulate
from pipelines.objectives.fourier import FftTriplet
from pipelines.objectives.heads import Aux, Degree
from pipelines.objectives.implicit import FSft
from pipelines.objectives.kl import Bonus, LoserKl, ScoreKl, TokenKl
from pipelines.objectives.links import BoxCox, DiscoPop, DynamicBoxCox, Exo, Hinge, LogSigmoid, Robust, Square
from pipelines.objectives.margins import Constant, KLGap, ReferenceGate, ScoreGap, TaskEma, Together
from pipelines.objectives.masks import Learned, SparsePair
from pipelines.objectives.mcr import PermutationContrast
from pipelines.objectives.nll import ExpReward, Nll
from pipelines.objectives.pair import Linear, Pair, TwoBetas
from pipelines.objectives.policy_gradient import Nash, PolicyGradient, Reinforce
from pipelines.objectives.positions import PositionPair
from pipelines.objectives.quantiles import Aot
from pipelines.objectives.ranking import Lambda, PlackettLuce, Pro, Skip
from pipelines.objectives.rationale import LogProb
from pipelines.objectives.ratios import AdvantageRegression, Cispo, Gmpo, Sapo, Vespo
from pipelines.objectives.scoring import (
    Alpha,
    Desensitised,
    FDivergence,
    LogOdds,
    Mean,
    OnlySpans,
    Spans,
    StepWeighted,
)
from pipelines.objectives.sides import ApoDown, ApoZero, BcoPair, Nca, Sides, Sppo, SppoHard
from pipelines.objectives.softmax import Softmax
from pipelines.objectives.unpaired import Bco, Kto
from pipelines.objectives.weightings import Confidence, LambdaGap, Wpo, ZScore
from pipelines.types import Candidate, Comparison, Response
from tests.pipelines.objectives.batches import comparisons, prompt, reads_of

LINKS = (Hinge(), Square(), Robust(), Exo(), DiscoPop(0.5), BoxCox(), DynamicBoxCox(), LogSigmoid(0.1))
SCORINGS = (
    Mean(),
    FDivergence("js"),
    FDivergence("alpha", 0.5, True),
    Alpha(),
    LogOdds(),
    Spans("seg", 3.0, True),
    OnlySpans("seg"),
    StepWeighted("seg"),
    Desensitised(0.3),
)
MARGINS = (
    Constant(0.3),
    Together((ScoreGap(0.5), ScoreGap(0.1, "safety"))),
    KLGap(0.1),
    ReferenceGate(0.1),
    TaskEma("ema", by="task", clip=0.2),
)
WEIGHTINGS = (Wpo(), Confidence("safety"), ZScore("value"), LambdaGap("value"))
FORMS = (Nca(), BcoPair(), ApoZero(), ApoDown(), SppoHard(), Sppo(), Sppo("safety"))
SEPARABLE: tuple[Term, ...] = (
    Pair("text", 0.3),
    Pair("media"),
    *(Pair("text", 0.3, link) for link in LINKS),
    *(Pair("text", 0.3, scoring=scoring) for scoring in SCORINGS),
    *(Pair("text", 0.3, margin=margin) for margin in MARGINS),
    *(Pair("text", 0.3, weighting=weighting) for weighting in WEIGHTINGS),
    *(Sides("text", 0.3, form) for form in FORMS),
    Sides("media", 0.3, weighting=Wpo()),
    Linear({"text": 1.0, "media": -0.5}, 0.2, margin=KLGap(0.1)),
    TwoBetas("text", 0.3, 0.1),
    Softmax(("text", "media"), 0.3),
    Anchor("text.winner", 0.1, 0.7),
    Anchor("media.loser", TaskEma("ema", by="task"), 1.0, scoring=Mean(against=None)),
    Anchor("y", sign=-1),
    *(Nll("text.winner", reduction) for reduction in ("sequence_mean", "sum", "batch_tokens")),
    Nll("y", "batch_tokens", ExpReward(2.0)),
    LogProb("g"),
    FSft("g", "hellinger"),
    TokenKl("text.winner", "forward", "batch_tokens"),
    TokenKl("g", "reverse"),
    LoserKl("text"),
    ScoreKl("y"),
    Bonus("g", 0.1, "reference"),
    Kto("text.winner", "text.loser", None),
    Bco("y", "text.loser"),
    PlackettLuce("y", 0.3),
    PlackettLuce(("g", "y"), 0.3),
    Lambda("y", 0.3),
    Skip("y", 0.3, k=2),
    Pro("y"),
    PolicyGradient("y", "group", kl=0.1),
    PolicyGradient("y", "centered", clip_high=0.3, reduction="batch_tokens", ratio="sequence"),
    PolicyGradient("y", kl=0.1, ceiling=1.1, kl_ratio=True),
    Reinforce("y"),
    Cispo("y"),
    Sapo("y"),
    Vespo("y"),
    Gmpo("y"),
    AdvantageRegression("y", 0.1, optimal="safety"),
    Nash("text"),
    PositionPair("text", 0.3, "seg"),
    FftTriplet("text.winner", "g", "text.loser"),
    SparsePair("text", 0.3, l1=0.01),
    SparsePair("media", 0.3, Learned(shared=False), 0.01),
    Degree(("g", "y")),
    Aux("y", "box", ("value", "safety")),
    Aux("y", "kind", ("task",), "cross_entropy", 3),
    PermutationContrast("media"),
)
COUPLED: tuple[Term, ...] = (
    Aot("text", 0.3),
    Aot("text", 0.3, 0.1, paired=False),
    Kto("text.winner", "text.loser", "y", 0.3),
    Bco("text.winner", "text.loser", 0.3, current=True),
)


def totals(reads: Reads, term: Term) -> tuple[float, float]:
    """(sum of values, sum of weights); the weights from what holds no log-prob."""
    value, weight = term.value(reads), term.weight(replace(reads, tokens={}, features={}, heads={}))
    assert value.shape == weight.shape == (reads.size,)
    assert value.dtype == torch.float64
    assert torch.isfinite(value).all() and not weight.requires_grad
    return value.sum().item(), weight.double().sum().item()


def padded(reads: Reads, left: int, right: int) -> Reads:
    """The same answers with columns of padding on either side."""

    def pad(values: Tensor) -> Tensor:
        edges = (left, right) if values.dim() == 2 else (0, 0, left, right)
        return nn.functional.pad(values, edges)

    def spans(table: EdgeTable) -> EdgeTable:
        return replace(table, spans={n: (pad(one), pad(other)) for n, (one, other) in table.spans.items()})

    def each(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: pad(tensor) for name, tensor in values.items()}

    return replace(
        reads,
        mask=pad(reads.mask),
        tokens=each(reads.tokens),
        features=each(reads.features),
        edges={name: spans(table) for name, table in reads.edges.items()},
    )


def weightless(comparison: Comparison) -> Comparison:
    """The same comparison with weight 0 on every edge."""
    return replace(comparison, preferences=tuple(replace(p, weight=0.0) for p in comparison.preferences))


def close(found: tuple[float, float], wanted: tuple[float, float], term: Term) -> None:
    assert found == pytest.approx(wanted, rel=1e-6, abs=1e-6), term


@settings(max_examples=25)
@given(comparisons(), st.data())
def test_order_split_and_padding_change_nothing(batch: list[Comparison], data: st.DataObject) -> None:
    shuffled = data.draw(st.permutations(batch))
    cut = data.draw(st.integers(0, len(batch)))
    left, right = data.draw(st.integers(0, 2)), data.draw(st.integers(0, 2))
    whole, mixed = reads_of(tabulate(batch)), reads_of(tabulate(shuffled))
    parts = reads_of(tabulate(shuffled[:cut])), reads_of(tabulate(shuffled[cut:]))
    blank = reads_of(tabulate([*batch, weightless(batch[0])]))
    for term in SEPARABLE:
        wanted = totals(whole, term)
        close(totals(mixed, term), wanted, term)
        first, second = (totals(part, term) for part in parts)
        close((first[0] + second[0], first[1] + second[1]), wanted, term)
        close(totals(padded(whole, left, right), term), wanted, term)
        if not term.roles:
            close(totals(blank, term), wanted, term)


@settings(max_examples=25)
@given(comparisons(), st.data())
def test_what_is_observed_adds_up(batch: list[Comparison], data: st.DataObject) -> None:
    cut = data.draw(st.integers(0, len(batch)))
    whole = reads_of(tabulate(batch))
    parts = reads_of(tabulate(batch[:cut])), reads_of(tabulate(batch[cut:]))
    for term in SEPARABLE + COUPLED:
        wanted = term.observe(whole)
        assert all(any(s.owns(key) for s in term.statistics) for key in wanted)
        for key, (total, count) in wanted.items():
            found = [part[key] for part in (term.observe(p) for p in parts) if key in part]
            assert sum(float(number) for _, number in found) == float(count)
            assert sum(float(value) for value, _ in found) == pytest.approx(float(total), abs=1e-6)
            assert not total.requires_grad


@settings(max_examples=25)
@given(comparisons(), st.data())
def test_a_coupled_term_does_not_see_order_or_padding(batch: list[Comparison], data: st.DataObject) -> None:
    shuffled = data.draw(st.permutations(batch))
    whole, mixed = reads_of(tabulate(batch)), reads_of(tabulate(shuffled))
    for term in COUPLED:
        wanted = totals(whole, term)
        close(totals(mixed, term), wanted, term)
        close(totals(padded(whole, 1, 2), term), wanted, term)


@settings(max_examples=25)
@given(comparisons(), st.data())
def test_a_coupled_gradient_can_be_replayed_in_micro_batches(
    batch: list[Comparison], data: st.DataObject
) -> None:
    """With G the gradient by the log-probs of the global batch, the sum over micro-batches of G * log-probs
    has the gradient by the weights that the term itself has."""
    cut = data.draw(st.integers(0, len(batch)))
    whole = reads_of(tabulate(batch))
    parts = [reads_of(tabulate(part)) for part in (batch[:cut], batch[cut:])]

    def scaled(reads: Reads, parameter: Tensor) -> Reads:
        return replace(reads, tokens={**reads.tokens, "policy": reads.tokens["policy"] * parameter})

    for term in COUPLED:
        direct = torch.ones((), dtype=torch.float64, requires_grad=True)
        value = term.value(scaled(whole, direct)).sum()
        if not value.requires_grad:
            continue
        value.backward()
        leaf = whole.tokens["policy"].clone().requires_grad_()
        at_leaf = replace(whole, tokens={**whole.tokens, "policy": leaf})
        (gradient,) = torch.autograd.grad(term.value(at_leaf).sum(), leaf)
        replayed = torch.ones((), dtype=torch.float64, requires_grad=True)
        rows = 0
        for part in parts:
            tokens = scaled(part, replayed).tokens["policy"]
            mine = gradient[rows : rows + len(tokens), : tokens.shape[1]]
            (mine * tokens).sum().backward()
            rows += len(tokens)
        assert replayed.grad is not None and direct.grad is not None
        torch.testing.assert_close(replayed.grad, direct.grad)


def below(base: type) -> set[type]:
    """All its subclasses."""
    return {kind for child in base.__subclasses__() for kind in ({child} | below(child))}


def test_every_term_is_listed_here() -> None:
    for module in pkgutil.iter_modules(objectives.__path__):
        importlib.import_module(f"{objectives.__name__}.{module.name}")
    listed = {type(term) for term in SEPARABLE + COUPLED}
    ours = {kind for kind in below(Term) if kind.__module__.startswith(objectives.__name__)}
    bases = {kind for kind in ours if kind.__subclasses__()} - listed
    assert ours - bases == listed
    assert all(term.coupled for term in COUPLED) and not any(term.coupled for term in SEPARABLE)


def test_nothing_is_worth_nothing() -> None:
    """No comparison at all, and comparisons without the edges and roles that a term reads."""
    empty = reads_of(tabulate([]))
    bare = Comparison(
        id="bare",
        prompts=(prompt("x"),),
        responses=(Response(tokens=(1,), text="a"),),
        candidates=(Candidate(prompt=0, response=0, role="other"),),
        preferences=(),
    )
    without = reads_of(tabulate([bare]))
    for term in SEPARABLE + COUPLED:
        assert term.value(empty).tolist() == term.weight(empty).tolist() == []
        assert term.value(without).tolist() == term.weight(without).tolist() == [0.0]


@pytest.mark.parametrize("names", [sorted({term.label for term in SEPARABLE})])
def test_labels_name_the_term_and_what_it_reads(names: Sequence[str]) -> None:
    assert Linear({"wide": 1.0, "base": -1.0}).label == "linear_base+wide"
    assert {"pair_text", "anchor_y", "softmax_media+text", "kto_text.winner+text.loser"} <= set(names)
