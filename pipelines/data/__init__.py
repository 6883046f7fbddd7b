"""Sources of prompts: the embedded world, people's own JSONL and Parquet files, and a server's feedback."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any, Final

from pipelines import checkpoint
from pipelines.data.base import BadRow, DataError, Inventory, Row, Source, admit, write_bad_rows
from pipelines.data.files import FileSource, open_file
from pipelines.data.glyphs import GlyphsSource
from pipelines.data.served import open_served
from pipelines.settings import Settings, model_path

__all__ = [
    "BadRow",
    "DataError",
    "FileSource",
    "GlyphsSource",
    "Inventory",
    "Row",
    "Source",
    "admit",
    "open_source",
    "write_bad_rows",
]

_SPARE: Final = 2  # rows per row trained on: groups without a clear best answer are dropped and replaced


def open_source(settings: Settings, special: Collection[str] | None = None) -> Source:
    """The source that a run's settings name.

    `special`: strings of the model's special tokens (default: those in its tokenizer.json). Raises DataError,
    or NotACheckpoint when the model's folder is needed and unusable.
    """
    if settings.data.source == "glyphs":
        wanted = settings.learner.steps * settings.learner.groups_per_step
        count = settings.data.count or _SPARE * wanted
        return GlyphsSource(count=count, seed=settings.seed, questions=settings.data.questions)
    model = checkpoint.inspect(model_path(settings))
    options: dict[str, Any] = {
        "special": frozenset(model.special if special is None else special),
        "max_images": settings.rollout.engine.images_per_prompt if model.sees else 0,
        "count": settings.data.count,
    }
    if settings.data.served is not None:
        return open_served(settings.data.served, **options)
    return open_file(Path(settings.data.source), **options)
