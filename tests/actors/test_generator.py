"""A real engine on the embedded base model, beside a Hugging Face forward of the same weights.

An engine leaves traces in the process it ran in (process groups, thread settings), so the scenarios run in
one of their own, each gives JSON facts, and the tests here judge them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
Facts = dict[str, Any]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Facts:
    from pipelines.worlds.glyphs import BASE_MODEL

    model = os.environ.get("PLUMBLINE_TEST_MODEL", str(BASE_MODEL))
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("generator_scenarios.py")), model],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        cwd=tmp_path_factory.mktemp("generator"),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture
def facts(run: Facts, request: pytest.FixtureRequest) -> Facts:
    """The facts of the scenario that the test is named after."""
    found = run[request.node.name.removeprefix("test_")]
    assert "failed" not in found, found["failed"]
    return found


def test_before_any_version(facts: Facts):
    assert facts == {"version": -1, "texts": 3}


def test_first_version(facts: Facts):
    parts = ("bytes_received", "elements_loaded", "canary_change", "caches_fresh")
    assert [facts[part] for part in parts] == ["proved"] * 4
    elements = facts["detail"]["elements"]
    assert elements["elements"] == elements["written"] > 1_000_000
    assert "unread" not in elements


def test_parity(facts: Facts):
    assert max(facts["gaps"]) < 1e-4 and facts["teacher_forced_gap"] < 1e-4
    assert facts["versions"] == [[0, 0]] * 8
    assert min(facts["lengths"]) >= 1 and max(facts["lengths"]) <= 12
    assert all(facts["texts"]) and all(facts["finished"])


def test_greedy(facts: Facts):
    assert facts["engine"] == facts["forward"]


def test_continued(facts: Facts):
    assert max(facts["gaps"]) < 1e-4 and all(facts["begins"])
    assert min(facts["lengths"]) > 4 and max(facts["lengths"]) <= 12
    assert set(facts["origins"]) == {"stitched"}


def test_probed(facts: Facts):
    assert max(facts["gaps"]) < 1e-4 and all(facts["top"]) and facts["versions"] == [0, 0]


def test_temperatures(facts: Facts):
    assert facts["same"] and "cannot decode as Mixture" in facts["refused"]


def test_parity_with_the_other_generator(facts: Facts):
    assert facts["holds"] and facts["same"]
    assert facts["gap"] < 1e-3 and facts["of"] == 24


def test_seeds(facts: Facts):
    assert facts["same"] and facts["other"] and facts["distinct"] > 1


def test_health_while_decoding(facts: Facts):
    assert facts["in_flight"] == 1 and facts["alive"] and facts["asked"] > 2


def test_adopt_while_sampling(facts: Facts):
    assert facts["holds"] and set(facts["versions"]) == {0, 1} and len(facts["versions"]) == 24
    assert facts["gap"] < 1e-4 < 1e-2 < facts["other_gap"]


def test_forbidden_tokens(facts: Facts):
    assert facts["favoured"] and facts["holds"]
    assert facts["sampled"] == [] and facts["some"] > 1 and facts["greedy"] == 1


def test_a_forbidden_token_is_refused_afterwards(facts: Facts):
    assert facts["error"].startswith("ForbiddenToken: prompt 'p6'")


def test_bad_prompts(facts: Facts):
    assert "special token" in facts["typed"] and facts["typed"].startswith("ValueError")
    assert facts["long"].startswith("TooLong")
    assert "missing from the media table" in facts["missing"]
    assert "no answer tokens" in facts["empty"]


def test_an_expansion_that_differs_from_the_learners(facts: Facts):
    assert facts["error"].startswith("PromptMismatch: prompt 'p8'")


def test_engine_failure(facts: Facts):
    assert facts["error"].startswith("EngineError") and "Encoder cache miss" in facts["error"]
    assert (facts["again"], facts["faults"], facts["in_flight"]) == (2, 1, 0)


def test_cancelled_callers(facts: Facts):
    assert facts == {"in_flight": 0, "left": 0}


def test_quarantine(facts: Facts):
    assert facts["bytes"] == "failed" and not facts["holds"] and facts["version_kept"]
    assert list(facts["problems"]) == [facts["tensor"]]
    assert facts["sample"].startswith("Quarantined") and facts["greedy"].startswith("Quarantined")
    assert facts["health"] and facts["waiting"] in ("no error", facts["sample"])
    assert facts["healed"] and facts["then"] == 3


def test_kept(facts: Facts):
    """Every token's log-probability is that of the version it is said to be of, and of no other."""
    assert facts["holds"] and all(facts["told"]) and all(facts["digests"])
    assert facts["mixed"] > 3 and max(facts["gaps"]) < 1e-3 < min(facts["swapped"])
    assert facts["left"] == 0 and facts["in_flight"] == 0


def test_aborted(facts: Facts):
    assert facts["holds"] and facts["reasons"] == ["aborted_for_sync"] and facts["retry"]
    assert facts["again"] == [11] * 3 and facts["counted"] == 8 and facts["left"] == 0


def test_cut(facts: Facts):
    assert facts["buckets"] > 3 and facts["reasons"] == ["transfer_cut"] * facts["buckets"]
    assert all(facts["same"]) and all(facts["served"]) and facts["cut_transfers"] == facts["buckets"]
    assert "weight version 12: bucket" in facts["named"] and "the publisher is gone" in facts["named"]
    assert facts["wrong"] == ["failed", True, True] and facts["healed"]


def test_by_disk(facts: Facts):
    assert facts == {"reason": "transfer_cut", "before": 12, "holds": True, "canary": "proved"}


def test_a_stopped_generator_says_so(run: Facts):
    assert "EngineError" in run["stopped"]
