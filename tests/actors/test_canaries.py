"""Canaries of the embedded world and of rows without pictures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from actors.canaries import CANARY_ROWS, CANARY_TOKENS, make_canaries, words
from actors.processing import Processing
from pipelines.data import open_source
from pipelines.data.glyphs import GlyphsSource
from pipelines.settings import Settings
from pipelines.worlds.glyphs import BASE_MODEL


@pytest.fixture(scope="module")
def processing() -> Processing:
    return Processing(BASE_MODEL)


def test_each_row_gives_one_canary_with_its_picture_and_one_without(processing: Processing) -> None:
    canaries = make_canaries(GlyphsSource(count=20, seed=0), processing)

    assert len(canaries) == 2 * CANARY_ROWS
    for shown, blind in zip(canaries[::2], canaries[1::2], strict=True):
        assert set(shown.media) == set(shown.prompt.media) and len(shown.media) == 1
        assert blind.media == {} and blind.prompt.media == ()
        assert words(shown.prompt) == words(blind.prompt) != ""
        assert shown.tokens == blind.tokens
        assert 0 < len(shown.tokens) <= CANARY_TOKENS
        assert not set(shown.tokens) & set(processing.forbidden)


def test_canaries_are_the_same_in_every_process(processing: Processing) -> None:
    first, second = (make_canaries(GlyphsSource(count=20, seed=0), processing) for _ in range(2))

    assert [c.prompt.digest for c in first] == [c.prompt.digest for c in second]
    assert [c.tokens for c in first] == [c.tokens for c in second]


def test_a_row_without_picture_and_answer_is_scored_on_its_own_words(
    processing: Processing, tmp_path: Path
) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps({"prompt": "a red seven top left ."}) + "\n")
    source = open_source(Settings.model_validate({"data": {"source": str(file)}, "reward": "random"}))

    [canary] = make_canaries(source, processing)

    assert canary.media == {} and processing.decode(canary.tokens) == "a red seven top left ."


def test_a_prompt_that_is_a_picture_alone_has_an_answer_too(processing: Processing, tmp_path: Path) -> None:
    Image.new("RGB", (64, 64)).save(tmp_path / "black.png")
    file = tmp_path / "rows.jsonl"
    row = {"prompt": [{"role": "user", "content": [{"type": "image"}]}], "images": ["black.png"]}
    file.write_text(json.dumps(row) + "\n")
    source = open_source(Settings.model_validate({"data": {"source": str(file)}, "reward": "random"}))

    canaries = make_canaries(source, processing)

    assert [len(canary.media) for canary in canaries] == [1, 0]
    assert all(canary.tokens for canary in canaries)
