"""Prompts of the embedded world: made from their position alone, and as regions and rewards expect them."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from pipelines.data import GlyphsSource, open_source
from pipelines.settings import load
from pipelines.worlds.glyphs import Glyphs


def test_a_position_always_gives_the_same_prompt() -> None:
    source = GlyphsSource(count=5, seed=2, questions=0.4)
    again = pickle.loads(pickle.dumps(source))
    rows = [row for _, row in source.rows()]
    assert rows == [again.row({"id": 3}, position) for position in range(5)]
    prompts = [source.prompt(row) for row in rows]
    assert len({prompt.id for prompt, _ in prompts}) == 5
    for (prompt, media), (twin, _) in zip(prompts, map(again.prompt, rows), strict=True):
        assert prompt.digest == twin.digest
        assert set(prompt.media) == set(media)
        assert [part.kind for part in prompt.messages[0].parts] == ["image", "text"]


def test_rows_of_different_seeds_differ() -> None:
    first, second = (GlyphsSource(count=1, seed=seed).row(None, 0) for seed in (0, 1))
    assert first["scene"] != second["scene"]


def test_questions_are_an_even_share_of_every_kind_and_answer() -> None:
    """Of 600 rows 20% are 120 questions: 40 of each kind, of which 20 are answered yes."""
    rows = [row for _, row in GlyphsSource(count=600, seed=0, questions=0.2).rows()]
    counts: dict[tuple[str, str], int] = {}
    for row in rows:
        if row["kind"] != "caption":
            counts[row["kind"], row["answer"]] = counts.get((row["kind"], row["answer"]), 0) + 1
    assert counts == {
        (kind, said): 20 for kind in ("random", "popular", "adversarial") for said in ("yes", "no")
    }
    assert all(row["kind"] == "caption" for _, row in GlyphsSource(count=50, seed=0).rows())
    assert all(row["kind"] != "caption" for _, row in GlyphsSource(count=50, seed=0, questions=1.0).rows())


def test_gold_names_every_object_with_its_box() -> None:
    source = GlyphsSource(count=1, seed=4)
    row = source.row(None, 0)
    prompt, media = source.prompt(row)
    picture = media[prompt.media[0]].payload
    assert [tuple(entry["box"]) for entry in prompt.gold["boxes"]] == list(Glyphs().boxes(row))
    for entry in prompt.gold["boxes"]:
        x0, y0, x1, y1 = entry["box"]
        assert picture[y0:y1, x0:x1].any()
        assert " ".join(entry["words"]) in row["answer"]
    assert np.array_equal(picture, Glyphs().image(row))


def test_gold_holds_a_recorded_pair() -> None:
    """`rejected` is the true answer with one false mention: a wrong object more, or a true one spoilt."""
    source = GlyphsSource(count=40, seed=4, questions=0.25)
    for _, row in source.rows():
        prompt, _ = source.prompt(row)
        assert prompt.gold["chosen"] == prompt.gold["answer"] != prompt.gold["rejected"]
        right, wrong = (Glyphs().verify(row, prompt.gold[column]) for column in ("chosen", "rejected"))
        if row["kind"] == "caption":
            assert (right["wrong"], right["missed"], wrong["wrong"], wrong["malformed"]) == (0, 0, 1, 0)
        else:
            assert right["value"] == 1 and wrong["value"] == -1
    again = source.prompt(row)[0]
    assert again.gold["rejected"] == prompt.gold["rejected"]


def test_held_out_rows_become_prompts_too() -> None:
    row = next(Glyphs().rows("heldout", 1, 9, "random"))
    prompt, _ = GlyphsSource(count=1, seed=0).prompt(row)
    assert prompt.gold["answer"] == "yes"


@pytest.mark.parametrize(("override", "count"), [("seed=1", 12), ("data.count=5", 5)])
def test_how_many_rows_a_run_gets(override: str, count: int) -> None:
    settings = load(None, ["learner.steps=3", "learner.groups_per_step=2", override])
    assert list(open_source(settings).inventory().usable) == list(range(count))
