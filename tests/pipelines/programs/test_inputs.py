"""Steps that change what the model is shown."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from pipelines.perturbations.constraints import FAMILIES, Constraint
from pipelines.perturbations.diffuse import Diffuse
from pipelines.perturbations.fill import Fill
from pipelines.perturbations.regions import OneObject
from pipelines.programs.asking import Ask, Constrained, Widened, explain
from pipelines.programs.damaging import (
    Blind,
    Damage,
    DamageMany,
    LargestFall,
    LeastSimilar,
    MostSimilar,
    Near,
    VisualDropped,
    Wordless,
)
from pipelines.rollout import Draft, Drop, Step
from pipelines.types import Media, Part, Prompt, Rollout

MakeDraft = Callable[..., Draft]
MakeTools = Callable[..., Any]


def run(step: Step, draft: Draft, tools: Any, seed: int = 5) -> Draft:
    return asyncio.run(step(draft, tools, seed))


def given(draft: Draft, tools: Any, **texts: str) -> Draft:
    for name, text in texts.items():
        rollout = Rollout(prompt=draft.prompt, response=tools.words.answer(text, "gold"))
        draft = draft.with_rollouts(name, (rollout,))
    return draft


def picture(draft: Draft, prompt: str) -> Any:
    return draft.media[draft.prompts[prompt].media[0]].payload


def asked(draft: Draft, prompt: str) -> str:
    return " ".join(part.text for m in draft.prompts[prompt].messages for part in m.parts if part.text)


def test_only_the_named_kind_is_damaged(make_draft: MakeDraft, make_tools: MakeTools) -> None:
    draft = make_draft()
    sound = Media(kind="audio", space="pcm", payload=np.zeros(16, dtype=np.float32))
    message = draft.prompt.messages[0]
    heard = type(message)(role="user", parts=(*message.parts, Part(kind="audio", digest=sound.digest)))
    both = Draft(
        prompts={"x": Prompt(id="row", messages=(heard,))}, media={**draft.media, sound.digest: sound}
    )
    done = run(Damage("m", Diffuse(500), kinds=("image",)), both, make_tools())
    (image, audio), (clean, untouched) = done.prompts["m"].media, both.prompt.media
    assert image != clean and audio == untouched == sound.digest
    with pytest.raises(Drop, match="no_video_to_damage"):
        run(Damage("m", Diffuse(500), kinds=("video",)), both, make_tools())


def test_damage_can_be_stacked(make_draft: MakeDraft, make_tools: MakeTools) -> None:
    tools = make_tools()
    twice = Damage("a", Diffuse(200)) >> Damage("b", Fill("black"), under="a")
    done = run(twice, make_draft(), tools)
    assert not picture(done, "b").any()
    assert done.media[done.prompts["b"].media[0]].parent == done.prompts["a"].media[0]


def test_many_damages_leave_out_what_changes_nothing(make_draft: MakeDraft, make_tools: MakeTools) -> None:
    """Two objects, four asked for: they come round, so the third and fourth equal the first two."""
    tools = make_tools()
    draft = given(make_draft(), tools, w="a red seven top left and a blue one bottom right .")
    step = DamageMany("c", (Fill("black"),), tuple(OneObject(which) for which in range(4)))
    done = run(step, draft, tools)
    assert [name for name in done.prompts if name.startswith("c/")] == ["c/0", "c/1"]
    assert step.makes == {"c/0", "c/1", "c/2", "c/3"}
    first, second = (picture(done, name) != picture(done, "x") for name in ("c/0", "c/1"))
    assert first[3:20, 2:12].any() and not first[22:40, 31:56].any()
    assert second[22:40, 31:56].any() and not second[3:20, 2:12].any()
    with pytest.raises(Drop, match="no_media_to_damage"):
        run(step, given(make_draft(images=0), tools, w="a dog"), tools)


def brightness(media: Media, texts: Any, gold: Any) -> tuple[float, ...]:
    return tuple(float(media.payload.mean()) for _ in texts)


def test_the_picture_that_fits_least_or_best(make_draft: MakeDraft, make_tools: MakeTools) -> None:
    tools = make_tools()
    draft = given(make_draft(), tools, w="a dog")
    done = run(DamageMany("c", (Fill("grey"), Fill("black"), Fill("white"))), draft, tools)
    least = run(LeastSimilar("m", among="c", of="w", similarity=brightness), done, tools)
    most = run(MostSimilar("m", among="c", of="w", similarity=brightness), done, tools)
    assert least.prompts["m"] == done.prompts["c/1"] and most.prompts["m"] == done.prompts["c/2"]


def test_close_then_far(make_draft: MakeDraft, make_tools: MakeTools) -> None:
    """White is left out for being far; of those kept the one with the least log-probability is taken."""
    tools = make_tools(logp=lambda prompt, word: -2.0 if prompt.origin == "c/2" else -1.0)
    draft = given(make_draft(), tools, w="a dog")
    done = run(DamageMany("c", (Fill("grey"), Fill("white"), Diffuse(5))), draft, tools)

    def grey_is_near(media: Media) -> Any:
        return np.array([1.0, 0.0]) if media.payload.mean() < 200 else np.array([0.0, 1.0])

    kept = run(Near("c", 0.5, grey_is_near), done, tools)
    assert [kept.prompts[f"c/{i}"].origin for i in range(2)] == ["c/0", "c/2"] and "c/2" not in kept.prompts
    chosen = run(LargestFall("m", among="c", of="w"), kept, tools)
    assert chosen.prompts["m"].origin == "c/2" and LargestFall("m", "c", "w").needs == {"probe"}
    with pytest.raises(Drop, match="no_damage_close_enough"):
        run(Near("c", 0.5, lambda media: np.array([float(media.payload.mean() < 100)])), kept, tools)


def test_blind_wordless_and_half_asleep(make_draft: MakeDraft, make_tools: MakeTools) -> None:
    draft = make_draft()
    done = run(Blind() >> Wordless() >> VisualDropped("dropped", 0.9), draft, make_tools())
    assert done.prompts["blind"].media == () and asked(done, "blind") == "describe"
    assert done.prompts["wordless"].media == draft.prompt.media and asked(done, "wordless") == ""
    (act,) = done.prompts["dropped"].acts
    assert act.params["rho"] == 0.9 and done.prompts["dropped"].media == draft.prompt.media
    assert len({prompt.digest for prompt in done.prompts.values()}) == 4
    assert VisualDropped().needs == {"acts"}
    for step in (Blind(), Wordless(), VisualDropped()):
        with pytest.raises(Drop, match="no_media_to_damage"):
            run(step, make_draft(images=0), make_tools())


def test_asking_fills_in_answers_and_columns(make_draft: MakeDraft, make_tools: MakeTools) -> None:
    tools = make_tools(answers=("because .",))
    draft = given(make_draft(), tools, w="a dog", l="a cat")
    done = run(Ask("q", "{w} or {l} , {boxes} ?", of=("w", "l")), draft, tools)
    assert asked(done, "q").startswith("describe a dog or a cat , [{'box'")
    assert done.prompts["q"].media == draft.prompt.media
    with pytest.raises(Drop, match="no_caption"):
        run(Ask("q", "{caption}"), draft, tools)
    told = run(explain(template="why {w} , not {l} ?"), draft, tools)
    assert asked(told, "xwl") == "describe why a dog , not a cat ?"
    assert told.rollout("e").prompt == told.prompts["xwl"] and told.rollout("e").response.text == "because ."


def satisfied(instruction: str, text: str) -> bool:
    """Whether the text satisfies the constraint about "a dog" that says this."""
    known: list[Constraint] = [c for family in FAMILIES for c in family.about("a dog", ())]
    return next(c for c in known if c.instruction() == instruction)(text)


def test_constraints_hold_and_are_broken(make_draft: MakeDraft, make_tools: MakeTools) -> None:
    tools = make_tools()
    draft = given(make_draft(), tools, y="a dog")
    for seed in range(30):
        done = run(Constrained(), draft, tools, seed)
        kept, broken = (asked(done, name).removeprefix("describe ") for name in ("xw", "xl"))
        assert satisfied(kept, "a dog") and not satisfied(broken, "a dog")


def test_widening_tells_the_two_answers_apart(make_draft: MakeDraft, make_tools: MakeTools) -> None:
    tools = make_tools()
    draft = given(make_draft(), tools, w="a dog", l="a cat .")
    for seed in range(10):
        said = asked(run(Widened(), draft, tools, seed), "xt").removeprefix("describe ")
        assert satisfied(said, "a dog") and not satisfied(said, "a cat .")
    with pytest.raises(Drop, match="no_constraint"):
        run(Widened(), given(make_draft(), tools, w="a dog", l="a dog"), tools)
