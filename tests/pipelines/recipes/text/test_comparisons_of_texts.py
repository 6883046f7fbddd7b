"""What text recipes compare that change answers or prompts: edits, rationales, deletions, instructions,
examples."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest

from pipelines.perturbations.constraints import FAMILIES, Constraint
from pipelines.types import NOT_SCORED

Play = Callable[..., Any]


def value(candidate: Any) -> float:
    assert candidate.score is not None and candidate.score.value is not None
    return candidate.score.value


def test_fine_grained_edits_mark_edited_tokens_alone(play: Play) -> None:
    played = play("fine_grained_edits")
    _, _, corrected = played.side("text", "winner")
    _, _, answer = played.side("text", "loser")
    assert (corrected.origin, answer.origin) == ("edited", "sampled")
    (edge,) = played.one.preferences
    assert any(sum(weights) > 0 for weights in edge.spans["edited"])
    for response, other, weights in zip(
        (corrected, answer), (answer, corrected), edge.spans["edited"], strict=True
    ):
        assert len(weights) == len(response.tokens) and set(weights) <= {0.0, 1.0}
        kept = [t for t, w in zip(response.tokens, weights, strict=True) if w == 0]
        rest = iter(other.tokens)
        assert all(token in rest for token in kept)  # what is not marked is common to both, in order
    assert edge.spans["edited"][0][-1] == edge.spans["edited"][1][-1] == 0  # the end of both


def test_language_feedback_prefers_the_refined_answer(play: Play) -> None:
    played = play("language_feedback")
    refined, own = played.side("text", "winner"), played.side("text", "loser")
    assert (refined[2].origin, own[2].origin) == ("edited", "sampled")
    assert value(refined[0]) > value(own[0])
    unchecked = play("language_feedback", checked=False)
    assert all(score is None for score in unchecked.draft.scores)


@pytest.mark.parametrize("name", ["rationale_dpo", "rationale_orpo"])
def test_rationales_are_asked_about_both_answers(name: str, play: Play) -> None:
    played = play(name)
    ((candidate, prompt, _),) = played.role("e")
    asked = prompt.messages[-1].parts[-1].text
    for side in ("winner", "loser"):
        assert played.side("text", side)[2].text in asked
    assert candidate.sampled_under == prompt.digest and candidate.score is None
    assert played.side("text", "winner")[1] == played.draft.prompt


def test_spo_degrees_delete_more_and_more(play: Play) -> None:
    played = play("spo_degrees", classes=4)
    chosen = played.side("text", "winner")[2].text.split()
    texts = [played.role(f"degree/{k}")[0][2].text.split() for k in range(4)]
    assert texts[0] == chosen
    assert all(len(less) > len(more) for less, more in pairwise(texts))
    for text in texts:
        rest = iter(chosen)
        assert all(word in rest for word in text)


def said(prompt: Any) -> str:
    return prompt.messages[-1].parts[-1].text


def constraint(instruction: str, text: str) -> Constraint:
    """The constraint about a text that reads like this."""
    every = [c for family in FAMILIES for c in family.about(text, text.split())]
    return next(c for c in every if instruction.endswith(c.instruction()))


def test_mapl_knows_which_instructions_an_answer_satisfies(play: Play) -> None:
    played = play("mapl")
    _, kept, answer = played.side("prompt", "winner")
    _, broken, same = played.side("prompt", "loser")
    assert answer is same is played.side("text", "winner")[2]
    assert constraint(said(kept), answer.text)(answer.text)
    assert not constraint(said(broken), answer.text)(answer.text)
    _, wide, _ = played.side("wide", "winner")
    loser = played.side("wide", "loser")
    assert loser[1] == wide and loser[2] == played.side("text", "loser")[2]
    found = constraint(said(wide), answer.text)
    assert found(answer.text) and not found(loser[2].text)
    assert {edge.key for edge in played.one.preferences} == {0}  # so that `Linear` joins the two gaps
    assert {e.name for e in play("mapl", inter=False).one.preferences} == {"text", "prompt"}


SHOTS = [{"question": f"q{i}", "chosen": f"good{i}", "rejected": f"bad{i}"} for i in range(4)]


def test_fspo_shows_the_users_choices_in_both_stages(play: Play) -> None:
    for stage, role in ((0, "w"), (1, "w@xu")):
        played = play("fspo", stage, gold={"shots": SHOTS}, shots=3)
        ((_, prompt, response),) = played.role(role)
        shown = prompt.messages[0].parts[0].text
        assert all(f"{k}{i}" in shown for k in ("q", "good", "bad") for i in range(3)) and "q3" not in shown
        assert prompt.messages[1:] == played.draft.prompt.messages
        assert response.text == played.draft.prompt.gold["chosen"]
    assert played.side("text", "loser")[1] == prompt
    with pytest.raises(AssertionError, match="no_shots"):
        play("fspo", gold={"shots": SHOTS[:2]})


def test_mcr_shows_the_chosen_answer_another_picture(play: Play) -> None:
    played = play("mcr")
    (_, own, one), (_, swapped, other) = (played.side("media", side) for side in ("winner", "loser"))
    assert one is other and own == played.draft.prompt
    picture = played.draft.media[swapped.media[0]]
    assert picture.op is not None and picture.op.name == "swap"
    assert (picture.payload != played.draft.media[own.media[0]].payload).any()


def test_single_source_can_be_compared_with_a_strong_chosen_answer(play: Play) -> None:
    played = play("single_source", source="strong_chosen")
    chosen, rejected = played.side("text", "winner"), played.side("text", "loser")
    assert chosen[2].text == played.draft.prompt.gold["answer"] and chosen[0].behaviour is None
    assert rejected[0].behaviour.stream == "policy"
    played = play("single_source", source="strong_chosen", strong="another")
    chosen, rejected = played.side("text", "winner"), played.side("text", "loser")
    assert (chosen[0].behaviour.stream, rejected[0].behaviour.stream) == ("checkpoint", "policy")
    with pytest.raises(ValueError, match='only source="strong_chosen" has a stronger model'):
        play("single_source", strong="another")


def test_every_answer_is_scored_whole(play: Play) -> None:
    """No text recipe hides tokens from its loss."""
    for name in ("dpo", "xpo", "mapl", "fine_grained_edits", "spo_degrees"):
        for response in play(name).one.responses:
            assert NOT_SCORED not in response.scored
