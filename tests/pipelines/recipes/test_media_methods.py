"""Methods with a media axis: what their comparisons show, and one golden or identity of each objective."""

from __future__ import annotations

import asyncio
import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from pipelines.perturbations.prompts import without_media
from pipelines.recipe import Stage
from pipelines.recipes import load
from pipelines.rollout import Draft, Drop
from pipelines.types import NOT_SCORED, Comparison, Media
from pipelines.worlds.glyphs.captions import mentions_of, read_caption
from pipelines.worlds.glyphs.scenes import Scene
from pipelines.worlds.glyphs.views import similarity

MakeDraft = Callable[..., Draft]
MakeTools = Callable[..., Any]
Play = Callable[..., Any]
THIRD = 10 * math.log(3)  # of rho: at beta 0.1 the logit ln 3, whose loss is ln(4/3)


@pytest.fixture
def play(run: Play, glyphs_draft: MakeDraft, glyphs_tools: MakeTools) -> Play:
    """(stage, draft, first comparison, tools) of a recipe on a caption row."""

    def go(name: str, stage: int = 0, **params: Any) -> tuple[Stage, Draft, Comparison, Any]:
        tools = glyphs_tools()
        built = load(name, params).stages[stage]
        done, made = run(built, glyphs_draft(), tools)
        return built, done, made[0], tools

    return go


def picture(draft: Draft, prompt: str, index: int = 0) -> Media:
    return draft.media[draft.prompts[prompt].media[index]]


def changed(draft: Draft, prompt: str) -> np.ndarray[Any, Any]:
    """[h, w] where the first picture of a prompt differs from the clean one."""
    return (picture(draft, prompt).payload != picture(draft, "x").payload).any(-1)


def box_mask(draft: Draft, words: set[str]) -> np.ndarray[Any, Any]:
    """[h, w] inside the boxes of the row's objects that have all of these words."""
    mask = np.zeros(picture(draft, "x").payload.shape[:2], dtype=bool)
    for entry in draft.prompt.gold["boxes"]:
        if words <= set(entry["words"]):
            x0, y0, x1, y1 = entry["box"]
            mask[y0:y1, x0:x1] = True
    return mask


def text_of(comparison: Comparison, role: str) -> str:
    (candidate,) = [c for c in comparison.candidates if c.role == role]
    return comparison.responses[candidate.response].text


def shown_to(comparison: Comparison, role: str) -> str:
    """The origin of the prompt that a role is scored under."""
    (candidate,) = [c for c in comparison.candidates if c.role == role]
    return comparison.prompts[candidate.prompt].origin


def test_mfpo_on_the_whole_picture_is_mdpo_but_for_the_damage() -> None:
    """With eta 0 and whole-image noise MFPO's objective and edges are mDPO's."""
    mfpo = load("mfpo", {"eta": 0.0, "regions": "whole", "curriculum": False}).stages[0]
    mdpo = load("mdpo", {}).stages[0]
    assert mfpo.objective == mdpo.objective
    assert mfpo.compare == mdpo.compare
    assert mfpo.order == mdpo.order


def test_chip_weighs_the_tokens_that_differ(play: Play, worth: Play) -> None:
    """At rho = 0 the three pairs are ln 2 each, weighed 1, 1 and lambda = 3; the token term is 0.1 (5 - 2).

    The segment score divides by its weights: with n tokens of which d differ, and all of rho on a shared one,
    it is rho / (n + 4 d).
    """
    stage, done, made, _ = play("chip")
    ((winner, loser),) = [e.spans["segment"] for e in made.preferences if e.name == "text"]
    a, b = done.rollout("w").response.tokens, done.rollout("l").response.tokens
    assert any(winner + loser) and winner[0] == loser[0] == 0.0  # both begin with "a"
    assert all(x == y for x, y, s in zip(a, b, winner, strict=False) if s == 0 and len(a) == len(b))
    kl = {"l@x": 5.0, "w@x": 2.0}
    assert worth(stage, made, {}, kl) == pytest.approx(5 * math.log(2) + 0.1 * 3, abs=1e-5)
    rho = 4.0
    length = len(winner) + 4 * sum(winner)
    pairs = math.log1p(math.exp(-0.5 * rho)) * 2  # text and media at beta 0.5, losers at 0
    segment = 3 * math.log1p(math.exp(-0.5 * rho / length))
    assert worth(stage, made, {"w@x": rho}) == pytest.approx(pairs + segment, abs=1e-5)


def test_chip_released_is_one_sigmoid(play: Play, worth: Play) -> None:
    """-log sigmoid(0.1 (text gap + media gap - 0.1 (KL_l - KL_w))) on a first token that both share."""
    stage, _, made, _ = play("chip_released")
    value = worth(stage, made, {"w@x": 3.0, "l@x": 1.0, "w@m": -2.0}, {"l@x": 7.0, "w@x": 2.0})
    assert value == pytest.approx(math.log1p(math.exp(-0.1 * (2.0 + 5.0 - 0.1 * 5.0))), abs=1e-6)


def test_realign_looks_at_a_real_neighbour(play: Play, worth: Play) -> None:
    """The rejected answer begins as the chosen one and was finished under the neighbour, not under x."""
    stage, done, made, tools = play("realign_rdpo", keep_low=0.4, keep_high=0.4)
    (rollout, _), *_ = tools.rollouts
    assert rollout.prompt == done.prompts["m"] and rollout.response.origin == "stitched"
    winner, loser = done.rollout("w").response.tokens, done.rollout("l").response.tokens
    assert winner[: int(0.4 * (len(winner) - 1))] == loser[: int(0.4 * (len(winner) - 1))]
    assert winner != loser and shown_to(made, "l@x") == "data"
    op = picture(done, "m").op
    assert op is not None and op.name == "retrieve" and changed(done, "m").any()
    assert worth(stage, made, {"w@x": 0.0, "l@x": -THIRD, "w@m": -THIRD}) == pytest.approx(
        2 * math.log(4 / 3), abs=1e-5
    )


def test_adavip_removes_one_object_of_the_answer(play: Play, worth: Play) -> None:
    """Pixels change inside one box alone. With one negative out of reach the softmax is DPO on the other."""
    stage, done, made, _ = play("adavip")
    where = changed(done, "m")
    hits = [
        box
        for entry in done.prompt.gold["boxes"]
        if (box := box_mask(done, set(entry["words"]))).any() and (where & box).any()
    ]
    assert len(hits) == 1
    x, y = np.nonzero(where)
    inside_x, inside_y = np.nonzero(hits[0])
    assert inside_x.min() - 1 <= x.min() and x.max() <= inside_x.max() + 1
    assert inside_y.min() - 1 <= y.min() and y.max() <= inside_y.max() + 1
    dpo = math.log(4 / 3)
    far = -1e5
    assert worth(stage, made, {"l@x": far, "w@m": -THIRD}) == pytest.approx(dpo, abs=1e-5)
    assert worth(stage, made, {"l@x": -THIRD, "w@m": far}) == pytest.approx(dpo, abs=1e-5)
    assert worth(stage, made, {}) == pytest.approx(math.log(3), abs=1e-6)


def test_mia_shows_several_pictures(play: Play, worth: Play) -> None:
    """A sequence has the row's picture among others; the answer to it was sampled and is scored there."""
    stage, done, made, _ = play("mia_dpo", layouts=("sequence",))
    prompt = done.prompts["c"]
    target = int(done.facts["target"])
    assert 2 <= len(prompt.media) <= 5 and prompt.media[target] == done.prompt.media[0]
    assert f"picture {target + 1} :" in "".join(p.text for m in prompt.messages for p in m.parts)
    assert done.rollout("l").prompt == prompt
    assert made.prompts == (prompt,)
    assert done.rollout("w").response.origin == "gold"
    assert worth(stage, made, {"l@c": -THIRD}) == pytest.approx(math.log(4 / 3), abs=1e-5)


def test_mia_keeps_answers_that_looked_elsewhere(
    run: Play, glyphs_draft: MakeDraft, glyphs_tools: MakeTools
) -> None:
    """All attention on the picture that is meant: nothing to learn from."""

    class Attentive(glyphs_tools):  # type: ignore[misc, valid-type]
        async def probe(self, prompt: Any, media: Any, responses: Any, *, attention: bool = False) -> Any:
            target = list(prompt.media).index(self.clean)
            self.attention_on = target
            probes = await super().probe(prompt, media, responses, attention=attention)
            alone = tuple(1.0 if i == target else 0.0 for i in range(len(prompt.media)))
            return [type(p)(logps=p.logps, top=p.top, attention=alone) for p in probes]

    stage = load("mia_dpo", {"layouts": ("sequence",)}).stages[0]
    with pytest.raises(AssertionError, match="not_distracted"):
        run(stage, glyphs_draft(), Attentive(), 2)


def test_mia_collage_is_one_larger_picture(play: Play) -> None:
    _, done, _, _ = play("mia_dpo", layouts=("collage",))
    (digest,) = done.prompts["c"].media
    op = done.media[digest].op
    assert op is not None and op.name == "collage"
    x0, y0, x1, y1 = op.params["box"]
    assert np.array_equal(done.media[digest].payload[y0:y1, x0:x1], picture(done, "x").payload)


def test_povid_scores_what_is_likely_under_noise(play: Play, worth: Play) -> None:
    """The online negative feeds the chosen answer and scores the argmax under the noised picture, at x.

    Both forms at gaps of 2 ln 3 / beta (text) and 0 (online), shares one half: (ln(10/9) + ln 2) / 2 as two
    losses, ln(4/3) in one sigmoid.
    """
    first, _, pair, _ = play("povid")
    assert [e.name for e in pair.preferences] == ["text"] and first.share == 3
    stage, done, made, _ = play("povid", 1)
    winner, online = done.rollout("w").response, done.rollout("n").response
    assert online.tokens == winner.tokens and online.targets is not None
    assert " ".join(online.text.split()).startswith("a green zero top left .")
    assert NOT_SCORED not in online.targets and online.targets != winner.tokens
    assert shown_to(made, "n@x") == "data" and picture(done, "m").op is not None
    rho = {"w@x": 0.0, "l@x": -2 * THIRD, "n@x": 0.0}
    assert worth(stage, made, rho) == pytest.approx((math.log(10 / 9) + math.log(2)) / 2, abs=1e-5)
    single = load("povid", {"form": "one_sigmoid"}).stages[1]
    assert worth(single, made, rho) == pytest.approx(math.log(4 / 3), abs=1e-5)


def test_opa_corrects_the_policys_own_answer(play: Play, read: Play) -> None:
    """Stage 2: the revision has no false mention, changed tokens weigh 2, 30% of the pixels are at the mean.

    The anchor on the revised answer, as released, lowers its log-ratio while the other lifts the gold one's.
    """
    first, _, learned, _ = play("opa_dpo")
    assert {c.role for c in learned.candidates} == {"gold", "revised"} and len(first.then) == 1
    stage, done, made, _ = play("opa_dpo", 1)
    there = set(mentions_of(Scene.from_json(done.prompt.gold["scene"])))
    assert set(read_caption(done.rollout("v").response.text).mentions) <= there
    assert not set(read_caption(done.rollout("y").response.text).mentions) <= there
    spans = {e.name: e.spans["severity"] for e in made.preferences if e.spans}
    assert set(spans) == {"revised", "revised_media"}
    assert set(spans["revised"][0]) <= {1.0, 2.0} and 2.0 in spans["revised"][1]
    assert spans["revised_media"][0] == spans["revised_media"][1] == spans["revised"][0]
    assert changed(done, "m").mean() == pytest.approx(0.3, abs=0.15)
    reads = read((made,))
    anchors = [term for _, term in stage.objective.terms if type(term).__name__ == "Anchor"]
    signs: list[float] = []
    for anchor in anchors:
        reads.tokens["policy"].grad = None
        anchor(reads).value.sum().backward()
        signs.append(float(reads.tokens["policy"].grad.sum()))  # type: ignore[union-attr]
    assert signs[0] < 0 < signs[1]


def test_tars_corrupts_what_is_fed_and_does_not_score_it(play: Play) -> None:
    _, done, made, _ = play("tars", share=0.2)
    for corrupted, clean in (("cw", "w"), ("cl", "l")):
        fed, whole = done.rollout(corrupted).response, done.rollout(clean).response
        hidden = [i for i, target in enumerate(fed.scored) if target == NOT_SCORED]
        assert len(hidden) == round(0.2 * len(whole.tokens)) and len(whole.tokens) - 1 not in hidden
        assert all(fed.tokens[i] != whole.tokens[i] for i in hidden)
        assert [t for t in fed.scored if t != NOT_SCORED] == [
            t for i, t in enumerate(whole.tokens) if i not in hidden
        ]
        assert text_of(made, "clean" if clean == "w" else "clean_loser") == whole.text
    assert changed(done, "m").mean() > 0.8
    edges = {
        e.name: (made.candidates[e.winner].role, made.candidates[e.loser].role) for e in made.preferences
    }
    assert edges == {"text": ("cw@x", "cl@x"), "media": ("cw@x", "cw@m")}


def test_mmedpo_blackens_the_region_and_starts_unweighted(play: Play, worth: Play) -> None:
    """Before a spread of relevances is known, every pair weighs 1: two pairs at ln(4/3)."""
    stage, done, made, _ = play("mmedpo")
    mask = box_mask(done, set())
    where = changed(done, "m")
    assert where.any() and not (where & ~mask).any()
    assert picture(done, "m").payload[where].mean() < 20
    rho = {"l@x": -THIRD, "w@m": -THIRD}
    assert worth(stage, made, rho) == pytest.approx(2 * math.log(4 / 3), abs=1e-5)
    spread = {
        "z_value/mean": 0.0,
        "z_value/square": 1.0,
    }  # the winner's score 2 is two deviations up: 1 + 2 -> 2
    assert worth(stage, made, rho, carry=spread) == pytest.approx(4 * math.log(4 / 3), abs=1e-5)


def test_omnidpo_damages_one_kind_of_media_at_a_time(
    play: Play, worth: Play, run: Play, glyphs_draft: MakeDraft, glyphs_tools: MakeTools
) -> None:
    stage, done, made, _ = play("omnidpo")
    assert [e.name for e in made.preferences] == ["text", "image"]
    assert made.axis(made.preferences[1]) == "media" and changed(done, "image").any()
    assert worth(stage, made, {"l@x": -THIRD, "w@image": -THIRD}) == pytest.approx(
        2 * math.log(4 / 3), abs=1e-5
    )
    omni = load("omnidpo", {"kinds": ("video", "audio")})
    assert omni.stages[0].compare.emits == {"text", "video", "audio"}
    with pytest.raises(AssertionError, match="no_video_to_damage"):
        run(omni.stages[0], glyphs_draft(), glyphs_tools(), 1)
    with pytest.raises(ValueError, match="each kind of media once"):
        load("omnidpo", {"kinds": ("image", "image")})


def test_pami_takes_the_nearby_damage_that_tells_most(play: Play) -> None:
    """Among the kept candidates none changes more of the picture, which is what this policy's falls go by."""
    _, done, made, _ = play("pami_vdpo")
    (edge,) = made.preferences
    assert made.axis(edge) == "media" and done.rollout("w").response.origin == "gold"
    kept = [name for name in done.prompts if name.startswith("c/")]
    shares = {name: changed(done, name).mean() for name in kept}
    assert len(kept) >= 2
    assert changed(done, "m").mean() == max(shares.values())


def test_lpoi_hides_the_key_object_more_and_more(play: Play, worth: Play) -> None:
    """Each picture hides what the one before it hid and more. Equal scores: ln 5! + ln 2 + ln 2."""
    stage, done, made, _ = play("lpoi")
    masks = [changed(done, f"g/{level}") for level in range(4)]
    sizes = [int(mask.sum()) for mask in masks]
    assert sizes == sorted(sizes) and sizes[0] > 0
    assert all((small <= large).all() for small, large in itertools.pairwise(masks))
    assert not (masks[-1] & ~box_mask(done, set())).any()
    assert {c.role for c in made.candidates} >= {"shown", "hidden0", "hidden3"}
    assert worth(stage, made, {}) == pytest.approx(math.log(120) + 2 * math.log(2), abs=1e-5)


def test_ovip_draws_what_the_rejected_answer_says(play: Play, worth: Play) -> None:
    stage, done, made, _ = play("ovip", gap=1.0, of_std=0.0, floor=1.0)
    loser = read_caption(text_of(made, "l@x")).mentions
    op = picture(done, "m/0").op
    assert op is not None and op.name == "generate"
    there = set(mentions_of(Scene.from_json(done.prompt.gold["scene"])))
    assert set(loser) != there
    (fit,) = similarity(picture(done, "m/0"), [done.prompt.gold["answer"]], done.prompt.gold)
    (clean,) = similarity(picture(done, "x"), [done.prompt.gold["answer"]], done.prompt.gold)
    assert clean == pytest.approx(1.0) and fit <= clean and changed(done, "m/0").any()
    assert worth(stage, made, {"l@x": -THIRD, "w@m": -THIRD}) == pytest.approx(
        2 * math.log(4 / 3) + math.log(2), abs=1e-5
    )


def test_ovip_pairs_are_gated_and_gold_steps_in(
    run: Play, glyphs_draft: MakeDraft, glyphs_tools: MakeTools
) -> None:
    """Good samples give up to 3 pairs, best with worst. With bad ones alone the gold answer is chosen."""
    stage = load("ovip", {"gap": 1.0, "of_std": 0.0, "floor": 2.0}).stages[0]
    _, made = run(stage, glyphs_draft(), glyphs_tools())
    assert len(made) == 3 and [c.id for c in made] == ["g/0", "g/1", "g/2"]
    for comparison in made:
        first, second = (comparison.candidates[i].score.value for i in (0, 1))
        assert first - second >= 1.0 and first >= 2.0
    wrong = ("a red one top left and a red one top right .", "a red one top left .")
    done, made = run(stage, glyphs_draft(), glyphs_tools(answers=wrong))
    assert len(made) == 1 and done.rollout("w").response.origin == "gold"


def test_molpo_follows_the_task(play: Play, worth: Play) -> None:
    """One object is painted over. With R = -1 carried and mean log-probs r_w = 0, r_l = 0:

    NLL 0 + -log sigmoid(0 - (-0.5) (-1)) + -log sigmoid(0 - (-1)): the gap is asked to be 0.5.
    """
    stage, done, made, _ = play("molpo")
    boxes = [box_mask(done, set(entry["words"])) for entry in done.prompt.gold["boxes"]]
    assert sum(bool((changed(done, "m") & box).any()) for box in boxes) == 1
    expected = math.log1p(math.exp(0.5)) + math.log1p(math.exp(-1.0))
    assert worth(stage, made, {}, carry={"chosen": -1.0}) == pytest.approx(expected, abs=1e-5)


def test_molpo_s_beta_scales_gap_bound_and_target_alike(play: Play, worth: Play) -> None:
    """beta = 2, R = -1, mean log-probs r_w = -1 and r_l = -4: the gap 3 is cut to clip |R| = 2.

    NLL 1 + -log sigmoid(2 (2 - 0.5)) + -log sigmoid(-4 + 1); beta does not touch the last. Without a clip
    the second is at 2 (3 - 0.5).
    """
    for params, logit in (({}, 3.0), ({"clip": None}, 5.0)):
        stage, _, made, _ = play("molpo", beta=2.0, **params)
        length = len(made.responses[0].tokens)
        rho = {"w@x": -1.0 * length, "w@m": -4.0 * length}
        expected = 1 + math.log1p(math.exp(-logit)) + math.log1p(math.exp(3.0))
        assert worth(stage, made, rho, carry={"chosen": -1.0}) == pytest.approx(expected, abs=1e-5)


def test_molpo_refuses_a_target_that_its_negative_mean_would_turn_around() -> None:
    with pytest.raises(ValueError, match=r"molpo: lam must not be positive, since R is negative; got 0.5"):
        load("molpo", {"lam": 0.5})


def test_media_methods_drop_prompts_without_media(glyphs_draft: MakeDraft, glyphs_tools: MakeTools) -> None:
    """A prompt that shows nothing is a named drop, whatever the damage."""
    draft = glyphs_draft()
    bare = Draft(prompts={"x": without_media(draft.prompt)}, media=draft.media)
    for name in (
        "chip",
        "adavip",
        "mia_dpo",
        "lpoi",
        "bpo_mmsafe",
        "bdhs",
        "napo",
        "uv_cot",
        "sport",
        "task_po",
    ):
        with pytest.raises(Drop) as caught:
            asyncio.run(load(name, {}).stages[0].rollout(bare, glyphs_tools(clean=draft.prompt.media[0]), 3))
        assert caught.value.reason in ("no_media_to_damage", "not_one_picture", "tie", "no_boxes"), name
