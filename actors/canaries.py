"""Canaries: fixed prompts and answers whose log-probability tells one weight version from the next."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice

from actors.processing import Processing
from pipelines.data.base import Source
from pipelines.types import Canary, Prompt

CANARY_ROWS = 3
ANY_WORD = "yes"  # the answer to a prompt that is a picture alone
CANARY_TOKENS = 24  # long enough to move with every layer, short enough to cost nothing


def make_canaries(source: Source, processing: Processing) -> tuple[Canary, ...]:
    """For each of the first rows a canary with its media, and one on the text alone: both paths are watched.

    The answer is the row's own `answer` where it has one, else the prompt's words: any fixed sequence of
    ordinary tokens tells versions apart.
    """
    canaries: list[Canary] = []
    for _, row in islice(source.rows(), CANARY_ROWS):
        prompt, media = source.prompt(row)
        text = str(row.get("answer") or words(prompt).strip() or ANY_WORD)
        tokens = tuple(processing.tokenizer(text, add_special_tokens=False)["input_ids"][:CANARY_TOKENS])
        canaries.append(Canary(prompt=prompt, media=media, tokens=tokens))
        if prompt.media:
            canaries.append(Canary(prompt=without_media(prompt), media={}, tokens=tokens))
    return tuple(canaries)


def words(prompt: Prompt) -> str:
    return " ".join(part.text for message in prompt.messages for part in message.parts if part.text)


def without_media(prompt: Prompt) -> Prompt:
    """The same conversation with its text alone."""
    messages = tuple(replace(m, parts=tuple(p for p in m.parts if p.kind == "text")) for m in prompt.messages)
    return replace(prompt, messages=messages)
