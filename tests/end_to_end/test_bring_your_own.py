"""The example that people copy, run as they would run it: own rows, own pictures, own reward."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from pipelines.data import images
from pipelines.worlds.glyphs import BASE_MODEL

EXAMPLE = Path(__file__).parents[2] / "examples" / "bring_your_own"
STEPS, GROUPS = 3, 4


@pytest.fixture(scope="module")
def run(align, tmp_path_factory):
    output = tmp_path_factory.mktemp("own")
    return align(output / "bring-your-own", EXAMPLE / "run.yaml", f"output={output}")


@pytest.fixture(scope="module")
def rows() -> dict[str, dict]:
    lines = (EXAMPLE / "data.jsonl").read_text().splitlines()
    return {row["id"]: row for row in map(json.loads, lines)}


def test_it_finishes_with_every_comparison_accounted_for(run):
    summary = run.summary
    assert summary["status"] == "finished"
    assert summary["steps"] == STEPS
    assert summary["comparisons"]["trained"] == STEPS * GROUPS
    assert summary["audit"]["violated"] == []
    assert summary["audit"]["counted"]["comparisons"] == len(run.trained) == STEPS * GROUPS


def test_every_version_is_proved(run):
    sync = run.summary["sync"]
    assert (sync["versions"], sync["verified"], sync["failed"]) == (STEPS + 1, STEPS + 1, 0)
    assert all(proof["holds"] for proof in run.lines("events.jsonl") if proof["event"] == "proof")


def test_the_scores_are_those_of_the_own_reward(run, rows):
    """The reward is called anew on what the log says was compared, with the columns of the row's file."""
    spec = importlib.util.spec_from_file_location("example_reward", EXAMPLE / "reward.py")
    reward = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(reward)
    for row in run.trained:
        own = rows[row["prompt_id"]]
        for side in ("chosen", "rejected"):
            assert row[f"score_{side}"] == reward.score([], row[side], own), row
        assert row["score_chosen"] > row["score_rejected"]


def test_the_pictures_are_those_beside_the_rows(run, rows):
    trained = run.trained
    for row in trained:
        [picture] = rows[row["prompt_id"]]["images"]
        assert row["media_digest"] == images.load(EXAMPLE / picture).digest
    assert len({row["media_digest"] for row in trained}) > GROUPS
    assert run.summary["sight"]["digest_mismatches"] == 0
    assert all(abs(record["visual_reliance"]) > 0 for record in run.lines("metrics.jsonl"))


def test_nothing_is_evaluated_on_a_world_that_is_not_the_users(run):
    assert run.summary["heldout"] == {}
    assert not (run.folder / "evaluation").exists()
    assert "scene-" in (run.folder / "report.html").read_text()


def test_the_checkpoint_loads_and_has_learned(run):
    from transformers import AutoModelForImageTextToText, AutoProcessor

    checkpoint = run.folder / "checkpoints" / f"step-{STEPS}"
    AutoProcessor.from_pretrained(checkpoint)
    AutoModelForImageTextToText.from_pretrained(checkpoint)
    before, after = load_file(BASE_MODEL / "model.safetensors"), load_file(checkpoint / "model.safetensors")
    assert set(before) == set(after)
    assert any(not np.array_equal(before[name], after[name]) for name in before)
