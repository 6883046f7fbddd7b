"""Recipes that are another recipe at a certain setting, in value and gradient, for any log-probabilities."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.objectives.base import Objective
from pipelines.recipes import load

LENGTHS = ((3, 5), (7, 2), (1, 4), (4, 4))
Cells = Callable[..., Any]
Value = Callable[..., Any]
Params = dict[str, Any]
SEED = st.integers(0, 10_000)
TEXT = {"text": (0, 1)}


def objective(name: str, params: Params, stage: int = 0) -> Objective:
    return load(name, params).stages[stage].objective


def rows(cell: Cells, seed: int, roles: tuple[str, ...] = (), parts: bool = False) -> list[Any]:
    """Four comparisons with the cells w@x, l@x and one more per role, all with numbers of their own."""
    rng = np.random.default_rng(seed)

    def one(length: int) -> Any:
        numbers = {view: tuple(-rng.exponential(0.8, length)) for view in ("policy", "reference")}
        features = {
            "collision": tuple(-rng.exponential(1.0, length)),
            "kl_reverse": tuple(rng.exponential(0.1, length)),
        }
        return cell(**numbers, value=float(rng.normal()), features=features)

    made = [[("w@x", one(w)), ("l@x", one(o)), *((role, one(3)) for role in roles)] for w, o in LENGTHS]
    return made


def close(found: Any, wanted: Any, shift: float = 0.0) -> None:
    assert found.value == pytest.approx(wanted.value + shift, rel=1e-7, abs=1e-9)
    for one, other in zip(found.slopes, wanted.slopes, strict=True):
        assert one == pytest.approx(other, rel=1e-7, abs=1e-9)


SAME: list[tuple[str, Params, str, Params]] = [
    ("cdpo", {"smoothing": 0.0}, "dpo", {}),
    ("robust_dpo", {"flip": 0.0}, "dpo", {}),
    ("rpo_sft", {"eta": 0.0}, "dpo", {}),
    ("modpo", {"weight": 1.0}, "dpo", {}),
    ("modpo", {"weight": 1.0, "others": {}}, "dpo", {}),
    ("flex_dpo", {"beta": 0.3, "beta_rejected": 0.3}, "dpo", {"beta": 0.3}),
    ("ld_dpo", {"alpha": 1.0}, "dpo", {}),
    ("f_dpo", {"divergence": "reverse_kl"}, "dpo", {}),
    ("f_dpo", {"divergence": "alpha", "alpha": 1.0}, "dpo", {}),
    ("mrpo", {}, "dpo", {}),
    ("tr_dpo", {}, "dpo", {}),
    ("online_dpo", {}, "dpo", {}),
    ("single_source", {}, "dpo", {}),
    ("apo_accelerated", {"alpha": 0.0}, "dpo", {}),
    ("curri_dpo", {}, "dpo", {}),
    ("xpo", {"alpha": 0.0}, "dpo", {}),
    ("vpo_incentivized", {"alpha": 0.0}, "dpo", {}),
    ("hypo_coverage", {"kl": 0.0}, "dpo", {}),
    ("mcr", {"weight": 0.0}, "dpo", {}),
    ("simpo", {"gamma": 0.0}, "alpha_po", {"gamma": 0.0, "alpha": 0.0}),
    ("tpo_triple", {"alpha": 0.0, "beta": 0.2}, "cpo", {"nll": 0.0, "beta": 0.2}),
    ("rationale_orpo", {"gamma": 0.0, "beta": 0.2}, "orpo", {"beta": 0.2}),
]


@pytest.mark.parametrize(("name", "params", "other", "others"), SAME)
@settings(max_examples=12)
@given(seed=SEED)
def test_at_this_setting_it_is_the_other(
    name: str, params: Params, other: str, others: Params, seed: int, cell: Cells, valued: Value
) -> None:
    given_rows = rows(cell, seed, ("r", "calibration", "kl", "g", "e", "w@m"))
    edges = {**TEXT, "media": (0, 7)} if name in ("online_dpo", "mcr") else TEXT
    close(
        valued(objective(name, params), given_rows, edges),
        valued(objective(other, others), given_rows, edges),
    )


@settings(max_examples=12)
@given(seed=SEED)
def test_vpo_is_rpo_or_xpo(seed: int, cell: Cells, valued: Value) -> None:
    """Pessimism about the chosen answers has RPO's gradient with eta = alpha; optimism about the reference's
    has XPO's with alpha_XPO = alpha beta. The values differ by what the reference says."""
    made = rows(cell, seed)
    chosen = [[*row, ("calibration", row[0][1])] for row in made]
    params: Params = {"beta": 0.4, "alpha": 0.3, "attitude": "pessimism"}
    vpo = valued(objective("vpo_incentivized", params), chosen, TEXT)
    rpo = valued(objective("rpo_sft", {"beta": 0.4, "eta": 0.3}), made, TEXT)
    reference = np.mean([sum(row[0][1].reference) for row in made])
    assert vpo.value == pytest.approx(rpo.value + 0.4 * 0.3 * reference)
    moved = [np.add(vpo.slopes[i], vpo.slopes[i + 2]) for i in range(0, 12, 3)]
    for mine, theirs in zip(moved, rpo.slopes[::2], strict=True):
        assert list(mine) == pytest.approx(theirs)
    sampled = rows(cell, seed, ("calibration", "r"))
    optimism = valued(objective("vpo_incentivized", {"beta": 0.4, "alpha": 0.3}), sampled, TEXT)
    xpo = valued(objective("xpo", {"beta": 0.4, "alpha": 0.12}), sampled, TEXT)
    for i in range(0, 16, 4):
        assert optimism.slopes[i + 2] == pytest.approx([0.03] * 3)  # alpha beta / 4 comparisons
        assert xpo.slopes[i + 3] == pytest.approx([0.03] * 3)
        assert optimism.slopes[i] == pytest.approx(xpo.slopes[i])


@settings(max_examples=12)
@given(seed=SEED)
def test_reference_free_is_a_reference_that_says_nothing(seed: int, cell: Cells, valued: Value) -> None:
    """With log ref = 0: LN-DPO is SimPO without margin, the hinge is SLiC's, DPO is CPO without its
    likelihood, and the gate of HyPO does nothing."""
    made = [
        [(role, replace(c, reference=(0.0,) * len(c.reference))) for role, c in row]
        for row in rows(cell, seed)
    ]

    def of(name: str, **params: Any) -> Any:
        return valued(objective(name, params), made, TEXT)

    close(of("ln_dpo", beta=1.5), of("simpo", beta=1.5, gamma=0.0))
    hinge = of("hinge_dpo", beta=0.5)
    slic = of("slic", delta=2.0, nll=0.0)
    assert slic.value == pytest.approx(2 * hinge.value)
    close(of("dpo", beta=0.3), of("cpo", beta=0.3, nll=0.0))
    close(of("hypo_gating", beta=0.3), of("dpo", beta=0.3))


@settings(max_examples=12)
@given(seed=SEED)
def test_a_gate_that_is_open_everywhere_is_dpo(seed: int, cell: Cells, valued: Value) -> None:
    """Where the reference prefers the winner in all pairs, gated HyPO is DPO."""
    made = [
        [("w@x", replace(w, reference=(0.0,) * len(w.reference))), ("l@x", lose)]
        for (_, w), (_, lose) in rows(cell, seed)
    ]
    close(
        valued(objective("hypo_gating", {"beta": 0.3}), made, TEXT),
        valued(objective("dpo", {"beta": 0.3}), made, TEXT),
    )


@settings(max_examples=12)
@given(seed=SEED)
def test_sppo_with_certain_labels_is_half_of_the_hard_form(seed: int, cell: Cells, valued: Value) -> None:
    made = [
        [("w@x", replace(w, parts={"win": 1.0})), ("l@x", replace(lose, parts={"win": 0.0}))]
        for (_, w), (_, lose) in rows(cell, seed)
    ]
    soft = valued(objective("sppo", {"beta": 0.5}), made, TEXT)
    hard = valued(objective("sppo_hard", {"beta": 0.5}), made, TEXT)
    assert soft.value == pytest.approx(hard.value / 2)


@settings(max_examples=12)
@given(seed=SEED)
def test_kto_without_foreign_answers_is_half_of_apo_zero(seed: int, cell: Cells, valued: Value) -> None:
    """z = 0; KTO averages over answers, APO-zero adds the two of a pair."""
    made = rows(cell, seed)
    split = [[("good", row[0][1]), ("bad", row[1][1])] for row in made]
    kto = valued(objective("kto", {"beta": 0.5}), split, {})
    assert kto.value == pytest.approx(valued(objective("apo_zero", {"beta": 0.5}), made, TEXT).value / 2)


@settings(max_examples=12)
@given(seed=SEED)
def test_what_shares_a_form(seed: int, cell: Cells, valued: Value) -> None:
    """FSPO's second stage is IPO on sums; best-of-n without KL is Pref-FT; a rationale at gamma 0 adds ln
    2."""
    made = rows(cell, seed, ("y", "e"))
    assert objective("fspo", {"beta": 0.1}, 1) == objective("ipo_sum", {"beta": 0.1})
    close(
        valued(objective("best_of_n", {"kl": 0.0}), made, TEXT),
        valued(objective("pref_ft", {}), made, TEXT),
    )
    close(
        valued(objective("rationale_dpo", {"gamma": 0.0}), made, TEXT),
        valued(objective("dpo", {}), made, TEXT),
        shift=np.log(2),
    )


@settings(max_examples=12)
@given(seed=SEED)
def test_aot_forgets_who_belongs_to_whom(seed: int, cell: Cells, valued: Value) -> None:
    """Unpaired: losers may change places. One comparison alone is DPO, smoothed or not."""
    made = rows(cell, seed)
    moved = [[row[0], made[i - 1][1]] for i, row in enumerate(made)]
    term = objective("aot_unpaired", {})
    assert valued(term, made, TEXT).value == pytest.approx(valued(term, moved, TEXT).value)
    for name in ("aot", "aot_unpaired"):
        close(
            valued(objective(name, {"smoothing": 0.2}), made[:1], TEXT),
            valued(objective("cdpo", {"smoothing": 0.2}), made[:1], TEXT),
        )


@settings(max_examples=12)
@given(seed=SEED)
def test_equal_lengths_do_not_depend_on_the_desensitising(seed: int, cell: Cells, valued: Value) -> None:
    made = rows(cell, seed)[3:]
    close(valued(objective("ld_dpo", {"alpha": 0.1}), made, TEXT), valued(objective("dpo", {}), made, TEXT))


@settings(max_examples=12)
@given(seed=SEED)
def test_pooled_pairs_are_the_curriculums_pairs(seed: int, cell: Cells, valued: Value) -> None:
    """The sum of the three stages' losses on one group is the pooled loss."""
    rng = np.random.default_rng(seed)
    cells = [
        cell(policy=tuple(-rng.exponential(1, 3)), reference=tuple(-rng.exponential(1, 3))) for _ in range(4)
    ]
    row = [(f"{name}@x", item) for name, item in zip("adcb", cells, strict=True)]
    edges = {"easy": (0, 1), "medium": (0, 2), "hard": (0, 3)}
    pooled = valued(objective("curri_dpo", {"pooled": True}), [row], edges)
    stages = load("curri_dpo", {}).stages
    alone = [
        valued(stage.objective, [row], {"text": pair}).value
        for stage, pair in zip(stages, edges.values(), strict=True)
    ]
    assert pooled.value == pytest.approx(sum(alone))
