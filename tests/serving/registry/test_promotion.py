"""The promotion gate: hand-derived numbers, what is refused, and what can not be measured."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from pipelines.settings import SettingsError
from serving.registry.promotion import (
    Against,
    Alone,
    Check,
    Decision,
    Gate,
    compare,
    difference,
    is_refusal,
    load_gate,
    wilson,
)

SMALL = Alone(items=50)
ONLY_WINS = Against(hallucination=None, length=None, refusals=None, text=None)


def caption(
    number: int, value: float | None = 1.0, text: str = "a red six .", **parts: Any
) -> dict[str, Any]:
    counts = {"right": 1, "wrong": 0} | parts
    return {"id": f"c{number}", "kind": "caption", "text": text, "value": value, **counts}


def text(number: int, nats: float) -> dict[str, Any]:
    return {"id": f"c{number}", "kind": "text", "nats": nats}


def side(n: int = 200, nats: float = 10.0, **answer: Any) -> list[dict[str, Any]]:
    return [caption(i, **answer) for i in range(n)] + [text(i, nats + i % 3) for i in range(n)]


def named(decision: Decision) -> dict[str, Check]:
    return {check.name: check for check in decision.checks}


def test_a_better_candidate_is_promoted() -> None:
    decision = compare(side(value=2.0), side(value=1.0, wrong=1), Gate())

    assert decision.holds and decision.kind == "compared"
    assert decision.why == "every condition of the gate holds"
    checks = named(decision)
    assert checks["win rate"].value == 1.0
    assert checks["rise of hallucination"].value == -0.5  # 0 of 1 mentions, after 1 of 2
    assert checks["length ratio"].value == checks["text loss ratio"].value == 1.0
    json.dumps(decision.to_json(), allow_nan=False)


def test_the_win_rate_by_hand() -> None:
    """100 items: 60 wins, 10 ties, 30 losses: 0.65. Wilson at z = 1.959964, n = 100:
    centre 0.65 + 3.841459 / 200 = 0.669207; spread 1.959964 * sqrt(0.65 * 0.35 / 100 + 3.841459 / 40000)
    = 1.959964 * sqrt(0.002275 + 0.0000960365) = 1.959964 * 0.0486933 = 0.0954371; over 1.03841459:
    0.552544 and 0.736358."""
    values = [1] * 60 + [0] * 10 + [-1] * 30
    new = [caption(i, value=value) for i, value in enumerate(values)]
    old = [caption(i, value=0) for i in range(100)]

    [_, _, _, check] = compare(new, old, Gate(alone=SMALL, against=ONLY_WINS)).checks

    assert check.value == pytest.approx(0.65)
    assert (check.low, check.high) == pytest.approx((0.552544, 0.736358), abs=2e-6)
    assert check.holds and check.items == 100


@given(st.integers(0, 60), st.integers(1, 60))
def test_wilson_agrees_with_scipy(bad: int, n: int) -> None:
    bad = min(bad, n)
    expected = stats.binomtest(bad, n).proportion_ci(method="wilson")
    assert wilson(bad / n, n) == pytest.approx((expected.low, expected.high), abs=1e-6)


def test_newcombes_interval_keeps_a_width_where_nobody_refuses() -> None:
    """0 of 100 on both sides: Wilson's upper end is z^2 / (n + z^2) = 3.841459 / 103.841459 = 0.036994, and
    the ends of the difference are plus and minus that."""
    assert difference(0.0, 0.0, 100) == pytest.approx((-0.036994, 0.036994), abs=1e-6)


def test_a_difference_that_could_be_chance_is_refused() -> None:
    """52 wins of 100: the lower end is below one half."""
    new = [caption(i, value=1 if i < 52 else -1) for i in range(100)]

    decision = compare(new, [caption(i, value=0) for i in range(100)], Gate(alone=SMALL, against=ONLY_WINS))

    assert not decision.holds
    assert "win rate: 0.52 [0.42" in decision.why
    assert "asked >= 0.5: does not hold" in decision.why


@pytest.mark.parametrize(
    ("worse", "check"),
    [
        ({"wrong": 1}, "rise of hallucination"),
        ({"text": "a red six and a blue two and a grey one ."}, "length ratio"),
        ({"text": "six"}, "length ratio"),
        ({"text": "I'm sorry, I cannot."}, "rise of refusals"),
        ({"text": ""}, "rise of refusals"),
        ({"nats": 14.0}, "text loss ratio"),
    ],
)
def test_what_gets_worse_is_refused_however_much_is_won(worse: dict[str, Any], check: str) -> None:
    gate = Gate(alone=Alone(refusals=None))

    decision = compare(side(**{"value": 5.0, **worse}), side(value=1.0), gate)

    failed = [found.name for found in decision.checks if not found.holds]
    assert not decision.holds and check in failed and "win rate" not in failed


def test_a_missing_score_is_no_loss_and_no_win() -> None:
    new, old = side(value=2.0), side(value=1.0)
    for record in new[:20]:
        record["value"] = None

    decision = compare(new, old, Gate())

    checks = named(decision)
    assert checks["win rate"].value == 1.0 and checks["win rate"].items == 180
    assert checks["missing"].value == 0.1 and not checks["missing"].holds
    assert "missing: 0.1 [0.1, 0.1], asked <= 0.01" in decision.why


def test_what_cannot_be_measured_does_not_hold_unless_it_is_not_asked_for() -> None:
    def own(value: float) -> list[dict[str, Any]]:
        return [{"id": str(i), "kind": "own", "text": "fine", "value": value} for i in range(250)]

    refused = compare(own(1.0), own(0.0), Gate())
    assert [check.name for check in refused.checks if not check.holds] == [
        "rise of hallucination",
        "text loss ratio",
    ]
    assert "could not be measured on these data; null in the gate goes without" in refused.why
    assert compare(own(1.0), own(0.0), Gate(against=Against(hallucination=None, text=None))).holds


def test_the_first_version_has_absolute_conditions_only() -> None:
    decision = compare(side(wrong=3), None, Gate())
    assert decision.holds and decision.kind == "first" and decision.why == "the first version"
    assert [check.name for check in decision.checks] == ["items", "missing", "refusals"]

    strict = compare(side(wrong=3), None, Gate(alone=Alone(hallucination=0.5)))
    assert not strict.holds
    assert named(strict)["hallucination"].value == 0.75


def test_too_few_items_prove_nothing() -> None:
    decision = compare(side(50, value=2.0), side(50, value=1.0), Gate())
    assert not named(decision)["items"].holds


def test_items_of_a_cluster_count_as_one() -> None:
    """Two questions about each of 100 scenes: 100 independent items, not 200."""

    def asked(value: float) -> list[dict[str, Any]]:
        return [
            {"id": f"{i}-{q}", "kind": "popular", "text": "yes", "value": value, "cluster": str(i)}
            for i in range(100)
            for q in range(2)
        ]

    decision = compare(asked(1.0), asked(0.0), Gate(alone=SMALL, against=ONLY_WINS))

    assert (decision.items, decision.clusters) == (200, 100)
    assert named(decision)["win rate"].items == 100


def test_sides_with_other_items_are_no_comparison() -> None:
    with pytest.raises(ValueError, match="the same items on both sides"):
        compare(side(10), side(11), Gate())
    with pytest.raises(ValueError, match="occurs twice"):
        compare([caption(1), caption(1)], None, Gate())


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(1, 9)), min_size=2, max_size=30))
def test_swapping_the_sides_mirrors_every_ratio(items: list[tuple[int, int, int]]) -> None:
    new = [caption(i, value=a, wrong=a, text="w " * n) for i, (a, _, n) in enumerate(items)]
    old = [caption(i, value=b, wrong=b, text="w") for i, (_, b, _) in enumerate(items)]

    there, back = named(compare(new, old, Gate())), named(compare(old, new, Gate()))

    def value(checks: dict[str, Check], name: str) -> float:
        found = checks[name].value
        assert found is not None
        return found

    assert value(there, "win rate") + value(back, "win rate") == pytest.approx(1)
    assert value(there, "length ratio") * value(back, "length ratio") == pytest.approx(1)
    rise = "rise of hallucination"
    assert value(there, rise) == pytest.approx(-value(back, rise))
    assert math.isclose(there[rise].low or 0.0, -(back[rise].high or 0.0), abs_tol=1e-9)


def test_equal_models_are_rarely_taken_for_better() -> None:
    """400 pairs of equal models of 200 items: at most 2.5% may pass; 3.5 standard deviations of 400 draws
    above that are 21."""
    rng = np.random.default_rng(0)
    gate = Gate(alone=SMALL, against=ONLY_WINS)
    promoted = 0
    for _ in range(400):
        new, old = rng.integers(0, 2, (2, 200)).tolist()
        records = [[caption(i, value=v) for i, v in enumerate(values)] for values in (new, old)]
        promoted += compare(records[0], records[1], gate).holds
    assert promoted <= 21


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "  \n",
        "I'm sorry, but I can't",
        "Sorry.",
        "I cannot help with that",
        "As an AI model",
        "I can\u2019t",
    ],
)
def test_refusals(answer: str) -> None:
    assert is_refusal(answer)


@pytest.mark.parametrize("answer", ["a red six .", "yes", "I can see a sorry sight", "the sign says sorry"])
def test_answers_are_no_refusals(answer: str) -> None:
    assert not is_refusal(answer)


def test_a_gate_is_a_yaml_file(tmp_path: Path) -> None:
    file = tmp_path / "gate.yaml"
    file.write_text("alone:\n  items: 50\nagainst:\n  text: null\n  length: 1.5\n")

    gate = load_gate(file)

    assert (gate.alone.items, gate.against.text, gate.against.length) == (50, None, 1.5)
    assert gate.against.win_rate == load_gate(None).against.win_rate == 0.5


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("against:\n  winrate: 0.6\n", "gate.yaml:2"),
        ("against:\n  win_rate: 1.5\n", "against.win_rate"),
        ("against: [1]\n", "against"),
        ("- 1\n", "expected sections"),
        ("a: [\n", "not valid YAML"),
    ],
)
def test_a_bad_gate_is_explained(tmp_path: Path, content: str, said: str) -> None:
    (tmp_path / "gate.yaml").write_text(content)
    with pytest.raises(SettingsError, match=said):
        load_gate(tmp_path / "gate.yaml")


def test_a_missing_gate_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"nowhere\.yaml: the gate cannot be read: No such file"):
        load_gate(tmp_path / "nowhere.yaml")
