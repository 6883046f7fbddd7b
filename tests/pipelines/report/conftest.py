"""A small synthetic run directory in which every count agrees: 6 steps, 2 ranks, 2 groups each, 3 drops."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipelines.report import render

STEPS, RANKS, GROUPS = 6, 2, 2
CONFIG = """name: synthetic
recipe: mfpo
model: glyphs
reward: world
seed: 7
data: {source: glyphs}
evaluation: {scenes: 200, questions: 100}
"""


def write_lines(path: Path, records: Iterable[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8"
    )


def comparison_row(media: bool, step: int, rank: int, number: int, attempt: int = 1) -> dict[str, Any]:
    group = f"g{step:02d}{rank}{number}"
    return {
        "attempt": attempt,
        "step": step,
        "rank": rank,
        "group": group,
        "comparison": f"{group}/0",
        "use": 1,
        "version_oldest": step - 1,
        "version_newest": step - 1,
        "prompt_id": f"scene-{step}-{rank}-{number}",
        "prompt_digest": "ab" * 32,
        "prompt_text": "describe the picture",
        "media_digest": digest(step, "clean") if media else None,
        "damaged_digest": digest(step, "damaged") if media else None,
        "damage": json.dumps({"name": "diffuse", "params": {"step": 500}, "seed": 3}) if media else None,
        "chosen": "a red seven top left .",
        "rejected": "a red seven top left , a blue two top right .",
        "score_chosen": 1.0,
        "score_rejected": -0.5,
        "parts_chosen": json.dumps({"right": 1.0, "wrong": 0.0}),
        "parts_rejected": json.dumps({"right": 1.0, "wrong": 1.0}),
        "margin_text": 0.1 * step,
        "margin_media": 0.05 * step if media else None,
    }


def write_rows(run_dir: Path, rows: list[dict[str, Any]]) -> None:
    folder = run_dir / "comparisons"
    folder.mkdir(parents=True, exist_ok=True)
    by_file: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        by_file.setdefault(f"step-{row['step']:05d}-rank-{row['rank']}.parquet", []).append(row)
    for name, content in by_file.items():
        pq.write_table(pa.Table.from_pylist(content), folder / name)


def digest(step: int, kind: str) -> str:
    return hashlib.sha256(f"{step}{kind}".encode()).hexdigest()


def write_pictures(run_dir: Path) -> None:
    rng = np.random.default_rng(0)
    folder = run_dir / "media"
    folder.mkdir(parents=True, exist_ok=True)
    for step in range(1, STEPS + 1):
        clean = np.zeros((64, 64, 3), dtype=np.uint8)
        clean[8:28, 8 + 4 * step : 16 + 4 * step] = (230, 60, 40)
        noise = rng.integers(0, 255, clean.shape, dtype=np.uint8)
        Image.fromarray(clean).save(folder / f"{digest(step, 'clean')}.png")
        Image.fromarray((clean // 2 + noise // 2).astype(np.uint8)).save(
            folder / f"{digest(step, 'damaged')}.png"
        )


def metrics_line(step: int, media: bool) -> dict[str, Any]:
    line: dict[str, Any] = {
        "step": step,
        "time_s": 2.0 * step,
        "loss": 0.7 / step,
        "reward": -1 + 0.4 * step,
        "reward_best": 0.3 * step,
        "margin/text": 0.2 * step,
        "lag_max": min(step - 1, 1),
        "lag_mean": 0.4,
        "comparisons": RANKS * GROUPS,
        "tokens_per_s": 1500.0,
    }
    if media:
        line |= {
            "hallucination": 0.45 / step,
            "margin/media": 0.1 * step,
            "margin_ratio": 0.5,
            "visual_reliance": 2.5,
        }
    return line


def heldout_records(wrong_share: float) -> list[dict[str, Any]]:
    """200 captions of two true mentions, of which a share adds a wrong one; 100 questions per kind."""
    captions = [
        {
            "id": f"s{n:03d}-caption",
            "kind": "caption",
            "text": "a red seven top left .",
            "right": 2,
            "wrong": int(n < 200 * wrong_share),
            "missed": int(n % 10 == 0),
            "malformed": 0,
        }
        for n in range(200)
    ]
    questions = [
        {
            "id": f"s{n:03d}-{kind}",
            "kind": kind,
            "text": "yes",
            "answer": "yes" if n % 10 else "no",
            "right": int(n % 10 > 0),
            "wrong": int(n % 10 == 0),
            "missed": 0,
            "malformed": 0,
        }
        for kind in ("random", "popular", "adversarial")
        for n in range(100)
    ]
    return captions + questions


def seal(step: int) -> dict[str, Any]:
    names = [f"g{step:02d}{rank}{number}" for rank in range(RANKS) for number in range(GROUPS)]
    return {"event": "seal", "step": step, "groups": names}


def proof(version: int, canary: str = "proved") -> dict[str, Any]:
    return {
        "event": "proof",
        "version": version,
        "generator": "generator-0",
        "bytes_received": "proved",
        "elements_loaded": "proved",
        "canary_change": canary,
        "caches_fresh": "proved",
        "holds": True,
        "seconds": 0.21,
    }


def summary_of(status: str) -> dict[str, Any]:
    trained = STEPS * RANKS * GROUPS
    return {
        "status": status,
        "heldout": {},
        "comparisons": {
            "issued": trained + 3,
            "trained": trained,
            "leased": 0,
            "buffered": 0,
            "dropped": {"tie": 2, "stale": 1},
        },
        "stage_seconds": {
            "start": 21.0,
            "align": 64.5,
            "evaluate before": 9.0,
            "learner/wait": 30.0,
            "learner/commit": 2,
        },
        "wall_seconds": 101.4,
        "seed": 7,
        "versions": {"ray": "2.60.0"},
    }


MakeRun = Callable[..., Path]


def build(
    run_dir: Path, *, media: bool = True, evaluated: bool = True, status: str | None = "finished"
) -> Path:
    """Write a run into a new folder and return the folder."""
    run_dir.mkdir()
    (run_dir / "config.yaml").write_text(CONFIG, encoding="utf-8")
    steps = range(1, STEPS + 1)
    write_lines(run_dir / "metrics.jsonl", [metrics_line(step, media) for step in steps])
    drops = [("d1", "tie"), ("d2", "tie"), ("d3", "stale")]
    events = [{"event": "drop", "group": g, "reason": r} for g, r in drops]
    events += [seal(step) for step in steps]
    events.append({"event": "snapshot", "step": 4})
    events += [proof(1, "not distinguishable"), proof(2)]
    events.append(
        {
            "event": "fault",
            "group": "g1",
            "role": "scorer",
            "reason": "timeout",
            "detail": "",
            "retry": True,
        }
    )
    write_lines(run_dir / "events.jsonl", events)
    rows = [comparison_row(media, s, r, n) for s in steps for r in range(RANKS) for n in range(GROUPS)]
    write_rows(run_dir, rows)
    if media:
        write_pictures(run_dir)
    if evaluated:
        write_lines(run_dir / "evaluation" / "before.jsonl", heldout_records(0.9))
        write_lines(run_dir / "evaluation" / "after.jsonl", heldout_records(0.2))
    if status is not None:
        (run_dir / "summary.json").write_text(json.dumps(summary_of(status)), encoding="utf-8")
    return run_dir


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """`make_run(media=True, evaluated=True, status="finished")` writes a run and returns its folder."""
    return partial(build, tmp_path / "synthetic")


@pytest.fixture(scope="session")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a sound run, for tests that only read it."""
    return render(build(tmp_path_factory.mktemp("report") / "synthetic"))


@pytest.fixture
def tools() -> dict[str, Callable[..., Any]]:
    """Writers of the fixture, for tests that change a run."""
    return {
        "row": comparison_row,
        "write_rows": write_rows,
        "write_lines": write_lines,
        "summary": summary_of,
    }
