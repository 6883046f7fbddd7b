"""Held-out answers of several models to the same prompts, by the engines that runs use, for the gate."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import ray

from actors.canaries import without_media, words
from actors.crew import generator
from actors.evaluator import evaluate, heldout_rows
from actors.placement import ray_session
from actors.plan import Plan
from actors.preparation import prepare
from actors.processing import Processing
from actors.remote import reach
from actors.run import start
from pipelines import checkpoint
from pipelines.data.glyphs import GlyphsSource
from pipelines.rewards import judge_group, load_reward
from pipelines.settings import Settings
from pipelines.types import MediaTable, Prompt, Response, Rollout

AT_ONCE = 64  # requests of one engine
TEXTS = 500  # reference texts at most
OWN = "own"  # the kind of records about people's own prompts

Asked = tuple[Prompt, MediaTable]


def answers(settings: Settings, models: Mapping[str, Path]) -> dict[str, list[dict[str, Any]]]:
    """Name -> held-out records of each model, as `serving.registry.promotion.compare` takes them; one model
    at a time.

    On the glyphs world, its held-out scenes and questions and its verifier; on data of one's own
    (`data.source`, `reward`), every row of the file and the reward. Beside the answers, the loss of reference
    text without pictures: the rows' `answer`, where they have one. Raises SettingsError, DataError,
    NotACheckpoint and RoleFailed.
    """
    with tempfile.TemporaryDirectory(prefix="plumbline-") as folder:
        plans: dict[str, Plan] = {}
        for name, path in models.items():
            checkpoint.inspect(path)
            own = settings.model_copy(update={"model": str(path)})
            plans[name] = prepare(own, Path(folder) / name, resume=False)
        with ray_session(settings):
            return {name: asyncio.run(_answers(plan)) for name, plan in plans.items()}


async def _answers(plan: Plan) -> list[dict[str, Any]]:
    generators = [generator(plan, index) for index in range(plan.settings.rollout.generators)]
    try:
        await start(generators, plan)
        patience_s = 4.0 * plan.settings.rollout.engine.timeout_s
        engines = [reach(one, f"generator-{index}", patience_s) for index, one in enumerate(generators)]
        glyphs = plan.settings.data.source == "glyphs"
        records = await (_glyphs(plan, generators) if glyphs else _own(plan, engines))
        return records + await _texts(plan, engines)
    finally:
        for one in generators:  # the next model's engines need their cores and memory
            ray.kill(one)


async def _glyphs(plan: Plan, generators: Sequence[Any]) -> list[dict[str, Any]]:
    counts, rollout = plan.settings.evaluation, plan.settings.rollout
    rows = list(heldout_rows(counts.scenes, counts.questions))
    path, patience_s = plan.run_dir / "records.jsonl", 4 * rollout.engine.timeout_s
    return await evaluate(generators, rows, path, rollout.max_tokens, patience_s)


async def _own(plan: Plan, engines: Sequence[Any]) -> list[dict[str, Any]]:
    rollout = plan.settings.rollout
    reward = load_reward(plan.settings)
    processing = Processing(plan.model, rollout.engine.max_model_len)
    asked = [plan.source.prompt(row) for _, row in plan.source.rows()]
    records: list[dict[str, Any]] = []
    for turn, begin in enumerate(range(0, len(asked), AT_ONCE)):
        some = asked[begin : begin + AT_ONCE]
        texts = await engines[turn % len(engines)].greedy(some, rollout.max_tokens)
        for (prompt, media), text in zip(some, texts, strict=True):
            tokens = tuple(processing.tokenizer(text, add_special_tokens=False)["input_ids"])
            answer = Rollout(prompt=prompt, response=Response(tokens=tokens, text=text))
            [score] = await judge_group(reward, (answer,), media)
            record = {"id": prompt.id, "kind": OWN, "text": text, "value": score.value}
            if {"right", "wrong"} <= score.parts.keys():
                record |= {name: score.parts[name] for name in ("right", "wrong")}
            records.append(record if score.missing is None else record | {"missing": score.missing})
    return records


async def _texts(plan: Plan, engines: Sequence[Any]) -> list[dict[str, Any]]:
    """How many nats reference answers cost where the prompt is its text alone."""
    rollout = plan.settings.rollout
    processing = Processing(plan.model, rollout.engine.max_model_len)
    lane = asyncio.Semaphore(AT_ONCE)

    async def one(position: int, prompt: Prompt, answer: str) -> dict[str, Any]:
        tokens = tuple(processing.tokenizer(answer, add_special_tokens=False)["input_ids"])
        async with lane:
            logp = await engines[position % len(engines)].logprob(without_media(prompt), {}, tokens)
        return {"id": prompt.id, "kind": "text", "nats": -float(logp)}

    found = list(islice(_references(plan), TEXTS))
    return list(await asyncio.gather(*(one(i, prompt, answer) for i, (prompt, answer) in enumerate(found))))


def _references(plan: Plan):
    """Prompts with text of their own, and the true answer to each."""
    if plan.settings.data.source == "glyphs":
        source = GlyphsSource(count=0, seed=0)
        rows = list(heldout_rows(plan.settings.evaluation.scenes, 0))
    else:
        source, rows = plan.source, [row for _, row in plan.source.rows()]
    for row in rows:
        prompt, _ = source.prompt(row)
        answer = prompt.gold.get("answer")
        if isinstance(answer, str) and answer.strip() and words(prompt).strip():
            yield prompt, answer
