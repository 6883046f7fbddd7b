"""Measure a glyphs model in process: greedy answers to held-out captions and questions, by Hugging Face
generate.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# (torch and transformers are typed in part only)

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipelines.worlds.glyphs.questions import QUESTION_KINDS, QuestionKind, make_question
from pipelines.worlds.glyphs.scenes import Scene, render_image, scenes
from pipelines.worlds.glyphs.verify import summarise_answers, summarise_captions, verify_caption
from pipelines.worlds.glyphs.vocabulary import CAPTION_PROMPT

if TYPE_CHECKING:
    from transformers import Qwen2_5_VLForConditionalGeneration
    from transformers.models.qwen2_5_vl import Qwen2_5_VLProcessor

Generate = Callable[[Sequence[NDArray[np.uint8]], Sequence[str]], list[str]]
_CAPTION_TOKENS = 40


def generator(
    model: Qwen2_5_VLForConditionalGeneration,
    processor: Qwen2_5_VLProcessor,
    *,
    temperature: float = 0.0,
    batch: int = 100,
) -> Generate:
    """A function from pictures and what the user says to answers; temperature 0 is greedy decoding."""

    # Both are called with keywords that their annotations leave out.
    process: Any = processor
    policy: Any = model

    def answer(pictures: Sequence[NDArray[np.uint8]], texts: Sequence[str]) -> list[str]:
        model.eval()
        answers: list[str] = []
        for start in range(0, len(pictures), batch):
            talks = [_conversation(text) for text in texts[start : start + batch]]
            prompts = [processor.apply_chat_template(talk, add_generation_prompt=True) for talk in talks]
            shown = list(pictures[start : start + batch])
            inputs: Any = process(text=prompts, images=shown, padding=True, return_tensors="pt")
            chosen: dict[str, Any] = {"do_sample": False}
            if temperature > 0.0:
                chosen = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
            with torch.inference_mode():
                ids: Any = policy.generate(**inputs, max_new_tokens=_CAPTION_TOKENS, **chosen)
            new = ids[:, inputs["input_ids"].shape[1] :]
            answers += processor.batch_decode(new, skip_special_tokens=True)
        return answers

    return answer


def _conversation(text: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}]


def measure_captions(answer: Generate, count: int, seed: int) -> dict[str, float]:
    """chair_i, chair_s, object_recall and exact_scene over `count` held-out scenes."""
    drawn = list(scenes("heldout", 0, count, seed))
    texts = answer([render_image(scene) for scene in drawn], [CAPTION_PROMPT] * count)
    return summarise_captions(map(verify_caption, drawn, texts))


def measure_questions(answer: Generate, kind: QuestionKind, count: int, seed: int) -> dict[str, float]:
    """accuracy and yes_ratio over one yes and one no question about each of `count // 2` held-out scenes."""
    drawn: list[Scene] = [scene for scene in scenes("heldout", 0, count // 2, seed) for _ in range(2)]
    asked = [
        make_question(scene, kind, "no" if number % 2 else "yes", seed + number // 2)
        for number, scene in enumerate(drawn)
    ]
    texts = answer([render_image(scene) for scene in drawn], [question.text for question in asked])
    return summarise_answers([question.answer for question in asked], texts)


def measure(answer: Generate, count: int, seed: int) -> dict[str, Any]:
    """Everything above: caption measures at the top, questions under `pope`."""
    questions = {kind: measure_questions(answer, kind, count, seed) for kind in QUESTION_KINDS}
    return {**measure_captions(answer, count, seed), "pope": questions}
