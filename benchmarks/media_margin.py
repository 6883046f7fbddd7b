"""How much a model's belief in a true caption depends on the picture: log p(y|x, m) - log p(y|x, m').

The same held-out scenes, captions and damaged pictures for every model, so that models are compared in pairs.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from actors.forward import Row, Scorer, collate
from actors.processing import Processing
from pipelines.data.glyphs import GlyphsSource
from pipelines.perturbations.base import DamageRequest, damage
from pipelines.perturbations.crop import Crop
from pipelines.perturbations.diffuse import Diffuse
from pipelines.perturbations.keywords import GraphRank
from pipelines.perturbations.regions import KeyRegions, KnownBoxes
from pipelines.types import MediaTable, Prompt
from pipelines.worlds.glyphs import Glyphs

SCENES = 400
SEED = 77
BATCH = 32
#: Held-out damage: MFPO's noise on the regions that the caption names, and mDPO's crop.
DAMAGES = {
    "key regions diffused": (Diffuse(step=500), KeyRegions(keywords=GraphRank(), locate=KnownBoxes())),
    "cropped": (Crop(), None),
}

Cell = tuple[Prompt, MediaTable, str]


@cache
def cells() -> dict[str, list[Cell]]:
    """Clean and damaged inputs with their true captions, in the order of the scenes."""
    source = GlyphsSource(count=SCENES, seed=SEED)
    found: dict[str, list[Cell]] = {name: [] for name in ("clean", *DAMAGES)}
    for position, row in enumerate(Glyphs().rows("heldout", SCENES, SEED, "caption")):
        prompt, media = source.prompt(row)
        [digest] = prompt.media
        found["clean"].append((prompt, media, row["answer"]))
        for name, (perturbation, selector) in DAMAGES.items():
            request = DamageRequest(
                perturbation=perturbation,
                selector=selector,
                answer=row["answer"],
                gold=prompt.gold,
                seed=SEED + position,
            )
            damaged = damage(media[digest], request)
            other = prompt.with_media({digest: damaged.digest}, origin=name)
            found[name].append((other, {damaged.digest: damaged}, row["answer"]))
    return found


def media_margins(checkpoint: Path) -> dict[str, NDArray[np.float64]]:
    """Damage -> log p(y|x, m) - log p(y|x, m') of each scene, nats, summed over the caption."""
    from transformers import AutoModelForImageTextToText

    processing = Processing(checkpoint)
    model = AutoModelForImageTextToText.from_pretrained(checkpoint, dtype=torch.float32)
    scorer = Scorer(model.eval(), processing)
    logps = {name: log_probabilities(scorer, processing, group) for name, group in cells().items()}
    return {name: logps["clean"] - logps[name] for name in DAMAGES}


@torch.no_grad()
def log_probabilities(scorer: Scorer, processing: Processing, group: list[Cell]) -> NDArray[np.float64]:
    values: list[torch.Tensor] = []
    for start in range(0, len(group), BATCH):
        rows = []
        for prompt, media, caption in group[start : start + BATCH]:
            tokens = processing.tokenizer(caption, add_special_tokens=False)["input_ids"]
            rows.append(Row(processing.encode(prompt, media), tokens))
        values.append(scorer(collate(rows, processing))["logps"].sum(-1))
    return torch.cat(values).double().numpy()
