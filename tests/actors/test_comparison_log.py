"""Rows of what was trained, for comparisons of every shape, and pages that show them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from actors.comparison_log import write_comparisons, write_media
from pipelines.audit import audit
from pipelines.report import render
from pipelines.types import (
    Behaviour,
    Candidate,
    Comparison,
    Group,
    Media,
    Message,
    Op,
    Part,
    Preference,
    Prompt,
    Response,
    Score,
)

CLEAN = Media(kind="image", space="rgb8", payload=np.full((8, 8, 3), 200, np.uint8))
NOISED = Media(
    kind="image", space="rgb8", payload=np.zeros((8, 8, 3), np.uint8), parent=CLEAN.digest, op=Op(name="n")
)
MEDIA = {media.digest: media for media in (CLEAN, NOISED)}


def prompt(media: Media | None = None) -> Prompt:
    pictures = (Part(kind="image", digest=media.digest),) if media else ()
    parts = (*pictures, Part(kind="text", text="describe"))
    return Prompt(id="row-1", messages=(Message(role="user", parts=parts),))


def answers(*texts: str) -> tuple[Response, ...]:
    return tuple(Response(tokens=(i, 2), text=text) for i, text in enumerate(texts))


def behaviour(version: int = 3) -> Behaviour:
    return Behaviour(stream="policy", decoder={}, oldest=version, newest=version, logps=(-1.0, -1.0))


BLIND = prompt().digest
GOLD_ONLY = Comparison(
    id="g/0",
    stage=1,
    prompts=(prompt(),),
    responses=answers("gold"),
    candidates=(Candidate(prompt=0, response=0, role="g"),),
    preferences=(),
)
BLIND_LOSER = Comparison(
    id="g/1",
    prompts=(prompt(CLEAN),),
    responses=answers("gold", "made up"),
    candidates=(
        Candidate(prompt=0, response=0, role="g@x"),
        Candidate(prompt=0, response=1, role="b@x", behaviour=behaviour(), sampled_under=BLIND),
    ),
    preferences=(Preference(name="bias", winner=0, loser=1),),
)
PICTURES = Comparison(
    id="g/2",
    prompts=(prompt(CLEAN), prompt(NOISED)),
    responses=answers("seen", "other"),
    candidates=tuple(
        Candidate(
            prompt=p,
            response=r,
            role=role,
            score=Score(value=1.0 - r, parts={"right": 1.0}),
            behaviour=behaviour(),
        )
        for p, r, role in ((0, 0, "w@x"), (1, 0, "w@m"), (0, 1, "l@x"))
    ),
    preferences=(
        Preference(name="media", winner=0, loser=1),
        Preference(name="more", winner=0, loser=2),
    ),
)
ALL = (GOLD_ONLY, BLIND_LOSER, PICTURES)


def logged(tmp_path: Path, *groups: Group, margins: Any = None) -> list[dict[str, Any]]:
    found = margins or [{} for group in groups for _ in group.comparisons]
    path = write_comparisons(tmp_path, groups, found, attempt=1, step=1, rank=0)
    return pq.read_table(path).to_pylist()


def group(*comparisons: Comparison, **more: Any) -> Group:
    return Group(id="g", fence=1, comparisons=comparisons, media=MEDIA, version=3, **more)


def test_every_shape_has_a_row_that_says_what_it_is(tmp_path: Path) -> None:
    margins = [{}, {"bias": 0.5}, {"media": float("nan"), "more": 1.5}]
    gold, blind, pictures = logged(tmp_path, group(*ALL), margins=margins)
    assert (gold["chosen"], gold["rejected"], gold["edge"], gold["stage"], gold["use"]) == (
        "gold",
        None,
        None,
        1,
        1,
    )
    assert gold["version_oldest"] is None and gold["sampled_chosen"] is None and gold["margins"] == "{}"
    assert (blind["edge"], blind["rejected"]) == ("bias", "made up")
    assert blind["sampled_rejected"] == BLIND != blind["prompt_digest"] and blind["sampled_chosen"] is None
    assert json.loads(pictures["edges"]) == ["media", "more"] and pictures["edge"] == "more"
    assert json.loads(pictures["cells"]) == ["w@x", "w@m", "l@x"]
    assert (pictures["media_digest"], pictures["damaged_digest"]) == (CLEAN.digest, NOISED.digest)
    assert json.loads(pictures["margins"]) == {"media": None, "more": 1.5}
    assert pictures["score_chosen"] == 1.0 and pictures["score_rejected"] == 0.0


def test_a_missing_score_says_why(tmp_path: Path) -> None:
    sides = list(PICTURES.candidates)
    sides[0] = replace(sides[0], score=Score(value=None, missing="timeout"))
    [row] = logged(tmp_path, group(replace(PICTURES, candidates=tuple(sides))))
    assert (row["score_chosen"], row["missing_chosen"], row["missing_rejected"]) == (None, "timeout", None)


def test_an_edge_between_two_prompts_shows_one_answer(tmp_path: Path) -> None:
    only = replace(PICTURES, preferences=PICTURES.preferences[:1])
    [row] = logged(tmp_path, group(only))
    assert row["edge"] == "media" and row["chosen"] == "seen" and row["rejected"] is None


def test_a_row_says_which_bytes_sampled_it(tmp_path: Path) -> None:
    def cells(*behaviours: Behaviour | None) -> Comparison:
        made = [replace(PICTURES.candidates[i], behaviour=b) for i, b in enumerate(behaviours)]
        return replace(PICTURES, candidates=tuple(made))

    one, two = replace(behaviour(), digest="aa"), replace(behaviour(), digest="bb")
    mixed = replace(behaviour(), oldest=2, digest="aa", versions=((2, 1), (3, 1)))
    rows = logged(tmp_path, group(cells(one, one, None), cells(one, two, one), cells(mixed, one, None)))
    assert [row["version_digest"] for row in rows] == ["aa", "aa,bb", "aa"]
    assert [row["version_spans"] for row in rows] == [None, None, "[[[2, 1], [3, 1]], [], []]"]
    older = replace(behaviour(2), digest="of version 2")
    [row] = logged(tmp_path, group(cells(one, older, None)))
    assert (row["version_newest"], row["version_digest"]) == (3, "aa")  # they belong together


def test_pages_and_recounts_take_all_of_them(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("name: test\nrecipe: dpo\n")
    logged(tmp_path, group(*ALL), group(BLIND_LOSER, use=2))
    write_media(tmp_path, [group(*ALL)], 1)
    line = {"step": 1, "comparisons": 4, "margin/bias": 0.5, "loss": 1.0}
    (tmp_path / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    seal = {"event": "seal", "number": 1, "step": 1, "groups": ["g"], "later": [["g", 1, 2]]}
    (tmp_path / "events.jsonl").write_text(json.dumps(seal) + "\n")
    once, weights = audit(tmp_path).violated
    assert (once.code, once.evidence) == ("I2", ("comparison g/1 of group g is 2 times in step 1",))
    assert weights.code == "I3"  # nobody proved a version
    page = render(tmp_path).read_text()
    assert "made up" in page and "None" not in page.split("Microscope")[1].split("Settings")[0]
    assert "bias" in page
