"""Methods that train judges and critics, and those that reinforce: what they reward, one golden each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from pipelines.recipes import load
from pipelines.types import Comparison, Rollout, Score

Play = Callable[..., Any]
GOOD = "a blue two top left and a green six top right ."  # the gold caption of the row


def score_of(comparison: Comparison, role: str) -> Score:
    score = next(c.score for c in comparison.candidates if c.role == role)
    assert score is not None
    return score


def last(tools: Any, count: int) -> list[Rollout]:
    return [rollout for rollout, _ in tools.rollouts[-count:]]


def test_critic_v_rewards_finding_inserted_errors(play: Play) -> None:
    """The prompt shows the flawed answer; the winner names more of what was put in (by Jaccard)."""
    _, done, (made,), _ = play("critic_v")
    (prompt,) = made.prompts
    errors = set(prompt.gold["errors"])
    said = " ".join(p.text for m in prompt.messages for p in m.parts)
    assert errors and all(word in said for word in errors) and "list what is not true" in said
    assert GOOD not in said
    best, worst = score_of(made, "w@c").value or 0, score_of(made, "l@c").value or 0
    assert 0 <= worst < best <= 1
    found = set(done.rollout("w").response.text.split())
    assert best == pytest.approx(len(errors & found) / len(errors | found))


def test_carevl_learns_verdicts(play: Play) -> None:
    """Stage 1: the told verdict says whether the better answer comes first. Stage 2: right against wrong."""
    for number, tools in (
        (0, None),
        (1, {"answers": (f"{GOOD[:-2]} and a red one bottom left .", "a blue two top left .")}),
    ):
        _, done, (made,), _ = play("carevl", number, tools)
        (prompt,) = made.prompts
        said = prompt.messages[-1].parts[-1].text
        first, second = said.split("first : ")[1].split(" is the first")[0].split(" second : ")
        assert {first, second} == {done.rollout("w").response.text, done.rollout("l").response.text}
        truth = "yes" if first == done.rollout("w").response.text else "no"
        assert prompt.gold["verdict"] == truth
        told = done.rollout("t" if number == 0 else "a").response.text
        assert told == truth
        if number:
            assert done.rollout("b").response.text != truth


def test_carevl_fails_clearly_without_its_judges(run: Play, glyphs_draft: Any, glyphs_tools: Any) -> None:
    stage = load("carevl", {"judges": ("right", "style")}).stages[0]
    with pytest.raises(ValueError, match=r"score part 'style', but the reward gives only \['malformed'"):
        run(stage, glyphs_draft(), glyphs_tools())


def test_unified_reward_duels_then_points(play: Play) -> None:
    """The winner won a duel, the loser lost one, and by points it is strictly better than every rival."""
    _, done, _, tools = play("unified_reward")
    winner, loser = done.chosen["w"], done.chosen["l"]
    assert winner in done.sets["winners"] and loser in done.sets["losers"]
    values = {i: done.scores[i].value for i in done.sets["duellists"]}
    assert values[winner] == max(values[i] for i in done.sets["winners"])
    assert values[loser] == min(values[i] for i in done.sets["losers"])
    assert values[winner] > values[loser]
    assert len(done.sets["winners"]) == len(done.sets["losers"]) <= 5 and len(tools.rollouts) == 10


def test_unified_reward_think_keeps_what_is_right(play: Play) -> None:
    _, done, (made,), _ = play("unified_reward_think", 1, correct=2.0)
    assert {c.role for c in made.candidates} == {"kept"}
    assert all((c.score.value or 0) >= 2.0 for c in made.candidates)
    assert len(made.candidates) < len(done.sets["y"])
    stage, done, (made,), _ = play("unified_reward_think", 2, correct=2.0)
    assert len(made.candidates) == 8 and stage.objective.terms[0][1].kl == 0.04


def test_llava_critic_r1_is_verifiable(play: Play) -> None:
    """A right verdict in form is worth 1, a wrong one 0.1, anything else 0."""
    _, done, (made,), _ = play("llava_critic_r1")
    truth = made.prompts[0].gold["verdict"]
    for candidate in made.candidates:
        said = made.responses[candidate.response].text
        assert candidate.score.value == pytest.approx(1.0 if said == truth else 0.1)
    assert len(made.candidates) == 8 == len(done.sets["v"])
    assert all(rollout.prompt == made.prompts[0] for rollout in last(_, 8))


@pytest.mark.parametrize(
    ("name", "advantage", "kl", "samples"),
    [("vision_r1", "group", 0.04, 4), ("fact_rlhf", "rloo", 0.1, 4), ("harmo", "centered", 0.04, 8)],
)
def test_policy_gradients_lift_the_best_answer(
    play: Play, read: Play, name: str, advantage: str, kl: float, samples: int
) -> None:
    """A step against the gradient raises the best answer and lowers the worst."""
    stage, _, (made,), _ = play(name)
    ((weight, term),) = stage.objective.terms
    assert (weight, term.advantage, term.kl) == (1.0, advantage, kl)
    assert len(made.candidates) == samples
    reads = read((made,))
    behaviour = {"behaviour": reads.tokens["policy"].detach(), "reference": reads.tokens["policy"].detach()}
    reads = type(reads)(**{**vars(reads), "tokens": {**reads.tokens, **behaviour}})
    term(reads).value.sum().backward()
    scores = reads.roles["y"].scores["value"]
    cells = reads.roles["y"].cell
    gradient = reads.tokens["policy"].grad.sum(-1)
    assert gradient[cells[scores.argmax()]] < 0 < gradient[cells[scores.argmin()]]


def test_vision_r1_asks_for_its_parts(run: Play, glyphs_draft: Any, glyphs_tools: Any) -> None:
    stage = load("vision_r1", {"parts": ("recall",)}).stages[0]
    with pytest.raises(ValueError, match=r"score parts \['recall'\]"):
        run(stage, glyphs_draft(), glyphs_tools())
