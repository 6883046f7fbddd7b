"""Align, serve, learn: what clients thought of answers is trained on beside what the policy samples."""

from __future__ import annotations

import asyncio
import base64
import io
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from PIL import Image

from actors import deterministic
from actors.preparation import prepare
from pipelines.data.glyphs import WORLD
from pipelines.preflight import require
from pipelines.report.progress import Progress
from pipelines.settings import load
from serving.feedback import FeedbackStore

CLIENT = "ann"
SCENES = 12
REWARD = """
def score(prompt, response, row):
    return float(len(response.split()))
"""


def served(row: Any) -> dict[str, Any]:
    """The request of a client that shows a scene."""
    buffer = io.BytesIO()
    Image.fromarray(WORLD.image(row)).save(buffer, "PNG")
    url = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
    _, text = row["prompt"][0]["content"]
    parts = [{"type": "image_url", "image_url": {"url": url}}, text]
    return {"model": "m", "messages": [{"role": "user", "content": parts}]}


async def talk(folder: Path) -> None:
    """Two answers to each scene: a third chosen, a third corrected, a third liked alone."""
    store = FeedbackStore(folder, consent="all")
    for number, row in enumerate(WORLD.rows("train", SCENES, 7, "caption")):
        good, bad = (f"chatcmpl-{2 * number + side:032x}" for side in (0, 1))
        for name, text in ((good, row["answer"]), (bad, "a red zero top left .")):
            answer = {"choices": [{"message": {"role": "assistant", "content": text}}]}
            await store.remember(
                answer_id=name, client=CLIENT, version="v-1", prompt=served(row), answer=answer
            )
        feedback: dict[str, Any] = (
            {"kind": "choice", "chosen": good, "rejected": bad},
            {"kind": "correction", "id": bad, "correction": row["answer"]},
            {"kind": "rating", "id": good, "rating": 1},
        )[number % 3]
        assert await store.rate(client=CLIENT, feedback=feedback) is None


def trained(run_dir: Path) -> list[dict[str, Any]]:
    tables = [pq.read_table(path) for path in sorted((run_dir / "comparisons").glob("*.parquet"))]
    return [row for table in tables for row in table.to_pylist()]


@pytest.mark.parametrize(
    ("recipe", "kinds"),
    [
        ("online_dpo", {"feedback:choice", "feedback:correction"}),
        ("kto", {"feedback:choice", "feedback:correction", "feedback:rating"}),
    ],
)
def test_align_trains_on_feedback_beside_its_own_samples(tmp_path: Path, recipe: str, kinds: set[str]):
    asyncio.run(talk(tmp_path / "feedback"))
    (tmp_path / "reward.py").write_text(REWARD)
    settings = load(
        None,
        [
            "deterministic=true",
            "learner.steps=3",
            "learner.groups_per_step=6",
            "rollout.max_tokens=12",
            f"recipe={recipe}",
            "method.samples=3",
            f"data=serving://{tmp_path / 'feedback'}",
            f"reward={tmp_path / 'reward.py'}:score",
            f"output={tmp_path}",
        ],
    )
    require(settings)
    run_dir = tmp_path / "run"
    summary = deterministic.align(prepare(settings, run_dir, resume=False), Progress(3))
    assert summary["status"] == "finished" and summary["steps"] == 3
    rows = trained(run_dir)
    origins = Counter(row["origin"] for row in rows)
    assert len(rows) == 18 and set(origins) == kinds | {"sampled"}
    for row in rows:
        recorded = row["origin"] != "sampled"
        assert (row["sampled_chosen"] is None) == recorded  # nobody of this run sampled what was served
        assert row["feedback_versions"] in (("v-1", "v-1,v-1") if recorded else (None,))
        assert row["media_digest"] is not None
    if recipe == "online_dpo":
        told = [row for row in rows if row["origin"] != "sampled"]
        assert all(row["version_oldest"] is None for row in told)
        assert all(row["rejected"] == "a red zero top left ." != row["chosen"] for row in told)
    assert "violated" not in {finding["status"] for finding in summary["audit"]["findings"]}
