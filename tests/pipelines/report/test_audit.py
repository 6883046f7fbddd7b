"""The recount finds what does not agree, and nothing where all agrees."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipelines.report import recount

MakeRun = Callable[..., Path]
Tools = dict[str, Any]


def append(path: Path, record: dict[str, Any]) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")


def change_counts(run_dir: Path, **counts: Any) -> None:
    path = run_dir / "summary.json"
    summary = json.loads(path.read_text())
    summary["comparisons"] |= counts
    path.write_text(json.dumps(summary))


def test_a_sound_run_agrees(make_run: MakeRun) -> None:
    """6 steps on 2 ranks with 2 groups each are 24 trained; 3 drops make 27 issued."""
    assert recount(make_run()) == {
        "issued": 27,
        "trained": 24,
        "comparisons": 24,
        "later_uses": 0,
        "steps": 6,
        "dropped": {"stale": 1, "tie": 2},
        "discrepancies": [],
    }


def test_a_group_trained_twice_is_found(make_run: MakeRun, tools: Tools) -> None:
    run_dir = make_run()
    again = tools["row"](True, 1, 0, 0) | {"step": 6}
    tools["write_rows"](run_dir, [again, tools["row"](True, 6, 0, 1)])  # instead of group g0600
    found = recount(run_dir)["discrepancies"]
    assert "comparison g0100/0 of group g0100 was trained 2 times for its use 1" in found
    assert "group g0100 was trained in several places (step, rank): [(1, 0), (6, 0)]" in found
    assert "step 6: 1 trained groups were not sealed for it and 1 sealed groups were not trained" in found
    assert "trained: summary.json says 24, the log holds 23" in found


def test_a_missing_group_is_found(make_run: MakeRun, tools: Tools) -> None:
    run_dir = make_run()
    tools["write_rows"](run_dir, [tools["row"](True, 6, 0, 1)])
    assert recount(run_dir)["discrepancies"] == [
        "step 6: 0 trained groups were not sealed for it and 1 sealed groups were not trained",
        "step 6: metrics.jsonl has 4 comparisons, the log holds 3",
        "issued: summary.json says 27, the log holds 26",
        "trained: summary.json says 24, the log holds 23",
    ]


def test_a_missing_step_is_found(make_run: MakeRun) -> None:
    run_dir = make_run()
    for path in (run_dir / "comparisons").glob("step-00003-*"):
        path.unlink()
    assert "1 steps have no trained comparison: [3]" in recount(run_dir)["discrepancies"]


def test_wrong_counts_are_found(make_run: MakeRun) -> None:
    run_dir = make_run()
    change_counts(run_dir, issued=29, leased=1, dropped={"tie": 3})
    assert recount(run_dir)["discrepancies"] == [
        "issued: summary.json says 29, the log holds 27",
        "dropped: summary.json says {'tie': 3}, the log holds {'stale': 1, 'tie': 2}",
        "1 groups were left leased",
        "summary.json: issued 29 is not the sum of its parts, 28",
    ]


def test_groups_released_by_an_interrupted_run_are_no_discrepancy(make_run: MakeRun) -> None:
    run_dir = make_run(status="interrupted: SIGINT")
    change_counts(run_dir, issued=32, released=5)
    assert recount(run_dir)["discrepancies"] == []


def test_a_group_trained_and_dropped_is_found(make_run: MakeRun) -> None:
    run_dir = make_run()
    append(run_dir / "events.jsonl", {"event": "drop", "group": "g0100", "reason": "stale"})
    append(run_dir / "events.jsonl", {"event": "drop", "group": "d1", "reason": "stale"})
    found = recount(run_dir)["discrepancies"]
    assert "1 groups were trained and dropped: ['g0100']" in found
    assert "group d1 was dropped 2 times" in found


def resume_from_4(run_dir: Path, tools: Tools) -> None:
    """Attempt 2 continues from step 4 with other groups; what attempt 1 did after step 4 is gone."""
    append(run_dir / "events.jsonl", {"event": "resumed", "attempt": 2, "step": 4})
    for step in (5, 6):
        rows = [tools["row"](True, step, rank, n, attempt=2) for rank in (0, 1) for n in (0, 1)]
        for row in rows:
            row["group"] = row["group"].replace("g", "h")
        tools["write_rows"](run_dir, rows)
        names = [row["group"] for row in rows]
        append(run_dir / "events.jsonl", {"event": "seal", "step": step, "groups": names})


def test_rolled_back_work_does_not_count(make_run: MakeRun, tools: Tools) -> None:
    """A third rank of attempt 1 left a file that nothing overwrote, and drops came after the snapshot."""
    run_dir = make_run()
    left = [tools["row"](True, 5, 2, 0) | {"group": "h0500"}, tools["row"](True, 7, 0, 0)]
    tools["write_rows"](run_dir, left)
    for reason in ("tie", "end_of_run"):
        append(run_dir / "events.jsonl", {"event": "drop", "group": f"h06{reason}", "reason": reason})
    assert recount(run_dir)["discrepancies"] != []
    resume_from_4(run_dir, tools)
    found = recount(run_dir)
    assert found["discrepancies"] == []
    assert (found["trained"], found["dropped"]) == (24, {"stale": 1, "tie": 2})


def test_end_of_run_drops_are_forgotten_by_a_resume_even_before_the_snapshot(
    make_run: MakeRun, tools: Tools
) -> None:
    run_dir = make_run()
    append(run_dir / "events.jsonl", {"event": "drop", "group": "rest", "reason": "end_of_run"})
    append(run_dir / "events.jsonl", {"event": "snapshot", "step": 4})
    resume_from_4(run_dir, tools)
    assert recount(run_dir)["discrepancies"] == []


def test_a_resume_without_a_snapshot_is_found(make_run: MakeRun) -> None:
    run_dir = make_run()
    append(run_dir / "events.jsonl", {"event": "resumed", "attempt": 2, "step": 6})
    assert recount(run_dir)["discrepancies"] == ["attempt 2 resumed from step 6, which has no snapshot"]


def test_an_unproved_version_is_found_unless_proved_later(make_run: MakeRun) -> None:
    run_dir = make_run()
    proof = {
        "event": "proof",
        "version": 3,
        "generator": "g",
        "caches_fresh": "failed",
        "canary_change": "proved",
    }
    append(run_dir / "events.jsonl", proof)
    assert recount(run_dir)["discrepancies"] == ["g did not prove weight version 3: caches_fresh failed"]
    append(run_dir / "events.jsonl", proof | {"caches_fresh": "proved"})
    assert recount(run_dir)["discrepancies"] == []


def test_unreadable_logs_and_no_summary_are_found(make_run: MakeRun) -> None:
    run_dir = make_run(status=None)
    (run_dir / "comparisons" / "step-00007-rank-0.parquet").write_bytes(b"torn")
    found = recount(run_dir)["discrepancies"]
    assert found[0].startswith("comparisons/step-00007-rank-0.parquet cannot be read")
    assert "there is no summary.json" in found


def test_a_second_use_in_a_later_step_is_no_discrepancy_and_one_in_the_same_step_is(
    make_run: MakeRun, tools: Tools
) -> None:
    run_dir = make_run()
    again = tools["row"](True, 1, 0, 0) | {"step": 6, "use": 2}
    rows = [tools["row"](True, 6, 0, number) for number in range(2)]
    tools["write_rows"](run_dir, [*rows, again])
    events = [json.loads(line) for line in (run_dir / "events.jsonl").read_text().splitlines()]
    for event in events:
        if event["event"] == "seal" and event["step"] == 6:
            event["later"] = [[again["group"], 0, 2]]
    tools["write_lines"](run_dir / "events.jsonl", events)
    left = recount(run_dir)["discrepancies"]
    assert left == [
        "step 6: metrics.jsonl has 4 comparisons, the log holds 5",
        "later_uses: summary.json says 0, the log holds 1",
    ]
    change_counts(run_dir, later_uses={"trained": 1})
    assert recount(run_dir)["discrepancies"] == left[:1]
    tools["write_rows"](run_dir, [*rows, again, again | {"use": 3}])
    assert "comparison g0100/0 of group g0100 is 2 times in step 6" in recount(run_dir)["discrepancies"]
