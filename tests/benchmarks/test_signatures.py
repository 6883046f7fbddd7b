"""The verdicts of `make signatures`, from numbers made up for them; the arms are built, not trained."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from benchmarks.signatures import page
from benchmarks.signatures.arms import ARMS, Flip
from benchmarks.signatures.page import Finding, found, verdict_of, write
from benchmarks.signatures.rows import ROWS, Ordering, over
from pipelines import recipes

SEEDS = range(5)


def runs(**values: list[float]) -> dict[tuple[str, int], dict[str, float]]:
    """Measured chair_i of arms, one number a seed; POPE is 1 - chair_i."""
    return {
        (arm, seed): {"chair_i": value, "pope": 1 - value, "recall": 1.0, "media_margin": 0.0}
        for arm, numbers in values.items()
        for seed, value in enumerate(numbers)
    }


def test_the_interval_is_students_of_the_paired_differences() -> None:
    """Lower chair_i is better, so the advantages are .1, .2, .3, .2, .2: mean .2, deviation sqrt(.02 / 4),
    and t(.975, 4) = 2.7764 over sqrt(5) gives a half width of 2.7764 * .070711 / 2.236068 = .087800."""
    finding = found(Ordering(better="a", worse="b"), runs(a=[0.1] * 5, b=[0.2, 0.3, 0.4, 0.3, 0.3]), SEEDS)

    assert finding.advantage == pytest.approx(0.2)
    assert (finding.low, finding.high) == (pytest.approx(0.1122, abs=1e-4), pytest.approx(0.2878, abs=1e-4))
    assert finding.verdict == "reproduced"


def test_higher_is_better_for_pope() -> None:
    numbers = runs(a=[0.1, 0.1, 0.11], b=[0.3, 0.31, 0.3])

    assert found(Ordering(better="a", worse="b", measure="pope"), numbers, range(3)).verdict == "reproduced"
    assert (
        found(Ordering(better="b", worse="a", measure="pope"), numbers, range(3)).verdict == "not reproduced"
    )


@pytest.mark.parametrize(
    ("low", "high", "within", "verdict"),
    [
        (0.01, 0.2, None, "reproduced"),
        (-0.01, 0.2, None, "undecided"),
        (-0.2, -0.01, None, "not reproduced"),
        (-0.02, 0.01, 0.03, "reproduced"),
        (-0.05, 0.01, 0.03, "undecided"),
        (-0.2, -0.04, 0.03, "not reproduced"),
    ],
)
def test_verdict_of_an_interval(low: float, high: float, within: float | None, verdict: str) -> None:
    ordering = Ordering(better="a", worse="b", within=within)

    assert Finding(ordering, (low + high) / 2, low, high, 5).verdict == verdict


def test_a_row_holds_only_if_all_its_orderings_do() -> None:
    better, worse, open_ = (
        Finding(Ordering(better="a", worse="b"), 0.0, low, high, 5)
        for low, high in ((0.1, 0.2), (-0.2, -0.1), (-0.1, 0.1))
    )

    assert verdict_of([better, better]) == "reproduced"
    assert verdict_of([better, open_]) == "undecided"
    assert verdict_of([better, open_, worse]) == "not reproduced"


def test_missing_runs_leave_a_row_undecided() -> None:
    finding = found(Ordering(better="a", worse="b"), runs(a=[0.1]), SEEDS)

    assert finding.verdict == "undecided" and math.isnan(finding.advantage)


def test_arms_are_recipes_that_can_be_built() -> None:
    named = {arm for row in ROWS for arm in row.arms}

    assert named == set(ARMS)
    for arm in named:
        assert ARMS[arm].build().stages
        assert set(ARMS[arm].shows) <= set(recipes.names())


def test_a_labeller_errs_on_about_its_share() -> None:
    import asyncio

    from pipelines.rollout import Draft
    from pipelines.types import Message, Part, Prompt

    def swapped(name: str) -> bool:
        message = Message(role="user", parts=(Part(kind="text", text="?"),))
        draft = Draft(prompts={"x": Prompt(id=name, messages=(message,))}, media={}, chosen={"w": 0, "l": 1})
        done = asyncio.run(Flip(0.3)(draft, None, 0))  # type: ignore[arg-type]
        return done.chosen == {"w": 1, "l": 0}

    flips = [swapped(f"row-{number}") for number in range(1000)]

    assert 240 < sum(flips) < 360  # 300, within 4 standard deviations
    assert flips == [swapped(f"row-{number}") for number in range(1000)]


def test_the_page_and_its_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "signatures_introduction.md").write_text("# Signatures\n")
    monkeypatch.setattr(page, "DOCS", tmp_path)
    row = next(row for row in ROWS if row.key == "on_policy_alignment")
    better, worse = row.orderings[0].better, row.orderings[0].worse

    write(
        [row],
        runs(**{better: [0.1, 0.11, 0.1], worse: [0.3, 0.3, 0.31]}),
        "make signatures",
        "a machine",
    )

    text = (tmp_path / "signatures.md").read_text()
    assert f"## `{row.key}`" in text and "**reproduced**" in text and "a machine" in text
    [record] = json.loads((tmp_path / "signatures.json").read_text())["rows"]
    assert record["verdict"] == "reproduced" and record["recipes"] == ["opa_dpo"]


def test_over_names_each_pair_once() -> None:
    assert [(o.better, o.worse) for o in over("a", "b", "c")] == [("a", "b"), ("a", "c")]
