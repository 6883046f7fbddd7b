"""Feedback of a server as rows: what becomes of choices, corrections, ratings, and of damaged logs."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pipelines import recipes
from pipelines.data import DataError, admit, open_source
from pipelines.data.served import fold, open_served
from pipelines.programs.mixing import When
from pipelines.programs.served import Labelled, with_served
from pipelines.rollout import Draft, Drop, Pipe
from pipelines.settings import SettingsError, load
from pipelines.types import Message, Part, Prompt, Response


def answer(name: str, text: str, asked: str = "what is it?", **more: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": [{"type": "text", "text": asked}]}]
    known = {"id": name, "client": "c", "version": f"v-{name}", "messages": messages, "images": []}
    return {"kind": "answer", **known, "answer": text, **more}


def rating(name: str, value: int) -> dict[str, Any]:
    return {"kind": "rating", "id": name, "client": "c", "rating": value}


def choice(chosen: str, rejected: str) -> dict[str, Any]:
    return {"kind": "choice", "client": "c", "chosen": chosen, "rejected": rejected}


def correction(name: str, text: str) -> dict[str, Any]:
    return {"kind": "correction", "id": name, "client": "c", "correction": text}


def log(folder: Path, *events: dict[str, Any] | bytes) -> Path:
    path = folder / "log" / "00000001.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [event if isinstance(event, bytes) else json.dumps(event).encode() + b"\n" for event in events]
    path.write_bytes(b"".join(lines))
    return folder


def told(row: dict[str, Any] | None) -> tuple[Any, ...] | None:
    return None if row is None else tuple(row.get(key) for key in ("sides", "chosen", "rejected", "feedback"))


def test_a_choice_a_correction_and_unrated_traffic():
    rows = fold(
        [answer("a", "A"), answer("b", "B"), choice("b", "a"), correction("a", "C"), answer("t", "T")]
    )
    assert [told(row) for row in rows] == [
        None,  # the answers a and b are told of by the feedback on them
        None,
        ("pair", "B", "A", "choice"),
        ("pair", "C", "A", "correction"),
        (None, None, None, None),  # a prompt alone
    ]
    assert rows[2] is not None and rows[2]["versions"] == ["v-b", "v-a"]
    assert rows[3] is not None and rows[3]["versions"] == ["v-a"]  # nobody served the correction


def test_a_liked_answer_is_paired_with_a_disliked_one_to_the_same_prompt():
    rows = fold(
        [
            *(answer(name, name.upper()) for name in "abc"),
            answer("d", "D", asked="something else?"),
            rating("a", -1),
            rating("d", 1),
            rating("b", 1),
            rating("c", 1),
        ]
    )
    assert [told(row) for row in rows[4:]] == [
        ("pair", "B", "A", "rating"),  # at the place of the first of the two
        ("good", "D", None, "rating"),
        None,
        ("good", "C", None, "rating"),
    ]


def test_a_later_opinion_takes_the_place_of_the_earlier_one():
    rows = fold([answer("a", "A"), answer("b", "B"), choice("a", "b"), rating("a", 1), choice("b", "a")])
    assert [told(row) for row in rows[2:]] == [("pair", "B", "A", "choice"), ("good", "A", None, "rating")]


def test_feedback_on_an_answer_that_is_gone_is_left_out():
    assert fold([rating("x", 1), choice("x", "y"), correction("x", "C")]) == [None, None, None]


EVENTS = st.lists(
    st.one_of(
        st.builds(answer, st.sampled_from("abcd"), st.just("text"), st.sampled_from(["p", "q"])),
        st.builds(rating, st.sampled_from("abcd"), st.sampled_from([-1, 1])),
        st.builds(choice, st.sampled_from("ab"), st.sampled_from("cd")),
        st.builds(correction, st.sampled_from("abcd"), st.just("better")),
    ),
    max_size=30,
)


@given(EVENTS)
def test_every_row_is_well_formed_and_no_rating_counts_twice(events: list[dict[str, Any]]):
    rows = [row for row in fold(events) if row is not None]
    assert len({row["id"] for row in rows}) == len(rows)
    rated = [name for row in rows if row.get("feedback") == "rating" for name in row["answers"]]
    assert len(rated) == len(set(rated))
    for row in rows:
        sides = {side for side in ("chosen", "rejected") if side in row}
        wanted = {"pair": {"chosen", "rejected"}, "good": {"chosen"}, "bad": {"rejected"}, None: set[str]()}
        assert sides == wanted[row.get("sides")]


@given(EVENTS, st.integers(0, 30))
def test_what_was_spoken_of_keeps_its_place(events: list[dict[str, Any]], count: int):
    """A resumed run finds its rows where they were: later events only add places."""
    before, after = fold(events[:count]), fold(events)
    assert len(before) <= len(after)


def test_rows_are_opened_with_their_pictures_and_stay_as_they_are(tmp_path: Path):
    (tmp_path / "media").mkdir()
    Image.new("RGB", (8, 8), "red").save(tmp_path / "media" / "p.png")
    shown = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what?"}]}]
    pictures = {"messages": shown, "images": ["p.png"]}
    log(tmp_path, answer("a", "A", **pictures), answer("b", "B", **pictures), choice("a", "b"))
    source = open_served(tmp_path)
    [(position, row)] = source.rows()
    prompt, media = source.prompt(row)
    assert position == 2 and len(media) == 1 and prompt.media == tuple(media)
    assert (prompt.gold["chosen"], prompt.gold["rejected"], prompt.gold["sides"]) == ("A", "B", "pair")
    log(tmp_path, answer("a", "A", **pictures), answer("b", "B", **pictures), choice("b", "a"))
    assert [row["gold"]["chosen"] for _, row in source.rows()] == ["A"]  # until the next start
    assert [row["gold"]["chosen"] for _, row in open_served(tmp_path).rows()] == ["B"]


def test_a_torn_last_line_never_happened_and_a_damaged_one_is_a_bad_row(tmp_path: Path):
    log(
        tmp_path,
        answer("a", "A"),
        b"{broken\n",
        b'{"kind": "applause"}\n',
        b'{"kind": "rating", "id": 7, "client": "c", "rating": 1}\n',
        rating("a", 1),
        b'{"kind": "rating", "id": "a", "cli',
    )
    inventory = open_served(tmp_path).inventory()
    assert [row.where for row in inventory.bad] == [f"00000001.jsonl:{n}" for n in (2, 3, 4)]
    assert len(inventory.usable) == 1
    with pytest.raises(DataError, match=r"3 bad rows.*data\.max_bad_rows is 2"):
        admit(inventory, 2, tmp_path / "bad_rows.jsonl")
    assert len((tmp_path / "bad_rows.jsonl").read_text().splitlines()) == 3
    admit(inventory, 3)


def test_special_tokens_that_a_client_typed_make_a_bad_row(tmp_path: Path):
    source = open_served(log(tmp_path, answer("a", "A", asked="<|im_end|> hi")), special={"<|im_end|>"})
    assert [row.got for row in source.inventory().bad] == ["<|im_end|>, a special token of the model"]


def test_a_folder_without_feedback_is_refused(tmp_path: Path):
    with pytest.raises(DataError, match=r"feedback\.folder"):
        open_served(tmp_path)


def served_settings(folder: Path, *more: str) -> Any:
    return load(None, [f"data=serving://{folder}", "reward=mine:reward", *more])


def test_settings_name_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(log(tmp_path, answer("a", "A")))
    settings = served_settings(Path("."))
    assert settings.data.served == tmp_path and settings.evaluation.scenes == 0
    assert [row["id"] for _, row in open_source(settings).rows()] == ["answer:a"]
    assert load().data.served is None
    with pytest.raises(SettingsError, match="verifies answers about scenes"):
        load(None, [f"data=serving://{tmp_path}"])


class Speller:
    """Tools that only spell."""

    async def encode(self, text: str, origin: str) -> Response:
        return Response(tokens=tuple(text.encode()), text=text, origin=origin)


def drawn(row: dict[str, Any]) -> Draft:
    prompt = Prompt(id="r", messages=(Message(role="user", parts=(Part(kind="text", text="?"),)),), gold=row)
    return Draft(prompts={"x": prompt}, media={})


@pytest.mark.parametrize("name", ["online_dpo", "ipo", "kto", "bco"])
def test_a_recipe_takes_recorded_answers_in_the_place_of_sampled_ones(name: str, tmp_path: Path):
    plain = recipes.load(name, {})
    mixed = with_served(plain, served_settings(tmp_path, f"recipe={name}", "data.recorded_share=0.25"))
    stage = mixed.stages[0]
    assert isinstance(stage.rollout, Pipe)
    first = stage.rollout.steps[0]
    assert isinstance(first, When) and first.first.p == 0.25  # type: ignore[attr-defined]
    assert stage.objective == plain.stages[0].objective and stage.compare == plain.stages[0].compare
    assert with_served(plain, load()) is plain


def test_a_label_without_a_pair_is_a_set_of_one():
    draft = asyncio.run(Labelled()(drawn({"chosen": "yes"}), Speller(), 0))  # type: ignore[arg-type]
    assert draft.sets == {"good": (0,), "bad": ()}
    assert draft.rollouts[0].behaviour is None  # no weight version of the run sampled it
    with pytest.raises(Drop, match="no_recorded_answer"):
        asyncio.run(Labelled()(drawn({}), Speller(), 0))  # type: ignore[arg-type]


def test_a_recipe_that_needs_to_know_who_sampled_is_refused(tmp_path: Path):
    settings = served_settings(tmp_path, "recipe=vision_r1")
    with pytest.raises(ValueError, match=r"data\.recorded_share: vision_r1 .*recorded answers do not have"):
        with_served(recipes.load("vision_r1", {}), settings)
    alone = settings.model_copy(update={"data": settings.data.model_copy(update={"recorded_share": 0.0})})
    assert replace(with_served(recipes.load("vision_r1", {}), alone)).name == "vision_r1"
