"""Damage to prompts: what the model sees changes, so the digest does; everything else stays."""

from __future__ import annotations

import json

import pytest

from pipelines.perturbations.prompts import VisualDrop, add_text, with_act, without_media, without_text
from pipelines.types import Message, Part, Prompt

IMAGE = Part(kind="image", digest="d1")
SAY = Part(kind="text", text="describe .")


def prompt(*parts: Part) -> Prompt:
    system = Message(role="system", parts=(Part(kind="text", text="be brief"),))
    return Prompt(id="p", messages=(system, Message(role="user", parts=parts)), gold={"answer": "x"})


def test_without_media_leaves_the_words() -> None:
    clean = prompt(IMAGE, SAY, Part(kind="video", digest="d2"))
    blind = without_media(clean, "blind")
    assert blind.messages == prompt(SAY).messages
    assert (blind.media, blind.origin, blind.id, blind.gold) == ((), "blind", "p", {"answer": "x"})
    assert blind.digest != clean.digest
    assert blind.digest == prompt(SAY).digest
    assert without_media(prompt(IMAGE)).messages[1].parts == (Part(kind="text", text=""),)
    with pytest.raises(ValueError, match="prompt p: it has no media"):
        without_media(blind)


def test_without_text_leaves_the_media_and_the_system() -> None:
    clean = prompt(IMAGE, SAY)
    silent = without_text(clean)
    assert silent.messages == prompt(IMAGE).messages
    assert (silent.media, silent.origin) == (clean.media, "without_text")
    assert silent.digest != clean.digest
    with pytest.raises(ValueError, match="it has no media"):
        without_text(prompt(SAY))


def test_added_text_ends_the_last_user_message() -> None:
    answered = Message(role="assistant", parts=(Part(kind="text", text="so"),))
    clean = prompt(IMAGE, SAY)
    clean = Prompt(id="p", messages=(*clean.messages, answered))
    added = add_text(clean, "say red .", "constraint")
    assert [part.text for part in added.messages[1].parts] == ["", "describe . say red ."]
    assert added.messages[2] == answered
    assert (added.media, added.origin) == (clean.media, "constraint")
    assert added.digest != clean.digest
    behind = add_text(prompt(SAY, IMAGE), "say red .", "constraint")
    assert behind.messages[1].parts == (SAY, IMAGE, Part(kind="text", text="say red ."))
    assert add_text(prompt(), "say red .", "c").messages[1].parts == (Part(kind="text", text="say red ."),)
    with pytest.raises(ValueError, match="no user message"):
        add_text(Prompt(id="p", messages=(answered,)), "x", "c")


def test_visual_drop_is_an_act_of_the_prompt() -> None:
    op = VisualDrop(0.9).op(7)
    assert op.to_json() == {
        "name": "visual_drop",
        "params": {"space": "embeddings", "rho": 0.9, "strength": 0.9},
        "seed": 7,
    }
    json.dumps(op.to_json())
    clean = prompt(IMAGE, SAY)
    dropped = with_act(clean, op)
    assert (dropped.acts, dropped.media, dropped.origin) == ((op,), clean.media, "visual_drop")
    assert len({clean.digest, dropped.digest, with_act(clean, VisualDrop(0.9).op(8)).digest}) == 3
    assert with_act(dropped, op).acts == (op, op)
    with pytest.raises(ValueError, match=r"expected a probability, got 1\.1"):
        VisualDrop(1.1)
