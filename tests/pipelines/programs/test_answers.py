"""Steps that sample, continue, record and edit answers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from pipelines.decoding import FromReference
from pipelines.perturbations.text import DeleteWords
from pipelines.programs.continuing import Continue, SentenceGuided
from pipelines.programs.editing import Corrupt, Edited, Graded, Rewrite
from pipelines.programs.given import Gold, Offline, Recorded
from pipelines.programs.probing import TopTokens
from pipelines.programs.sampling import Foreign, Judged, JudgedBy, Pool, Sample
from pipelines.rewards.rules import Length
from pipelines.rollout import Draft, Drop, Step
from pipelines.types import NOT_SCORED, Message, Part, Prompt, Response, Rollout

MakeDraft = Callable[..., Draft]
MakeTools = Callable[..., Any]


def run(step: Step, draft: Draft, tools: Any, seed: int = 5) -> Draft:
    return asyncio.run(step(draft, tools, seed))


def with_gold(draft: Draft, **columns: Any) -> Draft:
    prompt = draft.prompt
    told = Prompt(id=prompt.id, messages=prompt.messages, gold={**prompt.gold, **columns})
    return Draft(prompts={"x": told}, media=draft.media)


def given(draft: Draft, tools: Any, **texts: str) -> Draft:
    """The draft with chosen answers."""
    for name, text in texts.items():
        rollout = Rollout(prompt=draft.prompt, response=tools.words.answer(text, "gold"))
        draft = draft.with_rollouts(name, (rollout,))
    return draft


def test_samples_are_judged_only_when_asked(make_draft: MakeDraft, make_tools: MakeTools) -> None:
    tools = make_tools()
    draft = run(Sample(2, "a", decoder=FromReference(), judged=False), make_draft(), tools)
    assert draft.scores == (None, None) and tools.decoders == [FromReference()]
    assert Sample(2, decoder=FromReference()).needs == {"reference"}
    judged = run(Judged("a"), draft, tools)
    assert [score.value for score in judged.scores if score] == [1.0, 0.0]


def test_a_single_sample_is_chosen_by_its_name(make_draft: MakeDraft, make_tools: MakeTools) -> None:
    draft = run(Sample(1, "n", judged=False), make_draft(), make_tools())
    assert draft.rollout("n") == draft.rollouts[0] and draft.sets == {"n": (0,)}


def test_samples_under_another_prompt_keep_it(make_draft: MakeDraft, make_tools: MakeTools) -> None:
    other = Prompt(id="row-0", messages=(Message(role="user", parts=(Part(kind="text", text="say"),)),))
    draft = make_draft().with_prompt("blind", other)
    done = run(Sample(2, under="blind", judged=False), draft, make_tools())
    assert {rollout.prompt.digest for rollout in done.rollouts} == {other.digest}
    with pytest.raises(ValueError, match="no earlier step made the prompt 'm'"):
        run(Sample(1, under="m"), draft, make_tools())


def test_a_pool_holds_each_answer_once(make_draft: MakeDraft, make_tools: MakeTools) -> None:
    tools = make_tools()
    draft = run(Sample(2, "a", judged=False) >> Sample(1, "b", judged=False), make_draft(), tools)
    pooled = run(Pool("both", ("a", "b")) >> Pool("again", ("both", "a")), draft, tools)
    assert pooled.sets["both"] == pooled.sets["again"] == (0, 1, 2)


def test_a_rule_of_the_method_may_add_the_runs_reward(make_draft: MakeDraft, make_tools: MakeTools) -> None:
    """Lengths 7 and 13 with the end; the run's reward 1 and missing. 7 + 2 * 1, and the other is missing."""
    draft = run(Sample(2, judged=False), make_draft(), make_tools())
    alone = run(JudgedBy("y", Length()), draft, make_tools())
    assert [score.value for score in alone.scores if score] == [7.0, 13.0]
    both = run(JudgedBy("y", Length(), run_weight=2.0), draft, make_tools(scores=(1.0, None)))
    first, second = both.scores
    assert first is not None and first.value == 9.0 and first.parts["reward"] == 1.0
    assert second is not None and second.missing == "no verdict"


def test_foreign_answers(make_draft: MakeDraft, make_tools: MakeTools) -> None:
    draft, tools = make_draft(), make_tools()
    with pytest.raises(Drop, match="no_foreign_answer"):
        run(Foreign("f"), draft, tools)
    tools.other = Rollout(prompt=draft.prompt, response=Response(tokens=(4, 2), text="other"))
    assert run(Foreign("f"), draft, tools).rollout("f") is tools.other


def test_recorded_answers(make_draft: MakeDraft, make_tools: MakeTools) -> None:
    tools = make_tools()
    row = with_gold(make_draft(), answer="a dog .", chosen="a dog .", rejected="a cat .", empty="")
    done = run(Gold() >> Offline() >> Recorded("n", "rejected"), row, tools)
    assert [done.rollout(name).response.text for name in "gwln"] == [
        "a dog .",
        "a dog .",
        "a cat .",
        "a cat .",
    ]
    assert all(r.behaviour is None and r.response.origin == "gold" for r in done.rollouts)
    for step, reason in (
        (Recorded("n", "empty"), "no_empty"),
        (Recorded("n", "none"), "no_none"),
        (Recorded("n", "boxes"), "no_boxes"),
    ):
        with pytest.raises(Drop, match=reason):
            run(step, row, tools)
    with pytest.raises(Drop, match="same_response"):
        run(Offline(), with_gold(make_draft(), chosen="a dog .", rejected="a dog ."), tools)


@pytest.mark.parametrize(("share", "kept"), [(0.0, 0), (0.5, 3), (1.0, 5)])
def test_continuing_keeps_a_share_and_never_the_end(
    share: float, kept: int, make_draft: MakeDraft, make_tools: MakeTools
) -> None:
    """Of six words at most five are kept, so that the policy always has something to say."""
    tools = make_tools(answers=("a red seven top left .", "blue"))
    draft = run(Sample(1, "w", judged=False), make_draft(), tools)
    done = run(Continue("l", of="w", low=share, high=share), draft, tools)
    assert tools.prefixes[-1] == draft.rollout("w").response.tokens[:kept]
    assert done.rollout("l").response.text.split()[:kept] == ["a", "red", "seven", "top", "left", "."][:kept]
    assert Continue("l", of="w").needs == {"prefix"}


def test_continuing_to_the_same_answer_is_a_drop(make_draft: MakeDraft, make_tools: MakeTools) -> None:
    tools = make_tools(answers=("a b c", "c"))
    draft = run(Sample(1, "w", judged=False), make_draft(), tools)
    with pytest.raises(Drop, match="same_response"):
        run(Continue("l", of="w", low=0.9, high=0.9), draft, tools)
    with pytest.raises(ValueError, match=r"0 <= low <= high <= 1, got 0.5 and 0.2"):
        Continue("l", of="w", low=0.5, high=0.2)


def test_sentences_are_guided_one_by_one(make_draft: MakeDraft, make_tools: MakeTools) -> None:
    """Both sentences are cut; each completion ends at its stop and sees the *true* sentences before it."""
    tools = make_tools(answers=("x . never", "y . never"))
    draft = given(make_draft(), tools, w="one two three . four five six .")
    done = run(SentenceGuided("n", of="w", under="x", similar=0.9), draft, tools)
    winner, guided = draft.rollout("w").response, done.rollout("n").response
    first, second = tools.prefixes
    assert winner.tokens[: len(first)] == first and 1 <= len(first) <= 3
    assert winner.tokens[: len(second)] == second and 5 <= len(second) <= 7
    said = guided.text.split()
    assert said.count(".") == 2 and "never" not in said and "x" in said and "y" in said
    assert guided.tokens[-1] == tools.words.END and done.rollout("n").behaviour is None


def test_guidance_that_changes_nothing_ends_unguided(make_draft: MakeDraft, make_tools: MakeTools) -> None:
    """Two tries sound alike; the third answer is free. If even that is the same there is nothing to learn."""
    step = SentenceGuided("n", of="w", under="x", tries=2, measure=lambda a, b: 1.0)
    tools = make_tools(answers=("a .", "b .", "something else ."))
    done = run(step, given(make_draft(), tools, w="one two ."), tools)
    assert done.rollout("n").response.text == "something else ." and tools.prefixes[-1] == ()
    same = make_tools(answers=("one two .",))
    with pytest.raises(Drop, match="same_response"):
        run(step, given(make_draft(), same, w="one two ."), same)


def test_yes_and_no_are_flipped(make_draft: MakeDraft, make_tools: MakeTools) -> None:
    tools = make_tools(answers=("maybe .",))
    flipped = run(
        SentenceGuided("n", of="w", under="x", flip=1.0), given(make_draft(), tools, w="yes ."), tools
    )
    assert flipped.rollout("n").response.text == "no" and not tools.asked
    kept = run(SentenceGuided("n", of="w", under="x", flip=0.0), given(make_draft(), tools, w="yes"), tools)
    assert kept.rollout("n").response.text != "no"


def test_edits_must_change_something(make_draft: MakeDraft, make_tools: MakeTools) -> None:
    tools = make_tools(
        edits={"correct": lambda text: text.replace("red", "blue"), "refine": lambda text: text}
    )
    draft = given(make_draft(), tools, y="a red one .")
    done = run(Edited("v", of="y", kind="correct"), draft, tools)
    assert done.rollout("v").response.text == "a blue one ." and done.rollout("v").response.origin == "edited"
    for step in (Edited("v", of="y", kind="refine"), Rewrite("v", "y", lambda text, gold, seed: f" {text} ")):
        with pytest.raises(Drop, match="edit_changed_nothing"):
            run(step, draft, tools)


def test_graded_answers_lose_more_and_more(make_draft: MakeDraft, make_tools: MakeTools) -> None:
    tools = make_tools()
    step = Graded("d", "y", (DeleteWords(0.0), DeleteWords(0.5), DeleteWords(1.0)))
    done = run(step, given(make_draft(), tools, y="red seven and blue nine"), tools)
    lengths = [len(done.rollouts[i].response.tokens) for i in done.sets["d"]]
    assert lengths == sorted(lengths, reverse=True) and len(set(lengths)) == 3
    assert done.rollout("d/0").response.text == "red seven and blue nine"
    assert step.makes == {"d", "d/0", "d/1", "d/2"}


def test_corruption_goes_where_the_picture_is_not(make_draft: MakeDraft, make_tools: MakeTools) -> None:
    """Of five words three fit the picture wholly, so only the two others can be corrupted; never the end."""

    def similarity(media: Any, texts: Any, gold: Any) -> tuple[float, ...]:
        return tuple(0.0 if text in ("maybe", "dog") else 1.0 for text in texts)

    tools = make_tools()
    draft = given(make_draft(), tools, w="red maybe seven dog left")
    done = run(Corrupt({"cw": "w"}, 0.8, similarity), draft, tools)
    response = done.rollout("cw").response
    assert [i for i, t in enumerate(response.scored) if t == NOT_SCORED] == [1, 3]
    assert draft.rollout("w").response.targets is None
    uniform = run(Corrupt({"cw": "w"}, 1.0), draft, tools).rollout("cw").response
    assert uniform.scored == (NOT_SCORED,) * 5 + (tools.words.END,)


def test_top_tokens_are_targets(make_draft: MakeDraft, make_tools: MakeTools) -> None:
    tools = make_tools(top=lambda prompt, word: "blue" if word == "red" else word)
    draft = given(make_draft(), tools, w="a red one")
    done = run(TopTokens("n", of="w", under="x"), draft, tools)
    response = done.rollout("n").response
    assert response.tokens == draft.rollout("w").response.tokens and response.text == "a blue one"
    assert response.targets == tools.words.answer("a blue one").tokens
    with pytest.raises(Drop, match="same_response"):
        run(TopTokens("n", of="w", under="x"), draft, make_tools(words=tools.words))
