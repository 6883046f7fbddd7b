"""Multimodal methods whose pairs differ in the answer: where each answer comes from, and one golden each."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest

from pipelines.decoding import Contrast, FromReference, Grounded
from pipelines.recipe import MergeAdapter, Refresh
from pipelines.recipes import load
from pipelines.references import NoReference
from pipelines.rewards.random import Random
from pipelines.rewards.rules import Parts
from pipelines.rollout import Draft
from pipelines.types import Comparison, Score
from pipelines.worlds.glyphs.captions import mentions_of, read_caption
from pipelines.worlds.glyphs.scenes import Scene

MakeDraft = Callable[..., Draft]
MakeTools = Callable[..., Any]
Play = Callable[..., Any]
THIRD = 10 * math.log(3)  # of rho: at beta 0.1 the logit ln 3, whose loss is ln(4/3)
GOOD = "a blue two top left and a green six top right ."  # the gold caption of the row


def score_of(comparison: Comparison, role: str) -> Score:
    score = next(c.score for c in comparison.candidates if c.role == role)
    assert score is not None
    return score


def scored_under(comparison: Comparison, role: str) -> str:
    candidate = next(c for c in comparison.candidates if c.role == role)
    return comparison.prompts[candidate.prompt].origin


def is_true(done: Draft, name: str) -> bool:
    there = set(mentions_of(Scene.from_json(done.prompt.gold["scene"])))
    return set(read_caption(done.rollout(name).response.text).mentions) <= there


def test_clip_dpo_gates(run: Play, glyphs_draft: MakeDraft, glyphs_tools: MakeTools, worth: Play) -> None:
    """A gap of 3 is kept; one below the wanted, a much longer loser and a winner below the floor are not."""
    recipe = load("clip_dpo", {"samples": 2}).stages[0]
    answers = (GOOD, "a red one top left and a green six top right .")
    _, (made,) = run(recipe, glyphs_draft(), glyphs_tools(answers=answers))
    assert score_of(made, "w@x").value == 2 and score_of(made, "l@x").value == -1
    assert worth(recipe, made, {"l@x": -THIRD}) == pytest.approx(math.log(4 / 3), abs=1e-5)
    long = f"{GOOD} and a red one bottom left and a red two bottom right ."
    for params, others, reason in (
        ({"gap": 4.0}, answers, "gap_too_small"),
        ({}, (GOOD, long), "length_ratio"),
        ({"floor": 3.0}, answers, "winner_below_floor"),
    ):
        stage = load("clip_dpo", {"samples": 2, **params}).stages[0]
        with pytest.raises(AssertionError, match=reason):
            run(stage, glyphs_draft(), glyphs_tools(answers=others), 1)


def test_bdhs_answers_with_its_eyes_nearly_shut(play: Play, worth: Play) -> None:
    """n was sampled with hidden tokens, is scored under x, and begins as the chosen answer does."""
    stage, done, (made,), tools = play("bdhs")
    rollout, _ = tools.rollouts[0]
    (act,) = rollout.prompt.acts
    assert act.name == "visual_drop" and act.params["rho"] == 0.99
    assert not made.prompts[0].acts and scored_under(made, "n@x") == "data"
    winner, guided = done.rollout("w").response, done.rollout("n").response
    assert guided.origin == "stitched" and guided.tokens[0] == winner.tokens[0]
    assert guided.tokens != winner.tokens and guided.tokens[-1] == winner.tokens[-1]
    rho = {"l@x": -THIRD, "n@x": 0.0}
    assert worth(stage, made, rho) == pytest.approx((math.log(4 / 3) + math.log(2)) / 2, abs=1e-5)


@pytest.mark.parametrize(("p", "origin"), [(1.0, "gold"), (0.0, "sampled")])
def test_mixed_dpo_draws_its_source(play: Play, p: float, origin: str) -> None:
    _, _, (made,), _ = play("mixed_dpo", p=p)
    assert {r.origin for r in made.responses} == {origin}


def test_bpo_loser_was_generated_without_the_picture(play: Play, worth: Play) -> None:
    stage, done, (made,), _ = play("bpo_mmsafe")
    blind = done.rollout("b")
    assert blind.prompt.media == () and blind.prompt.messages[0].parts[0].kind == "text"
    assert scored_under(made, "b@x") == "data" and made.axis(made.preferences[1]) == "text"
    assert worth(stage, made, {"l@x": -THIRD, "b@x": -THIRD}) == pytest.approx(2 * math.log(4 / 3), abs=1e-5)


@pytest.mark.parametrize(
    ("name", "decoder"), [("m3id_dpo", Grounded()), ("vdd", Contrast(alpha=1.0, cutoff=0.1))]
)
def test_a_decoder_teaches_the_policy(play: Play, name: str, decoder: Any) -> None:
    stage, done, _, tools = play(name)
    assert tools.rollouts[-2][1] == decoder
    assert done.rollout("w").behaviour.stream == "contrast"
    assert done.rollout("l").behaviour.stream == "policy"
    assert stage.needs == {"contrast"}
    assert load("m3id_dpo", {"loser": "blind"}).stages[0].rollout != load("m3id_dpo", {}).stages[0].rollout


def test_dcd_trains_one_side_on_the_projector(play: Play, worth: Play, read: Play) -> None:
    """The negative run moves the rejected answer's likelihood alone, without a reference."""
    stage, _, (made,), _ = play("dcd")
    assert isinstance(stage.reference, NoReference) and stage.objective.views == {"policy"}
    import re

    (pattern,) = stage.trainable
    assert re.search(pattern, "model.visual.merger.mlp.0.weight")
    assert not re.search(pattern, "model.language_model.layers.0.mlp.up_proj.weight")
    reads = read((made,))
    for _, term in stage.objective.terms:
        term(reads).value.sum().backward()
    table = reads.edges["text"]
    gradient = reads.tokens["policy"].grad.abs().sum(-1)
    assert gradient[table.loser].item() > 0 == gradient[table.winner].item()
    assert worth(load("dcd", {"side": "positive"}).stages[0], made, {"w@x": -3.0}) == pytest.approx(
        3.0 / len(made.responses[made.candidates[0].response].tokens), abs=1e-6
    )


def test_napo_doubts_noisy_pairs(play: Play, worth: Play) -> None:
    """At h = 0, q is one half: (1 - 2^-0.5) / 0.5 twice. One loser saw no picture, the other no words."""
    stage, done, (made,), _ = play("napo")
    assert done.rollout("b").prompt.media == ()
    seen = done.rollout("v").prompt
    assert seen.media and all(part.digest for message in seen.messages for part in message.parts)
    assert {scored_under(made, role) for role in ("b@x", "v@x")} == {"data"}
    assert worth(stage, made, {}) == pytest.approx(2 * (1 - 2**-0.5) / 0.5, abs=1e-5)


def test_rrpo_learns_where_the_answers_differ(play: Play, read: Play) -> None:
    """Loser sampled under damage, scored clean, and worse; the pair moves no token that both share."""
    stage, done, (made,), _ = play("rrpo")
    assert done.rollout("l").prompt == done.prompts["m"] and scored_under(made, "l@x") == "data"
    assert (score_of(made, "w@x").value or 0) > (score_of(made, "l@x").value or 0)
    reads = read((made,))
    pair = stage.objective.terms[0][1]
    pair(reads).value.sum().backward()
    table = reads.edges["text"]
    for side, cell in zip(table.spans["concept"], (table.winner, table.loser), strict=True):
        moved = reads.tokens["policy"].grad[cell[0]] != 0
        assert moved.tolist() == (side[0] > 0).tolist()
        assert 0 < int(moved.sum()) < int(reads.lengths[cell[0]])
    weight, token_kl = stage.objective.terms[1]
    assert weight == 0.01
    loss = token_kl(reads)
    kl = reads.features["kl_forward"][table.winner].sum()
    assert float(loss.value.sum() / loss.weight.sum()) == pytest.approx(float(kl), abs=1e-5)


def test_temple_damages_less_and_less(run: Play, glyphs_draft: MakeDraft, glyphs_tools: MakeTools) -> None:
    """Masked shares 15/16, 7/8, 3/4, 1/2; the reference is renewed after each; fine-tuning comes last."""
    *stages, tuned = load("temple", {}).stages
    shares: list[float] = []
    for stage in stages:
        done, _ = run(stage, glyphs_draft(), glyphs_tools())
        op = done.media[done.prompts["m"].media[0]].op
        shares.append(op.params["share"])
        assert done.rollout("l").prompt == done.prompts["m"] and done.rollout("w").response.text == GOOD
        assert stage.then == (Refresh(),)
    assert shares == [15 / 16, 7 / 8, 3 / 4, 1 / 2]
    assert isinstance(tuned.reference, NoReference) and not tuned.then
    merged = load("temple", {"lora": True}).stages[0].then
    assert merged == (MergeAdapter(), Refresh())
    assert len(load("temple", {"fine_tune": 0.0}).stages) == 4


def test_mrdpo_rounds_and_rebirth(play: Play, worth: Play) -> None:
    """DPO + 0.1 NLL; then the model of the start learns answers of the last one."""
    recipe = load("mrdpo", {"rounds": 3})
    assert [stage.then for stage in recipe.stages] == [(Refresh(),)] * 3 + [()]
    plain = load("mrdpo", {"rounds": 2, "rebirth": False})
    assert [stage.then for stage in plain.stages] == [(Refresh(),), ()]
    with pytest.raises(ValueError, match="at least 1 round, got 0"):
        load("mrdpo", {"rounds": 0})
    stage, done, (made,), _ = play("mrdpo")
    gold = done.rollout("g").response
    value = worth(stage, made, {"l@x": -THIRD, "gold": -2.0 * len(gold.tokens)})
    shared = done.rollout("w").response.tokens == gold.tokens
    rho = -2.0 * len(gold.tokens) if shared else 0.0
    dpo = math.log1p(math.exp(-0.1 * (rho + THIRD)))
    assert value == pytest.approx(dpo + 0.1 * 2.0, abs=1e-5)
    last_stage, done, (made,), tools = play("mrdpo", 4)
    assert last_stage.init == "start"
    assert tools.rollouts[-1][1] == FromReference()
    assert done.rollout("y").behaviour.stream == "reference"


@pytest.mark.parametrize(("name", "number"), [("haven_tdpo", 1), ("cat_adpo", 0)])
def test_corrected_answers_are_preferred(play: Play, name: str, number: int) -> None:
    _, done, (made,), _ = play(name, number)
    assert is_true(done, "w") and not is_true(done, "l")
    assert done.rollout("w").response.origin == "edited" and done.rollout("l").behaviour is not None
    if name == "haven_tdpo":
        ((winner, loser),) = [edge.spans["segment"] for edge in made.preferences]
        assert set(winner) | set(loser) == {0.0, 1.0}


def test_aigi_holmes_has_two_sources(play: Play) -> None:
    """Prompted pairs are sampled under opposite instructions and scored under the plain prompt."""
    _, done, (made,), _ = play("aigi_holmes", 1, prompted_share=1.0, negative="look less .")
    origins = [done.rollout(name).prompt.origin for name in ("w", "l")]
    assert origins == ["positive", "negative"] and {p.origin for p in made.prompts} == {"data"}
    _, done, _, _ = play("aigi_holmes", 1, prompted_share=0.0)
    assert is_true(done, "w") and done.rollout("w").response.origin == "edited"


def test_uv_cot_looks_ahead_and_subtracts_the_score_gap(play: Play, worth: Play) -> None:
    """s = s_now + 0.5 s_next; at rho = 0 the loss is -log sigmoid(-(s_w - s_l)). Without margin it is DPO."""
    stage, _, made, _ = play("uv_cot")
    for comparison in made:
        for role in ("w@x", "l@x"):
            score = score_of(comparison, role)
            assert score.value == score.parts["current"] + 0.5 * score.parts["next"]
        gap = (score_of(comparison, "w@x").value or 0) - (score_of(comparison, "l@x").value or 0)
        assert gap > 0
        assert worth(stage, comparison, {}) == pytest.approx(math.log1p(math.exp(gap)), abs=1e-4)
    released = load("uv_cot", {"margin": 0.0}).stages[0]
    assert worth(released, made[0], {}) == pytest.approx(math.log(2), abs=1e-6)
    assert len(made) == 2 and [c.id for c in made] == ["g/0", "g/1"]


def test_uv_cot_looks_closer_at_distinct_answers_alone(play: Play) -> None:
    _, done, _, tools = play("uv_cot", distinct=True)
    kept = done.members("y")
    assert len({frozenset(done.rollouts[i].response.text.split()) for i in kept}) == len(kept)
    assert sum(len(r.prompt.messages) == 3 for r, _ in tools.rollouts) == len(kept)


def test_uv_cot_shows_the_region_that_the_answer_speaks_of(play: Play) -> None:
    """The second turn shows a crop: of all boxes that the answer names, enlarged to the picture's size."""
    _, done, _, tools = play("uv_cot")
    following = [r.prompt for r, _ in tools.rollouts if len(r.prompt.messages) == 3]
    assert following
    for prompt in following:
        question, answer, again = prompt.messages
        assert question == done.prompt.messages[0] and answer.role == "assistant"
        assert again.parts[0].digest and again.parts[0].digest != prompt.media[0]


def test_sport_prefers_steps(play: Play, worth: Play) -> None:
    """One comparison per step; the second step's prompt holds the best first action and its result."""
    seen: list[Any] = []

    class Watching(Parts):
        def __call__(self, prompt: Any, response: Any) -> Score:
            seen.append(prompt.gold.get("observation"))
            return super().__call__(prompt, response)

    def rate(prompt: Any, response: Any) -> dict[str, float]:
        told = set(read_caption(response.text).mentions)
        there = set(mentions_of(Scene.from_json(prompt.gold["scene"])))
        return {"right": float(len(told & there)), "wrong": -float(len(told - there))}

    stage, done, made, _ = play("sport", tools={"reward": Watching(rate)})
    assert seen and all(note is not None and "box" in note for note in seen)
    assert 1 <= len(made) <= 2
    second = done.prompts["s/1"]
    assert second.messages[1].parts[0].text == done.rollout("w/0").response.text
    assert len(second.media) == 2
    for comparison in made:
        best = score_of(comparison, "w@s").value or 0
        losers = [c.score.value for c in comparison.candidates if c.role == "l@s"]
        assert losers and max(losers) < best and len(comparison.prompts) == 1
        assert worth(stage, comparison, {"l@s": -THIRD}) == pytest.approx(math.log(4 / 3), abs=1e-5)


def test_synthalign_trains_on_made_pictures(play: Play) -> None:
    """Sampled and scored under a picture that was drawn from the gold caption, not under the row's own."""
    _, done, (made,), _ = play("synthalign_pds")
    (prompt,) = made.prompts
    drawn = done.media[prompt.media[0]]
    assert drawn.op is not None and drawn.op.name == "generate" and drawn.parent == done.prompt.media[0]
    assert done.rollout("w").prompt == prompt == done.rollout("l").prompt
    candidates = [name for name in done.prompts if name.startswith("c/")]
    assert len(candidates) == 3 and prompt.digest in {done.prompts[name].digest for name in candidates}


def test_synthalign_takes_answers_of_other_models(play: Play) -> None:
    """Two models with three answers each, judged together; none of the policy."""
    _, done, (made,), tools = play(
        "synthalign_pds", tools={"reward": Random()}, models=("one", "two"), samples=3
    )
    assert [decoder.path for _, decoder in tools.rollouts] == ["one"] * 3 + ["two"] * 3
    assert {r.behaviour.stream for r, _ in tools.rollouts} == {"checkpoint"}
    best, worst = (score_of(made, role).value for role in ("w@s", "l@s"))
    values = [done.scores[i].value for i in done.members("y")]
    assert len(values) == 6 and (best, worst) == (max(values), min(values))


def test_remedy_asks_for_its_aspects(
    play: Play, run: Play, glyphs_draft: MakeDraft, glyphs_tools: Any
) -> None:
    stage = load("remedy_regression", {"aspects": ("helpfulness", "right")}).stages[0]
    with pytest.raises(
        ValueError, match=r"score parts \['helpfulness'\].*gives only \['malformed', 'missed'"
    ):
        run(stage, glyphs_draft(), glyphs_tools())
    rated = Parts(lambda prompt, response: {"right": float(len(response.tokens)), "helpfulness": 1.0})
    _, (made,) = run(stage, glyphs_draft(), glyphs_tools(reward=rated))
    assert (score_of(made, "w@x").value or 0) > (score_of(made, "l@x").value or 0)


def test_internvl_mpo(play: Play, worth: Play, run: Play, glyphs_draft: Any, glyphs_tools: Any) -> None:
    """A caption cannot be verified: DropoutNTP. At rho = 0: 0.8 ln 2 + 0.4 ln 2 (BCO's mean, twice) + NLL 0.

    A question can: right against wrong.
    """
    stage, done, (made,), _ = play("internvl_mpo")
    winner, loser = done.rollout("w").response, done.rollout("l")
    half = (len(winner.tokens) - 1) // 2
    assert loser.prompt.media == () and loser.response.origin == "stitched"
    assert loser.response.tokens[:half] == winner.tokens[:half] and scored_under(made, "l@x") == "data"
    assert worth(stage, made, {}) == pytest.approx(1.2 * math.log(2), abs=1e-5)
    done, (made,) = run(stage, glyphs_draft(questions=1.0), glyphs_tools())
    assert score_of(made, "w@x").value == 1 and score_of(made, "l@x").value == -1


def test_task_po_heads_have_targets(play: Play) -> None:
    """The first box as shares of the picture, and the number of boxes as a class."""
    stage, done, (made,), _ = play("task_po")
    (candidate,) = made.candidates
    parts = candidate.score.parts
    box = done.prompt.gold["boxes"][0]["box"]
    assert [parts[f"box.{corner}"] * 64 for corner in ("x0", "y0", "x1", "y1")] == pytest.approx(box)
    assert parts["boxes"] == 2.0
    assert {head.name: head.outputs for head in stage.objective.heads} == {"box": 4, "count": 9}
