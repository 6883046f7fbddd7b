"""Each text recipe's composed objective on a pair whose numbers give round results.

The pair W, L (sums in nats; the fixtures `win` and `lose`): W has 2 tokens, log pi -1, log ref -1.5, so rho =
1/2; L has 4 tokens, log pi -4, log ref -3.5, so rho = -1/2. Hence D = rho_w - rho_l = 1, log pi(w) - log
pi(l) = 3, and per token 3/8 with a reference, 1/2 without. sigmoid(ln 3) = 3/4 makes -log sigmoid = ln(4/3).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from pipelines.objectives.base import Objective
from pipelines.recipe import Extrapolate, Refresh, ResetOptimizer
from pipelines.recipes import load
from pipelines.references import Blended, Harmonic, NoReference, Reference

LN3 = math.log(3)
HIT = math.log(4 / 3)  # -log sigmoid(ln 3)
TEXT = {"text": (0, 1)}
E = math.e


def softplus(z: float) -> float:
    """-log sigmoid(-z)"""
    return math.log1p(math.exp(z))


def log_odds(mean: float) -> float:
    return mean - math.log(1 - math.exp(mean))


def objective(name: str, params: dict[str, Any], stage: int = 0) -> Objective:
    return load(name, params).stages[stage].objective


PAIRS: list[tuple[str, dict[str, Any], float, str]] = [
    ("dpo", {"beta": LN3}, HIT, "h = ln 3"),
    ("online_dpo", {"beta": LN3}, HIT, "h = ln 3"),
    ("single_source", {"beta": LN3}, HIT, "DPO"),
    ("tr_dpo", {"beta": LN3}, HIT, "DPO; the reference moves outside the loss"),
    ("mrpo", {"beta": LN3}, HIT, "DPO against the run's own model"),
    ("cdpo", {"beta": LN3, "smoothing": 0.1}, HIT + 0.1 * LN3, "DPO + e h"),
    ("robust_dpo", {"beta": LN3, "flip": 0.1}, HIT - 0.125 * LN3, "DPO - e / (1 - 2 e) h"),
    ("hinge_dpo", {"beta": 0.5}, 0.5, "1 - 1/2"),
    ("ipo", {"beta": 2.0}, 1 / 64, "(3/8 - 1/4)^2"),
    ("ipo_sum", {"beta": 2.0}, 9 / 16, "(1 - 1/4)^2"),
    ("ln_dpo", {"beta": 8 / 3 * LN3}, HIT, "8/3 ln 3 * 3/8"),
    ("exo", {"beta": LN3, "epsilon": 0.25}, 0.0, "sigmoid(h) = 1 - e"),
    (
        "exo",
        {"beta": LN3, "epsilon": 0.1},
        0.75 * math.log(0.75 / 0.9) + 0.25 * math.log(2.5),
        "KL((3/4, 1/4), (9/10, 1/10))",
    ),
    ("discopop", {"beta": LN3, "temperature": 1.0}, HIT / 4 + 1 / 4, "m = 3/4, exp(-h) = 1/3"),
    ("nca", {"beta": 2 * LN3}, 1.5 * HIT + 0.5 * math.log(4), "a = ln 3, b = -ln 3"),
    ("bco_pair", {"beta": 2 * LN3}, 2 * HIT, "a = ln 3, -b = ln 3"),
    ("apo_zero", {"beta": 2 * LN3}, 0.5, "1/4 + 1/4"),
    ("apo_down", {"beta": 2 * LN3}, 0.85, "3/4 + 1 - sigmoid(ln 9) = 3/4 + 1/10"),
    ("sppo_hard", {"beta": 1.0}, 0.0, "rho = +-1/2 = +-1/(2 beta)"),
    ("sppo_hard", {"beta": 0.5}, 0.5, "(1/2 - 1)^2 twice"),
    ("simpo", {"beta": 2.0, "gamma": 1 - LN3}, HIT, "2 * 1/2 - (1 - ln 3)"),
    ("alpha_po", {"beta": 1.0, "alpha": 1.0, "gamma": E - E**0.5 - LN3}, HIT, "r_w - r_l = e - e^(1/2)"),
    (
        "orpo",
        {"beta": 2.0},
        0.5 + 2 * softplus(log_odds(-1.0) - log_odds(-0.5)),
        "NLL per token of w + beta * -log sigmoid(log odds ratio)",
    ),
    ("cpo", {"beta": LN3 / 3, "nll": 2.0}, HIT + 2 * 0.5, "ln 3 / 3 * 3, NLL per token 1/2"),
    (
        "cpo",
        {"beta": LN3 / 3, "nll": 0.0, "smoothing": 0.1},
        HIT + 0.1 * LN3,
        "cDPO's link",
    ),
    ("slic", {"delta": 4.0, "nll": 0.1}, 1.1, "4 - 3, plus 0.1 * 1"),
    ("slic", {"delta": 2.0, "nll": 0.0}, 0.0, "2 - 3 < 0"),
    ("ld_dpo", {"beta": LN3 / 1.5, "alpha": 0.0}, HIT, "first 2 tokens of l: -2 + 1, so D = 3/2"),
    ("ld_dpo", {"beta": LN3 / 1.25, "alpha": 0.5}, HIT, "tail of l: -2 + 2.5 = 1/2, halved: D = 1/2 + 3/4"),
    ("f_dpo", {"beta": 2 * LN3, "divergence": "js"}, HIT, "log sigmoid(1/2) - log sigmoid(-1/2) = 1/2"),
    (
        "f_dpo",
        {"beta": LN3 / (E**0.5 - E**-0.5), "divergence": "forward_kl"},
        HIT,
        "-exp(-1/2) + exp(1/2)",
    ),
    (
        "f_dpo",
        {"beta": LN3 / (2 * (E**0.25 - E**-0.25)), "divergence": "alpha", "alpha": 0.5},
        HIT,
        "-2 exp(-1/4) + 2 exp(1/4)",
    ),
    ("f_dpo", {"beta": LN3, "divergence": "reverse_kl"}, HIT, "DPO"),
    ("rpo_sft", {"beta": LN3, "eta": 0.1}, HIT + 0.1 * LN3, "eta beta * 1 summed"),
    ("rpo_sft", {"beta": LN3, "eta": 0.1, "reduction": "sequence_mean"}, HIT + 0.05, "eta * 1/2 per token"),
    ("flex_dpo", {"beta": LN3, "beta_rejected": LN3}, HIT, "equal betas: DPO"),
    ("flex_dpo", {"beta": 2 * LN3, "beta_rejected": 0.0}, HIT, "2 ln 3 * 1/2"),
    ("flex_dpo", {"beta": 2 * LN3, "beta_rejected": 0.0, "nll": 2.0}, HIT + 1.0, "plus 2 * 1/2"),
    ("hypo_gating", {"beta": LN3}, HIT, "D_pi = 3, D_ref = 2 > 0: ln 3 * 1"),
    ("aot", {"beta": LN3}, HIT, "one pair: DPO"),
    ("aot_unpaired", {"beta": LN3, "smoothing": 0.1}, HIT + 0.1 * LN3, "one pair: cDPO"),
    ("apo_accelerated", {"beta": LN3}, HIT, "each round is DPO"),
    ("curri_dpo", {"beta": LN3}, HIT, "each stage is DPO"),
]


@pytest.mark.parametrize(
    ("name", "params", "wanted", "why"), PAIRS, ids=lambda v: v if isinstance(v, str) else ""
)
def test_a_pair(
    name: str,
    params: dict[str, Any],
    wanted: float,
    why: str,
    win: Any,
    lose: Any,
    valued: Callable[..., Any],
) -> None:
    found = valued(objective(name, params), [[("w@x", win), ("l@x", lose)]], TEXT)
    assert found.value == pytest.approx(wanted, abs=1e-6), why


def test_a_reference_that_prefers_the_loser_is_ignored(
    win: Any, lose: Any, valued: Callable[..., Any]
) -> None:
    """HyPO (gating) with the sides exchanged: D_pi = -3 and D_ref = -2 < 0, so h = -3 beta."""
    found = valued(objective("hypo_gating", {"beta": 1.0}), [[("w@x", lose), ("l@x", win)]], TEXT)
    assert found.value == pytest.approx(softplus(3.0), abs=1e-9)


def test_wpo_weighs_by_how_likely_the_answers_are(win: Any, lose: Any, valued: Callable[..., Any]) -> None:
    """omega = exp(mean(log pi - collision)): 1 for w, 1/2 for l. The factors carry no gradient."""
    collision = math.log(2)
    one = replace(win, features={"collision": (-0.5, -0.5)})
    two = replace(lose, features={"collision": (-1 + collision,) * 4})
    found = valued(objective("wpo", {"beta": LN3}), [[("w@x", one), ("l@x", two)]], TEXT)
    plain = valued(objective("dpo", {"beta": LN3}), [[("w@x", win), ("l@x", lose)]], TEXT)
    assert found.value == pytest.approx(HIT / 2, abs=1e-9)
    assert found.slopes == [[pytest.approx(s / 2) for s in row] for row in plain.slopes]


def test_sppo_regresses_on_win_probabilities(win: Any, lose: Any, valued: Callable[..., Any]) -> None:
    """beta 1, P = (3/4, 1/4): 1/2 [(1/2 - 1/4)^2 + (-1/2 + 1/4)^2] = 1/16."""
    row = [("w@x", replace(win, parts={"win": 0.75})), ("l@x", replace(lose, parts={"win": 0.25}))]
    recipe = load("sppo", {"beta": 1.0})
    assert valued(recipe.stages[0].objective, [row], TEXT).value == pytest.approx(1 / 16, abs=1e-9)
    assert len(recipe.stages) == 3 and all(stage.then == (Refresh(),) for stage in recipe.stages)


def test_modpo_subtracts_the_other_objectives_margin(win: Any, lose: Any, valued: Callable[..., Any]) -> None:
    """w = (1/2, 1/4, 1/4), beta 1, part gaps 1 and 0.5: h = 2 [1 - 1/4 - 1/8] = 5/4. A constant added to both
    answers' parts changes nothing."""
    params = {"beta": 1.0, "weight": 0.5, "others": {"a": 0.25, "b": 0.25}}
    for shift in (0.0, 7.0):
        row = [
            ("w@x", replace(win, parts={"a": 1.0 + shift, "b": 0.5})),
            ("l@x", replace(lose, parts={"a": 0.0 + shift, "b": 0.0})),
        ]
        found = valued(objective("modpo", params), [row], TEXT)
        assert found.value == pytest.approx(softplus(-1.25), abs=1e-9)


def test_sparse_po_weighs_tokens_by_the_references_activations(
    win: Any, lose: Any, valued: Callable[..., Any]
) -> None:
    """Activations 0 and 1 at w's tokens give the masks 0, 1: u_w = 1/4, KL_w = 0.1; l's 0, 0, 0, 2 give 0, 0,
    0, 1: u_l = 1/4, KL_l = 0.2. h = 1/4 + 0.1 - 1/4 - 0.2. With equal activations and no KL it is DPO."""
    features: dict[str, Any] = {"kl_forward": (9.0, 0.1), "reference_hidden": ([0.0, 0.0], [2.0, 0.0])}
    one = replace(win, features=features)
    features = {"kl_forward": (9.0, 9.0, 9.0, 0.2), "reference_hidden": (*([[0.0, 0.0]] * 3), [4.0, 0.0])}
    two = replace(lose, features=features)
    found = valued(objective("sparse_po", {"beta": 1.0}), [[("w@x", one), ("l@x", two)]], TEXT)
    assert found.value == pytest.approx(softplus(0.1), abs=1e-9)
    same = [
        (role, replace(c, features={"kl_forward": (0.0,) * n, "reference_hidden": [[1.0, 1.0]] * n}))
        for role, c, n in (("w@x", win, 2), ("l@x", lose, 4))
    ]
    assert valued(objective("sparse_po", {"beta": LN3}), [same], TEXT).value == pytest.approx(HIT)


def test_sparse_po_learns_masks_and_pays_for_them(win: Any, lose: Any, valued: Callable[..., Any]) -> None:
    """A head that gives 1 for u and 0 for d everywhere is DPO plus l1 * (2 + 4) tokens."""

    class Ones(torch.nn.Module):
        def forward(self, hidden: torch.Tensor) -> torch.Tensor:
            return torch.stack([torch.ones(hidden.shape[:-1]), -torch.ones(hidden.shape[:-1])], -1).double()

    term = objective("sparse_po", {"beta": LN3, "masks": "independent", "l1": 0.01})
    (head,) = term.heads
    assert head.outputs == 2
    assert objective("sparse_po", {"masks": "common"}).heads[0].outputs == 1
    row = [
        (role, replace(c, features={"kl_forward": (5.0,) * n, "reference_hidden": [[1.0, 2.0]] * n}))
        for role, c, n in (("w@x", win, 2), ("l@x", lose, 4))
    ]
    found = valued(term, [row], TEXT, heads={head.name: Ones()})
    assert found.value == pytest.approx(HIT + 0.06, abs=1e-6)


# -- likelihoods ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "role", "params", "wanted"),
    [
        ("pref_ft", "y", {}, 0.75),  # per token 1/2 and 1, then the mean
        ("dpa", "best", {}, 0.75),
        ("fspo", "w", {}, 0.75),
        ("best_of_n", "y", {"kl": 0.5}, 0.75 + 0.5 * 0.15),
    ],
)
def test_likelihood_of_chosen_answers(
    name: str,
    role: str,
    params: dict[str, Any],
    wanted: float,
    win: Any,
    lose: Any,
    valued: Callable[..., Any],
) -> None:
    """Two comparisons, W in one and L in the other. Reverse KL per token: 0.1 at W's tokens, 0.2 at L's."""
    one = replace(win, features={"kl_reverse": (0.1, 0.1)})
    two = replace(lose, features={"kl_reverse": (0.2,) * 4})
    found = valued(objective(name, params), [[(role, one)], [(role, two)]], {})
    assert found.value == pytest.approx(wanted, abs=1e-9)


@pytest.mark.parametrize(
    ("kind", "wanted"), [("exp", (3 * 0.5 + 1.0) / 2), ("sigmoid", (0.75 * 0.5 + 0.5) / 2)]
)
def test_rwr_weighs_by_reward(
    kind: str, wanted: float, win: Any, lose: Any, valued: Callable[..., Any]
) -> None:
    """r / T = ln 3 and 0: exp gives 3 and 1, sigmoid 3/4 and 1/2; an answer without a score does not
    count."""
    row = [("y", replace(win, value=2 * LN3)), ("y", replace(lose, value=0.0)), ("y", lose)]
    found = valued(objective("rwr", {"temperature": 2.0, "kind": kind}), [row], {})
    assert found.value == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize(
    ("divergence", "wanted"), [("kl", -0.5), ("pearson", 1 / 16 - 0.5), ("hellinger", -1 / 3)]
)
def test_implicit_sft(divergence: str, wanted: float, win: Any, valued: Callable[..., Any]) -> None:
    """h = beta rho = 1/2: -h, h^2 / 4 - h, -h / (1 + h). Then DPO."""
    params = {"beta": 1.0, "divergence": divergence}
    assert valued(objective("implicit_sft", params), [[("g", win)]], {}).value == pytest.approx(wanted)
    assert objective("implicit_sft", params, 1) == objective("dpo", {"beta": 1.0})


def test_tpo_triple(win: Any, lose: Any, cell: Callable[..., Any], valued: Callable[..., Any]) -> None:
    """-log sigmoid(ln 3 / 3 * 3) + 2 * 0.3 per token of gold."""
    gold = cell(policy=(-0.1, -0.5), reference=(0.0, 0.0))
    term = objective("tpo_triple", {"beta": LN3 / 3, "alpha": 2.0})
    found = valued(term, [[("w@x", win), ("l@x", lose), ("g", gold)]], TEXT)
    assert found.value == pytest.approx(HIT + 0.6, abs=1e-9)


def test_rationales(win: Any, lose: Any, cell: Callable[..., Any], valued: Callable[..., Any]) -> None:
    """log pi(e) = -ln 3 / gamma: RDPO adds -log sigmoid(-ln 3) = ln 4, RORPO gamma * 2."""
    row = [("w@x", win), ("l@x", lose), ("e", cell(policy=(-1.0, -1.0), reference=(0.0, 0.0)))]
    found = valued(objective("rationale_dpo", {"beta": LN3, "gamma": LN3 / 2}), [row], TEXT)
    assert found.value == pytest.approx(HIT + math.log(4), abs=1e-9)
    with_e = valued(objective("rationale_orpo", {"beta": 2.0, "gamma": 0.5}), [row], TEXT).value
    plain = valued(objective("orpo", {"beta": 2.0}), [row[:2]], TEXT).value
    assert with_e - plain == pytest.approx(0.5 * 2, abs=1e-9)


# -- stages and references ----------------------------------------------------------------------------------


def test_rounds() -> None:
    """Accelerated: extrapolate, then refresh; alpha 0 is iterative DPO. The curriculum refreshes between
    stages."""
    fast, plain = load("apo_accelerated", {}), load("apo_accelerated", {"alpha": 0.0, "rounds": 2})
    assert [s.then for s in fast.stages] == [(Extrapolate(alpha=0.3), Refresh(), ResetOptimizer())] * 3
    assert [s.then for s in plain.stages] == [(Refresh(), ResetOptimizer())] * 2
    assert [s.objective for s in plain.stages] == [load("dpo", {}).stages[0].objective] * 2
    curriculum = load("curri_dpo", {})
    assert [s.then for s in curriculum.stages] == [(Refresh(),)] * 3
    assert [s.then for s in load("curri_dpo", {"refresh": False}).stages] == [()] * 3
    assert len(load("dpa", {"rounds": 4}).stages) == 4 and len(load("sppo", {"rounds": 1}).stages) == 1


def test_references() -> None:
    assert load("tr_dpo", {"alpha": 0.5, "every": 3}).stages[0].reference == Blended(alpha=0.5, every=3)
    assert load("mrpo", {}).stages[0].reference == Reference()
    two = load("mrpo", {"others": ("a", "b"), "share": 0.5}).stages[0].reference
    assert two == Harmonic(paths=("a", "b"), shares=(0.5, 0.25, 0.25), clip=0.1)
    free = [
        "simpo",
        "alpha_po",
        "orpo",
        "cpo",
        "slic",
        "tpo_triple",
        "rationale_orpo",
        "pro",
        "pref_ft",
        "rwr",
        "dpa",
    ]
    for name in free:
        stage = load(name, {}).stages[0]
        assert isinstance(stage.reference, NoReference) and "reference" not in stage.objective.views, name
