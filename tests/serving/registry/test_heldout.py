"""Which prompts are asked and what becomes of the answers; engines are stand-ins here."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from actors.preparation import prepare
from pipelines.settings import load
from pipelines.worlds.glyphs import BASE_MODEL
from serving.registry import heldout

REWARD = '''
async def value(prompt, response, row):
    """How many of the answer's words are right; nothing is known of the last row."""
    if row["answer"] == "no":
        raise ValueError("no idea")
    return float(len(set(response.split()) & set(row["answer"].split())))
'''
ROWS = [
    {"prompt": "describe the image .", "answer": "a red six top left ."},
    {"prompt": "is there a blue two ?"},
    {"prompt": "is there a red six ?", "answer": "no"},
]


class Engine:
    """Says one thing to everything; a reference costs one nat per token."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.scored: list[str] = []

    async def greedy(self, prompts: Sequence[Any], max_tokens: int) -> list[str]:
        self.asked += [prompt.id for prompt, _ in prompts]
        return ["a red two ."] * len(prompts)

    async def logprob(self, prompt: Any, media: Any, tokens: tuple[int, ...]) -> float:
        assert not media and not prompt.media
        self.scored.append(prompt.id)
        return -float(len(tokens))


def collected(plan: Any, engines: Sequence[Engine]) -> list[dict[str, Any]]:
    async def both() -> list[dict[str, Any]]:
        return await heldout._own(plan, engines) + await heldout._texts(plan, engines)

    return asyncio.run(both())


def test_peoples_own_rows_are_answered_judged_and_scored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "reward.py").write_text(REWARD)
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    settings = load(None, [f"data={data}", f"reward={tmp_path / 'reward.py'}:value", f"model={BASE_MODEL}"])
    monkeypatch.setattr(heldout, "AT_ONCE", 2)  # so that both engines are asked

    engines = [Engine(), Engine()]

    records = collected(prepare(settings, tmp_path / "work", resume=False), engines)

    assert [engine.asked for engine in engines] == [["rows:1", "rows:2"], ["rows:3"]]

    answers = [record for record in records if record["kind"] == "own"]
    assert [record["value"] for record in answers] == [3.0, None, None]
    assert all("reward_raised" in record["missing"] for record in answers[1:])
    assert {record["text"] for record in answers} == {"a red two ."}
    texts = [record for record in records if record["kind"] == "text"]
    assert [(record["id"], record["nats"]) for record in texts] == [("rows:1", 6.0), ("rows:3", 1.0)]


def test_reference_texts_of_the_glyphs_world_are_its_captions_without_pictures(tmp_path: Path) -> None:
    settings = load(None, ["evaluation.scenes=5", "evaluation.questions=2"])
    plan = prepare(settings, tmp_path / "work", resume=False)
    engine = Engine()

    records = asyncio.run(heldout._texts(plan, [engine]))

    assert len(records) == len(engine.scored) == 5
    assert all(record["id"].endswith("-caption") and record["nats"] > 4 for record in records)
