"""Composed objectives on more, or on other things, than one pair: lists, unpaired answers, fresh samples,
prompts.

W and L are those of `test_formulas`: rho = 1/2 and -1/2, log pi -1 over 2 and -4 over 4 tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from pipelines.objectives.base import Objective
from pipelines.recipes import load

LN3 = math.log(3)
HIT = math.log(4 / 3)  # -log sigmoid(ln 3)
TEXT = {"text": (0, 1)}


def softplus(z: float) -> float:
    """-log sigmoid(-z)"""
    return math.log1p(math.exp(z))


def objective(name: str, params: dict[str, Any], stage: int = 0) -> Objective:
    return load(name, params).stages[stage].objective


# -- lists ---------------------------------------------------------------------------------------------------


def test_pro_of_two(win: Any, lose: Any, valued: Callable[..., Any]) -> None:
    """T = 2 ln 3, p_w - p_l = 1/2: ln(4/3), plus sft (2 - 1)^2 * 1. Equal rewards: ln 2 without a signal."""
    row = [("y", replace(lose, value=0.0)), ("y", replace(win, value=2 * LN3))]
    assert valued(objective("pro", {"sft": 0.05}), [row], {}).value == pytest.approx(HIT + 0.05, abs=1e-6)
    tie = [("y", replace(lose, value=1.0)), ("y", replace(win, value=1.0))]
    found = valued(objective("pro", {"sft": 0.0}), [tie], {})
    assert found.value == pytest.approx(math.log(2))
    assert all(slope == 0 for row in found.slopes for slope in row)


def test_pro_of_three_is_not_a_sum_of_pairs(win: Any, lose: Any, valued: Callable[..., Any]) -> None:
    """Rewards 2, 1, 0 for W, L, W' (p = -1/2, -1, -1/2). k = 1: T_1 = 2, log(e^-1 + e^-1 + e^-1) + 1 = log 3
    (p_1 T_1 = -1, p_2 T_12 = -1, p_3 T_13 = -1); k = 2: T = 1, log(e^-1 + e^-1/2) + 1."""
    row = [("y", replace(win, value=0.0)), ("y", replace(lose, value=1.0)), ("y", replace(win, value=2.0))]
    found = valued(objective("pro", {"sft": 0.1}), [row], {})
    wanted = math.log(3) + math.log(math.exp(-1) + math.exp(-0.5)) + 1 + 0.1 * 4 * 1.0
    assert found.value == pytest.approx(wanted, abs=1e-6)


def test_ranklist(win: Any, lose: Any, valued: Callable[..., Any]) -> None:
    """Ranked W, L, W' with beta 1, s = 1/2, -1/2, 1/2: log(1 + e^-1 + 1) + log(1 + e^1), and the pair two
    places apart: ln 2 at half weight. With two answers it is RankNet, DPO."""
    row = [("y", replace(win, value=0.0)), ("y", replace(lose, value=1.0)), ("y", replace(win, value=2.0))]
    found = valued(objective("ranklist", {"beta": 1.0}), [row], {})
    assert found.value == pytest.approx(
        math.log(2 + math.exp(-1)) + softplus(1.0) + 0.5 * math.log(2), abs=1e-6
    )
    two = [("y", replace(win, value=1.0)), ("y", replace(lose, value=0.0))]
    assert valued(objective("ranklist", {"beta": LN3}), [two], {}).value == pytest.approx(HIT)
    near = objective("ranklist", {"beta": 1.0, "min_gap": 3.0})
    assert found.value - valued(near, [row], {}).value == pytest.approx(0.5 * math.log(2), abs=1e-6)


def test_tpo_tree_weighs_pairs_by_lambda(win: Any, lose: Any, valued: Callable[..., Any]) -> None:
    """Scores 2 and 1: |2^2 - 2^1| |1 / log 2 - 1 / log 3|, times DPO."""
    role = "y@x"
    row = [(role, replace(win, value=2.0)), (role, replace(lose, value=1.0))]
    found = valued(objective("tpo_tree", {"beta": LN3}), [row], TEXT)
    factor = 2 * (1 / math.log(2) - 1 / LN3)
    assert found.value == pytest.approx(factor * HIT, rel=1e-6)


# -- unpaired ------------------------------------------------------------------------------------------------


def test_kto_compares_with_foreign_answers(
    win: Any, lose: Any, cell: Callable[..., Any], valued: Callable[..., Any]
) -> None:
    """beta 2 ln 3. z = max(0, mean rho of foreign answers): -1 gives z = 0 and (1/4 + 1/4) / 2; 1/2 gives
    1/2: good 1 - sigmoid(0) = 1/2, bad 1 - sigmoid(ln 9) = 1/10, weighed 1 and 3. z carries no gradient."""
    term = objective("kto", {"beta": 2 * LN3})
    low, high = (cell(policy=(rho,), reference=(0.0,)) for rho in (-1.0, 0.5))
    rows = [[("good", win), ("kl", low)], [("bad", lose)]]
    assert valued(term, rows, {}).value == pytest.approx(0.25, abs=1e-9)
    term = objective("kto", {"beta": 2 * LN3, "undesirable": 3.0})
    found = valued(term, [[("good", win), ("kl", high)], [("bad", lose)]], {})
    assert found.value == pytest.approx((0.5 + 0.3) / 2, abs=1e-9)
    assert found.slopes[1] == [0.0]


def test_bco_shifts_by_the_running_mean(win: Any, lose: Any, valued: Callable[..., Any]) -> None:
    """beta 2 ln 3, rewards ln 3 and -ln 3. The batch's mean is 0: ln(4/3). After six earlier answers with the
    mean 4/3 ln 3 it is ln 3 over all eight: -log sigmoid(0) and -log sigmoid(2 ln 3), (ln 2 + ln(10/9)) /
    2."""
    rows = [[("good", win)], [("bad", lose)]]
    term = objective("bco", {"beta": 2 * LN3})
    assert term.coupled
    assert valued(term, rows, {}).value == pytest.approx(HIT, abs=1e-9)
    later = valued(term, rows, {}, carry={"bco": 4 / 3 * LN3, "bco.count": 6.0})
    assert later.value == pytest.approx((math.log(2) + math.log(10 / 9)) / 2, abs=1e-9)
    assert not objective("bco", {"current": False}).coupled


# -- fresh samples -------------------------------------------------------------------------------------------


def test_xpo_lowers_what_the_reference_says(win: Any, lose: Any, valued: Callable[..., Any]) -> None:
    """DPO + alpha log pi(r), r the reference's answer, here the loser: ln(4/3) - 4 alpha; not times beta."""
    row = [("w@x", win), ("l@x", lose), ("r", lose)]
    found = valued(objective("xpo", {"beta": LN3, "alpha": 0.01}), [row], TEXT)
    assert found.value == pytest.approx(HIT - 0.04, abs=1e-9)
    assert found.slopes[2] == [pytest.approx(0.01)] * 4


def test_vpo(win: Any, lose: Any, valued: Callable[..., Any]) -> None:
    """DPO +- alpha beta rho: optimism about the reference's answer (rho = -1/2), pessimism about the chosen
    (1/2)."""
    row = [("w@x", win), ("l@x", lose), ("calibration", lose)]
    found = valued(objective("vpo_incentivized", {"beta": LN3, "alpha": 0.1}), [row], TEXT)
    assert found.value == pytest.approx(HIT - 0.05 * LN3, abs=1e-9)
    row = [("w@x", win), ("l@x", lose), ("calibration", win)]
    params = {"beta": LN3, "alpha": 0.1, "attitude": "pessimism"}
    found = valued(objective("vpo_incentivized", params), [row], TEXT)
    assert found.value == pytest.approx(HIT - 0.05 * LN3, abs=1e-9)
    assert found.slopes[2] == [pytest.approx(-0.1 * LN3)] * 2


def test_nash_md(win: Any, lose: Any, valued: Callable[..., Any]) -> None:
    """P = sigmoid(ln 3) = 3/4; beta sum sg(rho_t) log pi_t = 2 * (1/4 * -1/2) * 2, -(P - 1/2) * -1. The
    opponent gets no gradient; the KL does not pull through rho."""
    row = [("y@x", replace(win, value=LN3)), ("o@x", replace(lose, value=0.0))]
    found = valued(objective("nash_md", {"beta": 2.0}), [row], {"duel": (0, 1)})
    assert found.value == pytest.approx(-0.5 + 0.25, abs=1e-6)
    assert found.slopes[0] == [pytest.approx(2 * 0.25 - 0.25, abs=1e-6)] * 2
    assert found.slopes[1] == [0.0] * 4


def test_hypo_coverage_adds_the_gradient_of_the_kl(win: Any, lose: Any, valued: Callable[..., Any]) -> None:
    """rho = 1/2 and -1/2, each less the other: slopes kl * (+-1) / 2 at their tokens; without fresh samples
    DPO."""
    term = objective("hypo_coverage", {"beta": LN3, "kl": 0.2})
    row = [("w@x", win), ("l@x", lose), ("kl", win), ("kl", lose)]
    found = valued(term, [row], TEXT)
    assert found.slopes[2] == [pytest.approx(0.1)] * 2 and found.slopes[3] == [pytest.approx(-0.1)] * 4
    assert valued(term, [row[:2]], TEXT).value == pytest.approx(HIT)


# -- prompts, spans, pictures -------------------------------------------------------------------------------


def test_mapl(win: Any, lose: Any, cell: Callable[..., Any], valued: Callable[..., Any]) -> None:
    """DPO (h = ln 3), the prompt pair of one answer (rho 1/2 against -1/2: ln 3 again), and the widened gap:
    D_xt = 2, D_x = 1, kappa ln 3. With x_w = x_l the prompt pair is ln 2 without a gradient."""
    wide = cell(policy=(0.0,), reference=(-2.0,)), cell(policy=(0.0,), reference=(0.0,))
    row = [("w@x", win), ("l@x", lose), ("w@xw", win), ("w@xl", lose), ("w@xt", wide[0]), ("l@xt", wide[1])]
    edges = {**TEXT, "prompt": (2, 3), "wide": (4, 5)}
    found = valued(objective("mapl", {"beta": LN3, "kappa": LN3}), [row], edges)
    assert found.value == pytest.approx(3 * HIT, abs=1e-9)
    assert valued(objective("mapl", {"beta": LN3, "inter": False}), [row], edges).value == pytest.approx(
        2 * HIT
    )


def test_fine_grained_edits_credit_edited_tokens_alone(
    win: Any, lose: Any, valued: Callable[..., Any]
) -> None:
    """Of the correction the 2nd token is new (rho_t = 1/4), of the answer the last two were replaced (1/4
    each)."""
    row = [("g@x", win), ("y@x", lose)]
    spans = {"edited": ((0.0, 1.0), (0.0, 0.0, 1.0, 1.0))}
    found = valued(objective("fine_grained_edits", {"beta": 1.0}), [row], TEXT, spans=spans)
    assert found.value == pytest.approx(softplus(0.25), abs=1e-9)
    assert found.slopes[0][0] == 0 and found.slopes[1][:2] == [0.0, 0.0]
    assert found.slopes[0][1] < 0 < found.slopes[1][2]


def test_language_feedback_is_dpo_on_the_refinement(win: Any, lose: Any, valued: Callable[..., Any]) -> None:
    row = [("r@x", win), ("y@x", lose)]
    assert valued(objective("language_feedback", {"beta": LN3}), [row], TEXT).value == pytest.approx(HIT)


def test_fspo_ends_with_ipo_on_sums(win: Any, lose: Any, valued: Callable[..., Any]) -> None:
    """(1 - 1/(2 * 2))^2."""
    row = [("w@xu", win), ("l@xu", lose)]
    assert valued(objective("fspo", {"beta": 2.0}, 1), [row], TEXT).value == pytest.approx(9 / 16)


def test_mcr_rewards_what_the_picture_tells(win: Any, lose: Any, valued: Callable[..., Any]) -> None:
    """DPO + weight * (log pi(w | other picture) - log pi(w | own)) per token = ln(4/3) + 0.1 (-1 + 1/2)."""
    row = [("w@x", win), ("l@x", lose), ("w@m", lose)]
    term = objective("mcr", {"beta": LN3, "weight": 0.1})
    assert valued(term, [row], {**TEXT, "media": (0, 2)}).value == pytest.approx(HIT - 0.05, abs=1e-9)


def test_spo_degrees_asks_a_head(win: Any, lose: Any, valued: Callable[..., Any]) -> None:
    """A head that knows nothing gives ln 3 for 3 classes: DPO + gamma ln 3."""
    term = objective("spo_degrees", {"beta": LN3, "gamma": 0.5})
    (head,) = term.heads
    assert head.outputs == 3

    class Even(torch.nn.Module):
        def forward(self, hidden: torch.Tensor) -> torch.Tensor:
            return torch.zeros((*hidden.shape[:-1], 3), dtype=torch.float64)

    roles = [("w@x", win, 2), ("l@x", lose, 4), *((f"degree/{k}", win, 2) for k in range(3))]
    row = [(role, replace(c, features={"hidden": [[1.0, 2.0]] * n})) for role, c, n in roles]
    found = valued(term, [row], TEXT, heads={head.name: Even()})
    assert found.value == pytest.approx(HIT + 0.5 * LN3, abs=1e-6)
