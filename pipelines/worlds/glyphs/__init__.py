"""Glyphs: coloured handwritten digits on a grid, with captions and yes/no questions.

It stands in for a dataset of pictures with captions (one `caption` row per scene) and for the three
question sets of POPE (`random`, `popular`, `adversarial`; each scene has one yes and one no question). The
raw material is real: scikit-learn's handwritten digits. See `scenes` for what is kept from training,
`prior` for why the base model hallucinates, `pretrain` for how it was made; it lies in `BASE_MODEL`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.worlds import Row, Split
from pipelines.worlds.glyphs.captions import mentions_of, write_caption
from pipelines.worlds.glyphs.questions import QUESTION_KINDS, QuestionKind, make_question
from pipelines.worlds.glyphs.scenes import Box, Scene, render_image, scenes
from pipelines.worlds.glyphs.verify import verify_answer, verify_caption
from pipelines.worlds.glyphs.vocabulary import CAPTION_PROMPT

#: The committed base model, in the Hugging Face layout.
BASE_MODEL = Path(__file__).parent / "base"
TASKS = ("caption", *QUESTION_KINDS)


@dataclass(frozen=True)
class Glyphs:
    """The glyphs world as a `pipelines.worlds.World`. Tasks: caption, random, popular, adversarial."""

    @property
    def tasks(self) -> tuple[str, ...]:
        return TASKS

    def rows(self, split: Split, count: int, seed: int, task: str, start: int = 0) -> Iterator[Row]:
        """Caption row i is about scene i; question rows 2i (yes) and 2i + 1 (no) are about scene i."""
        if task not in TASKS:
            raise ValueError(f"glyphs: unknown task {task!r}; expected one of {', '.join(TASKS)}")
        if task == "caption":
            return (_caption_row(scene) for scene in scenes(split, start, count, seed))
        first, last = start // 2, (start + count + 1) // 2
        about = enumerate(scenes(split, first, last - first, seed), first)
        every = (_question_row(scene, task, 2 * i + j, seed) for i, scene in about for j in range(2))
        return (row for index, row in enumerate(every, 2 * first) if start <= index < start + count)

    def image(self, row: Mapping[str, Any]) -> NDArray[np.uint8]:
        """The picture of the row's scene, uint8 [64, 64, 3] RGB."""
        return render_image(Scene.from_json(row["scene"]))

    def boxes(self, row: Mapping[str, Any]) -> tuple[Box, ...]:
        """Tight boxes of the lit pixels of each object, in reading order of the cells."""
        return tuple(glyph.box for glyph in Scene.from_json(row["scene"]).objects)

    def verify(self, row: Mapping[str, Any], text: str) -> dict[str, float]:
        """right, wrong, missed, malformed and value, as counts.

        Captions: value = right - wrong - missed - malformed, so the number of objects at best. Questions:
        value is +1 for the right answer and -1 for the wrong one or for anything that is neither yes nor
        no.
        """
        caption = row["kind"] == "caption"
        verdict = (
            verify_caption(Scene.from_json(row["scene"]), text)
            if caption
            else verify_answer(str(row["answer"]), text)
        )
        return {
            **{key: float(count) for key, count in asdict(verdict).items()},
            "value": float(verdict.value),
        }


def _prompt(text: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}]


def _caption_row(scene: Scene) -> Row:
    return {
        "id": f"{scene.id}-caption",
        "prompt": _prompt(CAPTION_PROMPT),
        "scene": scene.to_json(),
        "answer": write_caption(mentions_of(scene)),
        "kind": "caption",
    }


def _question_row(scene: Scene, kind: QuestionKind, index: int, seed: int) -> Row:
    answer = "no" if index % 2 else "yes"
    question = make_question(scene, kind, answer, seed + index // 2)
    return {
        "id": f"{scene.id}-{kind}-{answer}",
        "prompt": _prompt(question.text),
        "scene": scene.to_json(),
        "answer": answer,
        "kind": kind,
    }
