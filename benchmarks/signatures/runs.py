"""One training of one arm on one seed, and what it is measured on."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from actors.heldout import heldout_rows
from actors.in_process import Run, train
from benchmarks.signatures.arms import ARMS
from pipelines import durable
from pipelines.data.glyphs import GlyphsSource
from pipelines.perturbations.base import DamageRequest, damage
from pipelines.perturbations.diffuse import Diffuse
from pipelines.perturbations.keywords import GraphRank
from pipelines.perturbations.regions import KeyRegions, KnownBoxes
from pipelines.settings import Settings, load
from pipelines.types import MediaTable, Prompt
from pipelines.worlds.glyphs import Glyphs

FOLDER = Path("runs/signatures")
HELDOUT_SEED = 20_241_015
SCENES, QUESTIONS = 400, 100  # held out: captions, and questions of each kind
PROBED = 64  # scenes whose media margin is measured
BUDGET = (
    "learner.steps=15",
    "learner.groups_per_step=12",
    "learner.lr=1.5e-5",
    "rollout.temperature=1.0",
    "sync.max_lag=0",
    "learner.zero_stage=0",
    "max_drop_share=1.0",
)


def settings(arm: str, seed: int) -> Settings:
    """The common budget, and what the arm changes of it."""
    own = [f"{key}={value}" for key, value in ARMS[arm].settings.items()]
    return load(None, [*BUDGET, *own, f"seed={seed}"])


def run(arm: str, seed: int) -> dict[str, Any]:
    """Train, measure, and keep the result; a run that is kept is not repeated."""
    path = FOLDER / f"{arm}-{seed}.json"
    if path.exists():
        return json.loads(path.read_text())
    began = time.perf_counter()
    with train(settings(arm, seed), ARMS[arm].build()) as trained:
        seconds = time.perf_counter() - began
        found = trained.evaluate(list(heldout_rows(SCENES, QUESTIONS)))
        margins = media_margins(trained)
        measured = {
            "arm": arm,
            "seed": seed,
            "chair_i": found["chair_i"],
            "recall": found["object_recall"],
            "pope": sum(kind["accuracy"] for kind in found["pope"].values()) / len(found["pope"]),
            "media_margin": sum(margins) / len(margins),
            "text_margin": last(trained.metrics, "margin/text"),
            "steps": len(trained.metrics),
            "groups": trained.counts,
            "train_seconds": round(seconds, 1),
        }
    path.parent.mkdir(parents=True, exist_ok=True)
    with durable.swapped(path) as partial:
        partial.write_text(json.dumps(measured))
    return measured


def last(metrics: Sequence[dict[str, Any]], name: str, steps: int = 4) -> float | None:
    """Mean of a metric over the last steps that have it."""
    values = [record[name] for record in metrics if name in record][-steps:]
    return sum(values) / len(values) if values else None


@cache
def probed() -> tuple[tuple[Prompt, Prompt, MediaTable, str], ...]:
    """Clean prompt, the same with its key regions noised, both pictures, and the true caption."""
    source = GlyphsSource(count=PROBED, seed=HELDOUT_SEED)
    cells: list[tuple[Prompt, Prompt, MediaTable, str]] = []
    for position, row in enumerate(Glyphs().rows("heldout", PROBED, HELDOUT_SEED, "caption")):
        prompt, media = source.prompt(row)
        [digest] = prompt.media
        request = DamageRequest(
            perturbation=Diffuse(500),
            selector=KeyRegions(keywords=GraphRank(), locate=KnownBoxes()),
            answer=row["answer"],
            gold=prompt.gold,
            seed=position,
        )
        noised = damage(media[digest], request)
        other = prompt.with_media({digest: noised.digest}, origin="noised")
        cells.append((prompt, other, {**media, noised.digest: noised}, row["answer"]))
    return tuple(cells)


def media_margins(trained: Run) -> list[float]:
    """log p(caption | picture) - log p(caption | key regions noised) of each probed scene, nats."""
    generator = trained.generator

    async def one(clean: Prompt, noised: Prompt, media: MediaTable, caption: str) -> float:
        answer = await generator.encode(caption, "gold")
        [seen] = await generator.probe(clean, media, [answer])
        [unseen] = await generator.probe(noised, media, [answer])
        return sum(seen.logps) - sum(unseen.logps)

    async def all_of_them() -> list[float]:
        return list(await asyncio.gather(*(one(*cell) for cell in probed())))

    return trained.do(all_of_them())
