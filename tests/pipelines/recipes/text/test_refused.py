"""Recipes whose slots contradict each other are refused with the reason and the fix; names are
unambiguous."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from pipelines.comparisons import Cells, Edges
from pipelines.objectives.kl import ScoreKl
from pipelines.objectives.pair import Pair
from pipelines.objectives.scoring import OnlySpans
from pipelines.programs.choosing import best_and_worst
from pipelines.recipe import Stage
from pipelines.recipes import SHARED_NAMES, document, load, names
from pipelines.recipes._text import TEXT
from pipelines.references import NoReference


def stages_of(name: str) -> list[Stage]:
    return list(load(name, {}).stages)


@pytest.mark.parametrize("name", sorted(set(names())))
def test_a_loss_that_reads_a_reference_needs_one(name: str) -> None:
    """Every stage of every recipe is refused without a reference exactly when one of its terms reads it."""
    for stage in stages_of(name):
        if "reference" in stage.objective.views:
            with pytest.raises(
                ValueError, match=r"reads a reference, but the stage has none; use a reference"
            ):
                replace(stage, reference=NoReference())
        else:
            replace(stage, reference=NoReference())


@pytest.mark.parametrize("name", ["hypo_coverage", "nash_md"])
@pytest.mark.parametrize("stale", [{"uses": 2}, {"replay": 0.5}])
def test_on_policy_terms_are_not_fed_stale_samples(name: str, stale: dict[str, Any]) -> None:
    (stage,) = stages_of(name)
    with pytest.raises(ValueError, match=r"samples at most 0 versions old, but .* set uses=1 and replay=0"):
        replace(stage, **stale)
    assert replace(stages_of("dpo")[0], **stale)


def test_on_policy_kl_beside_offline_pairs_is_still_fresh() -> None:
    with pytest.raises(ValueError, match="at most 0 versions old"):
        Stage(
            rollout=best_and_worst(4),
            compare=TEXT | Cells({"k": "y@x"}),
            objective=Pair("text") + 0.1 * ScoreKl("k"),
            uses=2,
        )


def test_a_media_edge_needs_a_damage() -> None:
    with pytest.raises(ValueError, match=r"takes \['m'\] but the program makes only .*needs a damage"):
        Stage(
            rollout=best_and_worst(4),
            compare=Edges({"text": ("w@x", "l@x"), "media": ("w@x", "w@m")}),
            objective=Pair("text") + Pair("media"),
        )


@pytest.mark.parametrize(
    ("objective", "message"),
    [
        (Pair("text") + Pair("media"), r"reads the edges \['media'\] but `compare` emits only \['text'\]"),
        (1.0 * ScoreKl("fresh"), r"reads the roles \['fresh'\] .* add Cells"),
        (1.0 * Pair("text", scoring=OnlySpans("seg")), r"reads the token spans \['seg'\] .* add the step"),
    ],
)
def test_what_no_comparison_holds_is_not_read(objective: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Stage(rollout=best_and_worst(4), compare=TEXT, objective=objective)


@pytest.mark.parametrize(
    ("name", "params", "message"),
    [
        ("dpo", {"bta": 0.1}, r"recipe 'dpo' has no parameter 'bta'; did you mean 'beta'\?"),
        ("dpo", {"pairs": "offline"}, r"pairs: Input should be 'online', 'recorded' or 'mixed', got 'off"),
        ("dpo", {"beta": 0.0}, "beta must be positive, got 0"),
        ("dpo", {"samples": 1}, "expected at least 2, since the best is compared with the worst"),
        ("dpo", {"min_gap": -1.0}, r"min_gap=\.\.\.\): expected at least 0, got -1"),
        ("robust_dpo", {"flip": 0.5}, "expected 0 <= flip < 0.5, got 0.5"),
        ("exo", {"epsilon": 0.0}, "expected 0 < epsilon < 1, got 0"),
        ("slic", {"delta": 0.0}, "slic: delta must be positive, got 0"),
        ("flex_dpo", {"beta_rejected": -0.1}, "beta_loser >= 0"),
        ("f_dpo", {"divergence": "chi"}, "divergence: Input should be"),
        ("modpo", {"weight": 0.5}, None),
        ("modpo", {"weight": 0.5, "others": {"a": 0.2}}, r"must sum to 1, got 0.5 and {'a': 0.2}"),
        ("modpo", {"weight": 0.0, "others": {"a": 1.0}}, "must sum to 1"),
        ("nash_md", {"reference_share": 1.5}, r"reference_share is in \[0, 1\], got 1.5"),
        ("tr_dpo", {"alpha": 0.0}, r"0 < alpha <= 1 and every >= 1, got 0"),
        ("tr_dpo", {"every": 0}, r"every >= 1, got 0.6 and 0"),
        ("apo_accelerated", {"rounds": 0}, "has no stage"),
        ("curri_dpo", {"order": "hard"}, "no parameter 'order'"),
        ("vpo_incentivized", {"attitude": "hope"}, "attitude: Input should be 'optimism' or 'pessimism'"),
    ],
)
def test_wrong_parameters(name: str, params: dict[str, Any], message: str | None) -> None:
    if message is None:
        load(name, params)
        return
    with pytest.raises(ValueError, match=message):
        load(name, params)


# -- names that papers share ---------------------------------------------------------------------------------

COLLISIONS: dict[str, dict[str, str]] = {
    "HyPO": {"hypo_coverage": "2406.01462", "hypo_gating": "2602.11902"},
    "APO": {"apo_accelerated": "2410.06293", "apo_zero": "2408.06266", "apo_down": "2408.06266"},
    "TPO": {"tpo_tree": "2410.12854", "tpo_triple": "2405.16681", "task_po": "2412.19326"},
    "SPO, SPPO": {"spo_degrees": "2409.17791", "sppo": "2405.00675"},
    "RPO": {"rpo_sft": "2405.16436", "rrpo": "2504.12083"},
    "rDPO, RDPO": {"robust_dpo": "2403.00409", "realign_rdpo": "2502.13146", "rationale_dpo": "2407.14477"},
    "VPO": {"vpo_incentivized": "2405.19320"},
    "MPO": {"internvl_mpo": "2411.10442"},
}
TEXT_METHODS = [
    "alpha_po",
    "aot",
    "aot_unpaired",
    "apo_accelerated",
    "apo_down",
    "apo_zero",
    "bco",
    "bco_pair",
    "best_of_n",
    "cdpo",
    "cpo",
    "curri_dpo",
    "discopop",
    "dpa",
    "dpo",
    "exo",
    "f_dpo",
    "fine_grained_edits",
    "flex_dpo",
    "fspo",
    "hinge_dpo",
    "hypo_coverage",
    "hypo_gating",
    "implicit_sft",
    "ipo",
    "ipo_sum",
    "kto",
    "language_feedback",
    "ld_dpo",
    "ln_dpo",
    "mapl",
    "mcr",
    "modpo",
    "mrpo",
    "nash_md",
    "nca",
    "online_dpo",
    "orpo",
    "pref_ft",
    "pro",
    "ranklist",
    "rationale_dpo",
    "rationale_orpo",
    "robust_dpo",
    "rpo_sft",
    "rwr",
    "simpo",
    "single_source",
    "slic",
    "sparse_po",
    "spo_degrees",
    "sppo",
    "sppo_hard",
    "tpo_tree",
    "tpo_triple",
    "tr_dpo",
    "vpo_incentivized",
    "wpo",
    "xpo",
]
AMBIGUOUS = ["hypo", "apo", "tpo", "spo", "rpo", "rdpo", "r_dpo", "vpo", "mpo", "ppo", "a2po", "tdpo"]


@pytest.mark.parametrize("acronym", COLLISIONS)
def test_methods_with_one_acronym_have_keys_of_their_own(acronym: str) -> None:
    """Each key leads to its own paper, and its text tells of the others of that name."""
    for name, paper in COLLISIONS[acronym].items():
        assert paper in load(name, {}).paper, name
    if len(COLLISIONS[acronym]) > 1:
        told = [name for name in COLLISIONS[acronym] if "not" in document(name).lower().split()]
        assert len(told) >= len(COLLISIONS[acronym]) - 1, told


@pytest.mark.parametrize("key", AMBIGUOUS)
def test_a_bare_acronym_is_no_key(key: str) -> None:
    with pytest.raises(ValueError, match=f"unknown recipe '{key}'"):
        load(key, {})


@pytest.mark.parametrize("written", ["rdpo", "R-DPO", "rDPO"])
def test_a_shared_acronym_tells_what_it_may_mean(written: str) -> None:
    with pytest.raises(ValueError, match=r"share this name: choose robust_dpo \(Robust DPO.*realign_rdpo \("):
        load(written, {})


def test_shared_acronyms_lead_to_recipes() -> None:
    for acronym, keys in SHARED_NAMES.items():
        assert acronym not in names() and set(keys) <= set(names())
    for acronym in ("hypo", "apo", "tpo", "rdpo"):
        assert len(SHARED_NAMES[acronym]) > 1


def test_what_was_not_seen_is_marked() -> None:
    """A recipe whose source does not name code as read is experimental."""
    for name in TEXT_METHODS:
        recipe = load(name, {})
        if "code read" not in recipe.source:
            assert recipe.experimental, (name, recipe.source)


def test_what_is_inferred_is_said_in_the_text() -> None:
    """An experimental recipe's text says where its formula comes from."""
    words = ("third-party", "abstract", "inferred", "from memory")
    for name in names():
        if load(name, {}).experimental:
            assert any(word in document(name) for word in words), name
