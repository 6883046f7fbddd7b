"""What a real run leaves behind: two ranks, two generators, own reward, Ctrl-C, resume, to the end."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from safetensors.numpy import load_file

from pipelines.audit import audit
from pipelines.worlds.glyphs import BASE_MODEL

STEPS, BOUNDARY = 10, 5
GROUPS = 7


@pytest.fixture(scope="module")
def events(shared_run) -> list[dict]:
    return [json.loads(line) for line in (shared_run.folder / "events.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def metrics(shared_run) -> list[dict]:
    return [json.loads(line) for line in (shared_run.folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def trained(shared_run) -> list[dict]:
    files = sorted((shared_run.folder / "comparisons").glob("*.parquet"))
    return [row for file in files for row in pq.read_table(file).to_pylist()]


def test_ctrl_c_saves_and_exits_130(shared_run):
    assert shared_run.interrupted_code == 130
    assert shared_run.interrupted_summary["status"] == "interrupted: SIGINT"
    assert 3 <= shared_run.interrupted_summary["steps"] < STEPS


def test_nothing_is_left_running(shared_run):
    assert shared_run.orphans == ()


def test_the_resumed_run_goes_on_where_the_checkpoint_was(shared_run, metrics, events):
    [resumed] = [event for event in events if event["event"] == "resumed"]
    assert resumed["attempt"] == 2
    assert resumed["step"] == shared_run.interrupted_summary["steps"]
    assert [record["step"] for record in metrics] == list(range(1, STEPS + 1))


def test_the_reference_of_the_resumed_run_is_the_model_it_started_from(metrics, events):
    [resumed] = [event for event in events if event["event"] == "resumed"]
    first = next(record for record in metrics if record["step"] == resumed["step"] + 1)
    assert abs(first["margin/text"]) > 0.01, "policy and reference agree: the checkpoint became the reference"


def test_comparisons_are_conserved(shared_run):
    counts = shared_run.summary["comparisons"]
    dropped = sum(counts["dropped"].values())
    assert counts["leased"] == counts["buffered"] == 0
    assert counts["issued"] == counts["trained"] + dropped + counts.get("released", 0)
    assert counts["trained"] == STEPS * GROUPS


def test_an_independent_log_recounts_the_same(shared_run, trained):
    assert {f.code: f.status for f in audit(shared_run.folder).findings} == {
        f"I{number}": "holds" for number in range(1, 9)
    }
    groups = Counter((row["step"], row["group"]) for row in trained if row["use"] == 1)
    assert len(groups) == STEPS * GROUPS
    assert len({group for _, group in groups}) == STEPS * GROUPS, "a group was trained in two steps"


def test_stages_follow_each_other_and_their_groups_do_not_mix(shared_run, metrics, trained):
    assert [record["stage"] for record in metrics] == [int(step > BOUNDARY) for step in range(1, STEPS + 1)]
    assert all(row["stage"] == int(row["step"] > BOUNDARY) for row in trained)
    started = {row["group"]: row["stage"] for row in trained}
    assert all(row["stage"] == started[row["group"]] for row in trained)
    first = [row["version_oldest"] for row in trained if row["stage"] == 1 and row["use"] == 1]
    assert min(first) >= BOUNDARY, "a group of the second stage was sampled before the first one ended"


def test_comparisons_come_up_again_as_the_stages_say(shared_run, trained):
    steps = [[row for row in trained if row["step"] == step] for step in range(1, STEPS + 1)]
    fresh = [{row["comparison"] for row in rows if row["use"] == 1} for rows in steps]
    again = [{row["comparison"] for row in rows if row["use"] > 1} for rows in steps]
    assert not again[0] and again[1:BOUNDARY] == fresh[: BOUNDARY - 1]  # each twice, over the resume as well
    assert not again[BOUNDARY]
    # 7 fresh ones and 0.25 / 0.75 * 7, rounded, make a quarter
    assert [len(found) for found in again[BOUNDARY + 1 :]] == [2] * (STEPS - BOUNDARY - 1)
    for step in range(BOUNDARY + 1, STEPS):
        assert again[step] <= set().union(*fresh[BOUNDARY:step])


def test_a_resumed_run_keeps_the_order_of_its_prompts(shared_run, events):
    [survey] = [event for event in events if event["event"] == "survey"]
    order = json.loads((shared_run.folder / "order.json").read_text())
    assert list(order) == ["0"] and order["0"]["start"] == 0
    assert sorted(order["0"]["order"]) == list(range(BOUNDARY * GROUPS))
    ranked = [survey["difficulty"][place] for place in order["0"]["order"]]
    third = len(ranked) // 3
    assert max(ranked[:third]) <= min(ranked[2 * third + 1 :])


def test_every_weight_version_is_proved_by_every_generator(shared_run, events):
    proofs = [event for event in events if event["event"] == "proof"]
    assert proofs
    assert all(proof["holds"] for proof in proofs)
    assert {proof["generator"] for proof in proofs} == {"generator-0", "generator-1"}
    final = {proof["generator"]: proof["version"] for proof in proofs}
    assert set(final.values()) == {STEPS}
    assert shared_run.summary["sync"]["failed"] == 0
    moved = [proof["canary_change"] for proof in proofs if proof["version"] not in (0,)]
    assert "proved" in moved, "no weight change was ever seen by a canary"


def test_broadcasts_carry_versions_and_whoever_misses_one_is_named(metrics, events):
    proofs = [event for event in events if event["event"] == "proof"]
    broadcast = [proof for proof in proofs if proof["detail"]["bytes"].get("by") == "gloo"]
    fell_back = [event for event in events if event["event"] == "fell_back"]
    assert broadcast and metrics[-1]["collective/took"] >= 1
    # A taker that was too slow for a deadline is named, and has the version all the same.
    assert all(event["cause"] for event in fell_back)
    assert len(broadcast) + len(fell_back) <= len(proofs)


def test_the_lag_stays_within_its_bound(shared_run, trained):
    assert shared_run.summary["lag"]["max"] <= 1
    assert all(row["version_oldest"] == row["version_newest"] for row in trained)


def test_the_learner_saw_the_media(shared_run, metrics, trained):
    assert shared_run.summary["sight"]["digest_mismatches"] == 0
    assert any(abs(record["visual_reliance"]) > 0 for record in metrics)
    assert all(row["media_digest"] for row in trained)


def test_the_chosen_answer_has_the_higher_score(trained):
    assert trained
    assert all(row["score_chosen"] > row["score_rejected"] for row in trained)


def test_both_ranks_trained(trained):
    assert {row["rank"] for row in trained} == {0, 1}


def test_the_checkpoint_is_a_loadable_model_with_moved_weights(shared_run):
    from transformers import AutoModelForImageTextToText, AutoProcessor

    checkpoint = shared_run.newest_checkpoint
    assert checkpoint.name == f"step-{STEPS}"
    AutoProcessor.from_pretrained(checkpoint)
    AutoModelForImageTextToText.from_pretrained(checkpoint)
    before = load_file(BASE_MODEL / "model.safetensors")
    after = load_file(checkpoint / "model.safetensors")
    assert set(before) == set(after)
    moved = [name for name in before if not np.array_equal(before[name], after[name])]
    assert len(moved) > 0.9 * len(before)
    assert all(np.isfinite(tensor).all() for tensor in after.values())


def test_the_manifest_covers_every_file_and_every_trained_group(shared_run, trained):
    checkpoint = shared_run.newest_checkpoint
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    on_disk = {str(p.relative_to(checkpoint)) for p in checkpoint.rglob("*") if p.is_file()}
    assert set(manifest["files"]) == on_disk - {"manifest.json"}
    assert manifest["step"] == STEPS
    assert manifest["attempt"] == 2


def test_the_resolved_settings_are_on_disk(shared_run):
    settings = yaml.safe_load((shared_run.folder / "config.yaml").read_text())
    assert settings["learner"]["workers"] == 2
    assert settings["seed"] == 3
    assert settings["reward"] == "own_reward:value"


def test_the_summary_has_what_it_promises(shared_run):
    summary = shared_run.summary
    assert summary["status"] == "finished"
    for when in ("before", "after"):
        measures = summary["heldout"][when]
        assert {"chair_i", "chair_s", "object_recall", "exact_scene", "mean_length"} <= set(measures)
        assert {"random", "popular", "adversarial"} == set(measures["pope"])
        assert {"accuracy", "yes_ratio"} <= set(measures["pope"]["random"])
    assert summary["seed"] == 3
    assert {"ray", "torch", "deepspeed", "transformers"} <= set(summary["versions"])
    assert summary["stage_seconds"]
    assert summary["wall_seconds"] > 0


def test_the_metrics_hold_what_people_watch(metrics):
    watched = {"loss", "reward", "margin/text", "lag_max", "tokens_per_s", "visual_reliance"}
    assert all(watched <= set(record) for record in metrics)
    assert all(np.isfinite(record["loss"]) for record in metrics)


def test_the_report_tells_the_run(shared_run):
    page = (shared_run.folder / "report.html").read_text()
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert "data:image/" in page
