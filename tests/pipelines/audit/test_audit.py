"""Every invariant is found violated, and it alone, where one thing of a sound run was tampered with."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines.audit import Audit, audit

Made = dict[str, Any]
NAN = float("nan")


def statuses(found: Audit) -> dict[str, str]:
    return {finding.code: finding.status for finding in found.findings}


def only_violated(run_dir: Path, code: str) -> str:
    """The line of the one invariant that is violated; all others hold."""
    found = audit(run_dir)
    assert statuses(found) == {f"I{n}": "violated" if f"I{n}" == code else "holds" for n in range(1, 9)}, (
        found.lines()
    )
    (finding,) = found.violated
    return "; ".join(finding.evidence)


def test_a_sound_run_holds_in_everything(folder: Any) -> None:
    """6 steps on 2 ranks with 2 groups each are 24 trained; 3 drops make 27 issued."""
    found = audit(folder.path)
    assert set(statuses(found).values()) == {"holds"}, found.lines()
    assert found.violated == []
    assert (
        found.lines()[0]
        == "I1 conservation: holds (27 groups issued = 24 trained + 3 dropped, and 0 released)"
    )
    assert found.to_json()["violated"] == []
    assert found.counted == {
        "issued": 27,
        "trained": 24,
        "dropped": {"stale": 1, "tie": 2},
        "released": 0,
        "comparisons": 24,
        "later_uses": 0,
        "steps": 6,
    }


def test_a_resumed_run_holds_in_everything(resumed: Any) -> None:
    """What attempt 1 did after step 4 was rolled back: its groups g05.., g06.. count as nothing."""
    found = audit(resumed.path)
    assert set(statuses(found).values()) == {"holds"}, found.lines()
    assert (found.counted["issued"], found.counted["trained"]) == (27, 24)


def test_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no run lies here"):
        audit(tmp_path)


# -- I1 -----------------------------------------------------------------------------------------------------


def test_a_group_that_came_to_no_end_is_lost(folder: Any) -> None:
    folder.add({"event": "issue", "group": "lost", "generator": 0, "fence": 99})
    assert only_violated(folder.path, "I1") == (
        "1 issued groups have no end: ['lost']; issued: summary.json says 27, the log holds 28"
    )


def test_counters_of_the_ledger_are_not_believed(folder: Any) -> None:
    folder.counts(issued=29, leased=1, dropped={"tie": 3})
    assert only_violated(folder.path, "I1") == (
        "issued: summary.json says 29, the log holds 27; "
        "dropped: summary.json says {'tie': 3}, the log holds {'stale': 1, 'tie': 2}; "
        "1 groups were left leased; summary.json: issued 29 is not the sum of its parts, 28"
    )


def test_a_drop_that_nobody_leased_is_found(folder: Any) -> None:
    folder.add({"event": "drop", "group": "new", "reason": "tie"})
    assert "1 groups ended but were never issued: ['new']" in only_violated(folder.path, "I1")


def test_a_group_with_two_ends_is_found(folder: Any) -> None:
    folder.add({"event": "drop", "group": "g0100", "reason": "stale"})
    folder.add({"event": "drop", "group": "d1", "reason": "stale"})
    found = only_violated(folder.path, "I1")
    assert "1 groups were trained and dropped: ['g0100']" in found
    assert "group d1 was dropped more than once" in found


def test_unreadable_logs_are_found(folder: Any) -> None:
    (folder.path / "comparisons" / "step-00007-rank-0.parquet").write_bytes(b"torn")
    assert "comparisons/step-00007-rank-0.parquet cannot be read" in only_violated(folder.path, "I1")


def test_groups_released_by_an_interrupted_run_are_no_loss(folder: Any) -> None:
    folder.add(
        {"event": "issue", "group": "r", "generator": 0, "fence": 99}, {"event": "release", "groups": ["r"]}
    )
    folder.counts(issued=28, released=1)
    folder.summary(status="interrupted: SIGTERM")
    assert set(statuses(audit(folder.path)).values()) == {"holds"}


def test_groups_without_an_end_of_a_killed_run_cannot_be_checked(folder: Any) -> None:
    folder.add({"event": "issue", "group": "under way", "generator": 0, "fence": 99})
    folder.summary(status="failed: RoleFailed: ledger: died", comparisons={"unknown": "the ledger died"})
    found = audit(folder.path)
    assert statuses(found)["I1"] == "not checkable"
    assert found.lines()[0].startswith("I1 conservation: NOT CHECKABLE: 1 issued groups have no end")


def test_a_resume_without_a_snapshot_is_found_unless_the_manifest_says_what_was_settled(resumed: Any) -> None:
    def forget(events: list[dict[str, Any]]) -> None:
        events[:] = [e for e in events if e.get("event") != "snapshot" or e["step"] != 4]

    resumed.change("events.jsonl", forget)
    assert "attempt 2 resumed from step 4, which has no snapshot" in only_violated(resumed.path, "I1")

    def tell(events: list[dict[str, Any]]) -> None:
        (start,) = [e for e in events if e["event"] == "resumed"]
        start["dropped"] = {"d1": "tie", "d2": "tie", "d3": "stale"}
        events[:] = [e for e in events if e.get("group") != "g0400"]  # its lease is in the torn tail

    resumed.change("events.jsonl", tell)
    assert set(statuses(audit(resumed.path)).values()) == {"holds"}


def test_drops_after_the_snapshot_are_rolled_back(resumed: Any) -> None:
    def drop_late(events: list[dict[str, Any]]) -> None:
        at = next(i for i, e in enumerate(events) if e["event"] == "resumed")
        for reason in ("tie", "end_of_run"):
            events.insert(at, {"event": "drop", "group": f"late-{reason}", "reason": reason})
            events.insert(at, {"event": "issue", "group": f"late-{reason}", "generator": 0, "fence": 1})

    resumed.change("events.jsonl", drop_late)
    assert set(statuses(audit(resumed.path)).values()) == {"holds"}


def test_a_sealed_group_that_no_rank_trained_is_found(folder: Any) -> None:
    folder.write_rows(folder.rows(6)[1:], 6)
    found = audit(folder.path)
    assert [finding.code for finding in found.violated] == ["I1", "I2"]  # the manifest names it as well
    assert "step 6: 1 sealed groups were not trained: ['g0600']" in found.violated[0].evidence
    assert "step 6: metrics.jsonl has 4 comparisons, the log holds 3" in found.violated[0].evidence


# -- I2 -----------------------------------------------------------------------------------------------------


def train_again(folder: Any, **values: Any) -> None:
    """Group g0100 of step 1 once more in step 6, as a learner would log it."""
    folder.write_rows([*folder.rows(6), folder.rows(1)[0] | {"step": 6, "version_newest": 0} | values], 6)
    folder.change("metrics.jsonl", lambda lines: lines[5].update(comparisons=5))


def test_a_group_trained_twice_is_found(folder: Any) -> None:
    train_again(folder)
    found = only_violated(folder.path, "I2")
    assert "comparison g0100/0 of group g0100 was trained 2 times for its use 1" in found
    assert "group g0100 was trained in several places (step, rank): [(1, 0), (6, 0)]" in found
    assert "step 6: 1 trained groups were not sealed for it: ['g0100']" in found


def test_a_sealed_second_use_is_no_repetition(folder: Any) -> None:
    train_again(folder, use=2)
    assert "step 6: 1 trained groups were not sealed for it" in audit(folder.path).violated[-1].evidence[0]

    def sealed(events: list[dict[str, Any]]) -> None:
        (event,) = [e for e in events if e["event"] == "seal" and e["step"] == 6]
        event["later"] = [["g0100", 0, 2]]

    folder.change("events.jsonl", sealed)
    folder.counts(later_uses={"trained": 1})
    assert set(statuses(audit(folder.path)).values()) == {"holds"}


def test_a_manifest_that_names_other_groups_is_found(folder: Any) -> None:
    trained = [(f"g{s:02d}{r}{n}", s) for s in range(1, 7) for r in (0, 1) for n in (0, 1)]
    trained[-1] = ("someone", 6)
    folder.manifest(6, trained, [])
    assert only_violated(folder.path, "I2") == (
        "checkpoint of step 6: 2 trained groups differ between its manifest and the log: ['g0611', 'someone']"
    )


# -- I3 -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"version_digest": "f" * 64}, "comparison g0300/0 of step 3 was sampled with ffffffffffff..."),
        ({"version_digest": None}, "comparison g0300/0 of step 3 was sampled with no digest"),
        (
            {"version_spans": "[[[1, 5], [2, 3]], []]"},
            "an answer of comparison g0300/0 of step 3 mixes versions",
        ),
        ({"version_newest": 40}, "version 40 of attempt 1 was used and never published"),
        ({"version_newest": 5}, "version 5 of attempt 1 was used before generator-0 had proved it"),
    ],
)
def test_rows_that_lie_about_their_weights_are_found(folder: Any, values: Made, expected: str) -> None:
    folder.change_row(**values)
    assert expected in only_violated(folder.path, "I3")


def test_mixed_versions_are_allowed_where_the_settings_keep_answers(folder: Any) -> None:
    folder.change_row(version_spans="[[[1, 5], [2, 3]], []]")
    (folder.path / "config.yaml").write_text("sync: {in_flight: keep}\n")
    assert set(statuses(audit(folder.path)).values()) == {"holds"}


@pytest.mark.parametrize("failed", [True, False])
def test_a_generator_that_did_not_prove_its_version_is_found(folder: Any, failed: bool) -> None:
    """generator-1 never proved version 2, of which half of step 3 is."""

    def unprove(events: list[dict[str, Any]]) -> None:
        (proof,) = [e for e in events if e.get("generator") == "generator-1" and e.get("version") == 2]
        proof["caches_fresh"] = "failed"
        if not failed:
            events.remove(proof)

    folder.change("events.jsonl", unprove)
    assert only_violated(folder.path, "I3") == (
        "version 2 of attempt 1 was used before generator-1 had proved it"
    )


def test_a_version_of_an_older_attempt_is_no_excuse(resumed: Any, made: Made) -> None:
    rows = resumed.rows(5)
    rows[0]["version_digest"] = made["digest"](4, attempt=1)
    resumed.write_rows(rows, 5)
    assert "version 4 of attempt 2 was published as" in only_violated(resumed.path, "I3")


# -- I4 -----------------------------------------------------------------------------------------------------


def fault(group: str, **changed: Any) -> Made:
    known = {"role": "scorer", "reason": "timeout", "detail": "", "retry": True}
    return {"event": "fault", "group": group, **known, **changed}


def test_a_failed_lease_that_nobody_answered_is_found(folder: Any) -> None:
    folder.add(fault("g0100"))  # trained nevertheless, by an earlier lease
    assert audit(folder.path).violated == []
    folder.add({"event": "issue", "group": "x", "generator": 0, "fence": 1}, fault("x"))
    folder.add({"event": "release", "groups": ["x"]})
    assert [f.code for f in audit(folder.path).violated] == ["I1"]  # the counters do not know of it
    folder.counts(issued=28, released=1)
    assert audit(folder.path).violated == []
    folder.add({"event": "resumed", "attempt": 2, "step": 6}, fault("x"))
    folder.counts(issued=27, released=0)
    assert (
        only_violated(folder.path, "I4") == "1 groups failed and were neither issued again nor dropped: ['x']"
    )


@pytest.mark.parametrize(("role", "reason", "missing"), [("", "died", "role"), ("scorer", "", "cause")])
def test_a_fault_names_role_and_cause(folder: Any, role: str, reason: str, missing: str) -> None:
    folder.add(fault("g0100", role=role, reason=reason))
    assert only_violated(folder.path, "I4") == f"a fault event of g0100 names no {missing}"


@pytest.mark.parametrize("status", ["failed: RuntimeError: ", "failed: ", "stopped"])
def test_a_run_that_ends_without_a_cause_is_found(folder: Any, status: str) -> None:
    folder.summary(status=status)
    assert only_violated(folder.path, "I4") == f"the run ended without a cause: {status!r}"


def lose(folder: Any, made: Made, recovered: Made) -> None:
    """generator 7 is lost at 165 s, after the last trained step; then something happens."""
    events = [made["member"](7, "serving", 150.0), made["member"](7, "gone", 165.0, "no answer"), recovered]
    folder.change("events.jsonl", lambda known: known.__setitem__(slice(-2, -2), events))


def test_a_loss_is_made_good_in_time(folder: Any, made: Made) -> None:
    lose(folder, made, made["member"](8, "serving", 220.0))
    assert "finished, 0 failed leases, 1 losses" in audit(folder.path).findings[3].counted
    assert audit(folder.path).violated == []


def test_a_loss_that_takes_too_long_is_found(folder: Any, made: Made) -> None:
    """The deadline is 60 s; the replacement serves after 85."""
    lose(folder, made, made["member"](8, "serving", 250.0))
    assert only_violated(folder.path, "I4") == (
        "generator 7 was lost and nothing recovered for 85 s, deadline 60 s"
    )


def test_a_member_that_was_asked_to_leave_is_no_loss(folder: Any, made: Made) -> None:
    lose(folder, made, made["member"](8, "serving", 250.0))

    def drain(events: list[dict[str, Any]]) -> None:
        at = next(i for i, e in enumerate(events) if e.get("index") == 7 and e["state"] == "gone")
        events.insert(at, made["member"](7, "draining", 160.0))

    folder.change("events.jsonl", drain)
    assert audit(folder.path).violated == []


def test_a_run_that_was_killed_cannot_be_checked(folder: Any) -> None:
    (folder.path / "summary.json").unlink()
    found = statuses(audit(folder.path))
    assert (found["I1"], found["I4"]) == ("not checkable", "not checkable")
    assert "violated" not in found.values()


# -- I5 -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (
            {"score_rejected": 0.0, "missing_rejected": "timeout"},
            "the rejected answer has the score 0.0, but its reward was missing: timeout",
        ),
        ({"score_rejected": None}, "the rejected answer was judged and has neither a score nor a reason"),
        ({"score_chosen": NAN}, "the chosen answer has the score nan"),
        ({"margin_text": NAN}, "margin_text is nan"),
        ({"margins": '{"text": Infinity}'}, "margins: text is inf"),
        ({"parts_chosen": '{"right": NaN}'}, "parts_chosen: right is nan"),
    ],
)
def test_invented_values_are_found(folder: Any, values: Made, expected: str) -> None:
    folder.change_row(**values)
    assert only_violated(folder.path, "I5") == f"comparison g0300/0 of step 3: {expected}"


def test_a_missing_score_with_a_reason_holds(folder: Any) -> None:
    folder.change_row(score_rejected=None, missing_rejected="timeout")
    finding = audit(folder.path).findings[4]
    assert (finding.status, finding.counted) == ("holds", "scores of 24 comparisons, 1 missing with a reason")


# -- I6 -----------------------------------------------------------------------------------------------------


def forge(folder: Path) -> None:
    manifest = folder / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"attempt": 1', '"attempt": 2'))


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize(
    ("harm", "expected"),
    [
        (lambda f: flip(f / "model.safetensors"), "step-6/model.safetensors: its SHA-256 is "),
        (lambda f: (f / "config.json").unlink(), "step-6/config.json: No such file or directory"),
        (lambda f: (f / "more").write_text(""), "step-6/more: the manifest does not name it"),
        (forge, "step-6/manifest.json was changed after its commit"),
        (
            lambda f: (f / "config.json").write_text(""),
            "step-6/config.json: its SHA-256 is e3b0c44298fc, the ",
        ),
    ],
)
def test_a_damaged_checkpoint_is_found(folder: Any, harm: Callable[[Path], Any], expected: str) -> None:
    harm(folder.path / "checkpoints" / "step-6")
    assert expected in only_violated(folder.path, "I6")


def test_a_finished_run_has_a_checkpoint_of_its_last_step(folder: Any) -> None:
    path = folder.path / "checkpoints"
    (path / "step-6").rename(path / "step-5")
    assert "step 6 is trained, but the newest checkpoint is step-5" in only_violated(folder.path, "I6")
    (path / "step-5" / "manifest.json").unlink()  # then it was never committed
    assert "the run finished without a committed checkpoint" in audit(folder.path).violated[0].evidence


# -- I7 -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["checkpoints/.step-6.partial", "comparisons/step-00009.partial", ".status.json.17"]
)
def test_half_written_files_are_found(folder: Any, name: str) -> None:
    (folder.path / name).mkdir()
    assert only_violated(folder.path, "I7") == f"1 half-written files: ['{name}']"


def test_a_process_that_lives_on_is_found(folder: Any, made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    """This very process plays the orphan; with the time of another start its number was used again."""
    monkeypatch.setattr("pipelines.audit.disk._GRACE_S", 0.0)
    stat = Path(f"/proc/{os.getpid()}/stat")
    if not stat.exists():
        pytest.skip("processes are looked up under /proc")
    began = stat.read_text().rpartition(")")[2].split()[19]
    events = folder.lines("events.jsonl")
    for start, code in ((began, "I7"), (str(int(began) + 1), None)):
        orphan = made["member"](0, "gone", 200.0, "the run ends") | {"pid": os.getpid(), "began": start}
        folder.write_lines("events.jsonl", [*events[:-2], orphan, events[-1]])
        if code:
            assert only_violated(folder.path, code) == f"generator 0 is still alive as process {os.getpid()}"
        else:
            assert audit(folder.path).violated == []


# -- I8 -----------------------------------------------------------------------------------------------------


def test_metrics_that_are_not_finite_are_found(folder: Any) -> None:
    folder.change("metrics.jsonl", lambda lines: lines[2].update(reward=NAN))
    assert only_violated(folder.path, "I8") == "step 3: reward is nan"


@pytest.mark.parametrize("sign", [{"bad_numbers": 1.0}, {"grad_norm": None}])
def test_a_skipped_step_that_was_not_counted_is_found(folder: Any, sign: Made) -> None:
    def skip(lines: list[Made]) -> None:
        lines[2].update(sign)
        if sign.get("grad_norm", 0) is None:
            del lines[2]["grad_norm"]

    folder.change("metrics.jsonl", skip)
    assert only_violated(folder.path, "I8") == "step 3 was not finite and is not among the skipped steps"
    folder.change("metrics.jsonl", lambda lines: [line.update(skipped_steps=1.0) for line in lines[2:]])
    assert "metrics of 6 steps, 1 skipped" in audit(folder.path).findings[7].counted
    assert audit(folder.path).violated == []


@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        (np.array([1.0, np.nan, 2.0], np.float32), "F32"),
        (np.array([1.0, np.inf], np.float16), "F16"),
        (np.array([0x3F80, 0x7FC0, 0xBF80], np.uint16), "BF16"),  # 1, not a number, -1
        (np.array([0xFF80], np.uint16), "BF16"),  # minus infinity
    ],
)
def test_tensors_that_are_not_finite_are_found(
    folder: Any, made: Made, values: np.ndarray[Any, Any], dtype: str
) -> None:
    file = folder.path / "checkpoints" / "step-6" / "model.safetensors"
    made["write_tensors"](file, values, dtype)
    ledger = folder.read("checkpoints/step-6/manifest.json")["ledger"]
    folder.manifest(6, [(g, s) for g, s, _ in ledger["trained"]], [])
    assert only_violated(folder.path, "I8") == (
        "checkpoints/step-6/model.safetensors: 1 elements of w are not finite"
    )


def test_the_largest_finite_bfloat16_holds(folder: Any, made: Made) -> None:
    file = folder.path / "checkpoints" / "step-6" / "model.safetensors"
    made["write_tensors"](file, np.array([0x7F7F, 0xFF7F, 0x0000], np.uint16), "BF16")
    assert audit(folder.path).findings[7].status == "holds"


# -- robustness ---------------------------------------------------------------------------------------------


def test_malformed_evidence_is_a_violation_and_hides_nothing(folder: Any) -> None:
    folder.add({"event": "drop"})  # neither group nor reason
    found = audit(folder.path)
    assert re.match(r"I1 conservation: VIOLATED: the evidence is malformed \(KeyError", found.lines()[0])
    assert statuses(found)["I8"] == "holds"
    json.dumps(found.to_json())


def test_a_log_without_leases_digests_or_members_cannot_be_checked_for_them(folder: Any) -> None:
    def older(events: list[Made]) -> None:
        events[:] = [e for e in events if e["event"] not in ("issue", "published", "member")]

    folder.change("events.jsonl", older)
    found = statuses(audit(folder.path))
    assert {code for code, status in found.items() if status == "not checkable"} == {"I1", "I3", "I7"}
    assert "violated" not in found.values()


def test_a_run_that_goes_on_may_hold_half_written_files(folder: Any) -> None:
    (folder.path / "summary.json").unlink()
    (folder.path / "checkpoints" / ".step-8.partial").mkdir()
    finding = audit(folder.path).findings[6]
    assert finding.status == "not checkable"
    assert ".step-8.partial" in finding.evidence[0]


def test_steps_without_metrics_are_found(folder: Any) -> None:
    (folder.path / "metrics.jsonl").unlink()
    assert only_violated(folder.path, "I1") == "metrics.jsonl reports no steps"
