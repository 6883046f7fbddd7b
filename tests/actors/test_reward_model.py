"""Real reward models: one that sees, on the embedded base model, and small text-only ones."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from actors.reward_model import Answered, Pair, Ranking, Rated, RewardModel, Trained
from pipelines.checkpoint import NotACheckpoint
from pipelines.data import GlyphsSource
from pipelines.rewards import judge_group
from pipelines.rewards.models.heads import Attributes, IdealPoint, Mixture, Prototypes
from pipelines.rewards.models.training import Fit
from pipelines.types import Message, Part, Prompt, Response, Rollout
from pipelines.worlds.glyphs import BASE_MODEL
from pipelines.worlds.glyphs.edits import inject


def captions(count: int, seed: int) -> list[Pair]:
    """The true caption of a picture against itself with one error."""
    source = GlyphsSource(count=count, seed=seed)
    pairs: list[Pair] = []
    for position in range(count):
        prompt, media = source.prompt(source.row(None, position))
        truth = str(prompt.gold["answer"])
        answers = (truth, inject(truth, prompt.gold, seed=position)[0])
        winner, loser = (Answered(prompt=prompt, media=media, text=text) for text in answers)
        pairs.append(Pair(winner=winner, loser=loser))
    return pairs


def before_another_picture(pairs: list[Pair]) -> list[Pair]:
    """The same captions, judged before the picture of the next pair."""

    def moved(answer: Answered, other: Answered) -> Answered:
        return replace(answer, prompt=other.prompt, media=other.media)

    following = pairs[1:] + pairs[:1]
    return [
        Pair(winner=moved(pair.winner, other.winner), loser=moved(pair.loser, other.winner))
        for pair, other in zip(pairs, following, strict=True)
    ]


@pytest.fixture(scope="module")
def seeing(tmp_path_factory: pytest.TempPathFactory) -> tuple[RewardModel, float, list[Pair], Path]:
    """Trained on 480 comparisons for 30 steps of 16; with its accuracy before, and where it is saved."""
    held_out = captions(150, seed=2)
    model = RewardModel.start(BASE_MODEL)
    history = model.fit(captions(480, seed=1), held_out, Fit(steps=30, batch=16, lr=5e-4, every=30))
    before = history.held_out[0][1]
    folder = tmp_path_factory.mktemp("reward") / "model"
    model.save(folder)
    return model, before, held_out, folder


def test_it_learns_to_see_errors_and_needs_the_picture(seeing):
    """150 pairs: the error of an accuracy of 0.5 is 0.04, so 0.7 is five of them away from chance."""
    model, before, held_out, _ = seeing
    after, elsewhere = model.accuracy(held_out), model.accuracy(before_another_picture(held_out))
    assert after > 0.7 and after > before + 0.1
    assert after > elsewhere + 0.1


def test_a_saved_model_scores_groups_as_it_did(seeing):
    model, _, held_out, folder = seeing
    said = json.loads((folder / "reward.json").read_text())
    assert said == {"head": {"kind": "Scalar", "centre": 0.001}, "context": None}
    pair = held_out[0]
    answers = [pair.winner, pair.loser]
    rollouts = [Rollout(prompt=a.prompt, response=Response(tokens=(1, 2), text=a.text)) for a in answers]
    reward = Trained(folder)
    scores = asyncio.run(judge_group(reward, rollouts, pair.winner.media))
    expected = model.score(answers)[0].tolist()
    assert [s.value for s in scores] == pytest.approx(expected, abs=1e-5)
    assert expected[0] != expected[1] and scores[0].parts == {}
    unseen = asyncio.run(judge_group(reward, rollouts, {}))
    assert all("missing from the media table" in str(s.missing) for s in unseen)
    typed = replace(rollouts[0], response=Response(tokens=(), text="a red <|image_pad|> ."))
    alone = asyncio.run(judge_group(reward, [typed], pair.winner.media))
    assert "special token" in str(alone[0].missing)


def test_a_batch_scores_as_its_members_do(seeing):
    model, _, held_out, _ = seeing
    answers = [answer for pair in held_out[:4] for answer in (pair.winner, pair.loser)]
    together = model.score(answers)[0]
    alone = torch.cat([model.score([answer])[0] for answer in answers])
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("lost", ["reward.json", "reward_head.safetensors"])
def test_a_folder_that_is_no_reward_model(seeing, tmp_path, lost):
    import shutil

    folder = shutil.copytree(seeing[3], tmp_path / "copy")
    (folder / lost).unlink()
    with pytest.raises(NotACheckpoint, match=lost):
        RewardModel.load(folder)
    (folder / lost).write_text("{}")
    with pytest.raises(NotACheckpoint, match="does not load"):
        RewardModel.load(folder)


# -- text only -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import LlamaConfig, LlamaForCausalLM

    from pipelines.worlds.glyphs.model import build_tokenizer

    folder = tmp_path_factory.mktemp("llama")
    tokenizer = build_tokenizer()
    torch.manual_seed(5)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=128,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def asked(context: str, question: str = "write digits .") -> Prompt:
    parts = (("system", context), ("user", question))
    return Prompt(
        id=f"{context}-{question}",
        messages=tuple(Message(role=r, parts=(Part(kind="text", text=t),)) for r, t in parts),
    )


def by_length(count: int, start: int) -> list[Pair]:
    """Each comparison twice: under "long" the longer answer wins, under "short" the shorter one."""
    words = ["one", "two", "three", "four", "five", "six", "seven", "eight"]
    pairs: list[Pair] = []
    for i in range(start, start + count):
        brief = " ".join(words[(i + j) % 8] for j in range(1 + i % 2))
        full = " ".join(words[(3 * i + j) % 8] for j in range(4 + i % 3))
        for context, order in (("long", (full, brief)), ("short", (brief, full))):
            won, lost = (Answered(prompt=asked(context), media={}, text=t) for t in order)
            pairs.append(Pair(winner=won, loser=lost))
    return pairs


def test_a_context_decides_what_is_better(llama):
    """Without the context every comparison meets its reverse, so accuracy is exactly one half."""
    how = Fit(steps=50, batch=16, lr=3e-3, every=25)
    train, held_out = by_length(100, 0), by_length(30, 500)
    told = RewardModel.start(llama)
    told.fit(train, held_out, how)
    untold = RewardModel.start(llama, context="")
    untold.fit(train, held_out, how)
    assert told.accuracy(held_out) > 0.9
    assert untold.accuracy(held_out) == 0.5


def of_users(count: int, start: int, length: int = 2) -> list[Pair]:
    """User 0 likes "red" answers, user 1 "blue" ones."""
    pairs: list[Pair] = []
    for i in range(start, start + count):
        digit = ["one", "two", "three", "four", "five"][i % 5]
        for user, order in enumerate((("red", "blue"), ("blue", "red"))):
            won, lost = (
                Answered(prompt=asked("good"), media={}, text=f"a {colour} {digit}", user=user)
                for colour in order
            )
            pairs.append(Pair(winner=won, loser=lost))
    return pairs


@pytest.mark.parametrize("spec", [IdealPoint(2, dimension=16), Prototypes(2, dimension=16)])
def test_users_who_disagree(llama, spec, tmp_path):
    model = RewardModel.start(llama, spec)
    model.fit(of_users(60, 0), of_users(10, 1), Fit(steps=80, batch=16, lr=1e-2, every=40))
    assert model.accuracy(of_users(10, 1)) == 1.0
    model.save(tmp_path)
    prompt = replace(asked("good"), gold={"user": 1})
    rollouts = [
        Rollout(prompt=prompt, response=Response(tokens=(), text=t)) for t in ("a red one", "a blue one")
    ]
    red, blue = asyncio.run(judge_group(Trained(tmp_path, user="user"), rollouts, {}))
    assert blue.value > red.value
    nobody = [replace(r, prompt=asked("good")) for r in rollouts]
    lost = asyncio.run(judge_group(Trained(tmp_path, user="user"), nobody, {}))
    assert [s.value for s in lost] == [None, None] and "KeyError: 'user'" in str(lost[0].missing)


def test_the_second_stage_teaches_the_router_alone(llama):
    model = RewardModel.start(llama, Mixture(heads=2, hidden=16))
    how = Fit(steps=10, batch=16, lr=3e-3, every=10)
    model.fit(by_length(60, 0), by_length(20, 500), how)
    kept = {name: p.detach().clone() for name, p in model.named_parameters()}
    model.fit_router(by_length(20, 200), by_length(20, 500), replace(how, steps=5, every=5), tau=0.5)
    assert all(torch.equal(p, kept[name]) for name, p in model.named_parameters() if "router" not in name)
    assert all(p.requires_grad for p in model.parameters())
    with pytest.raises(TypeError, match="only a Mixture head"):
        RewardModel.start(llama).fit_router([], [], how, tau=1.0)


def test_ratings_of_attributes(llama, tmp_path):
    """Helpfulness is the number of digits, brevity its opposite; one of them is not rated here and there."""
    digits = ["one", "two", "three", "four", "five"]

    def rated(count: int, start: int) -> list[Rated]:
        items: list[Rated] = []
        for i in range(start, start + count):
            n = 1 + i % 5
            ratings = {"helpful": n / 5, **({"brief": 1 - n / 5} if i % 3 else {})}
            text = " ".join(digits[(i * 7 + j) % 5] for j in range(n))
            items.append(Rated(answer=Answered(prompt=asked("good"), media={}, text=text), ratings=ratings))
        return items

    model = RewardModel.start(llama, Attributes(("helpful", "brief")))
    history = model.fit_ratings(rated(100, 0), rated(20, 1), Fit(steps=80, batch=16, lr=3e-3, every=20))
    assert history.best > -0.02  # mean squared error; that of the mean alone is 0.08
    model.save(tmp_path)
    texts = ("one", "one two three four five")
    rollouts = [Rollout(prompt=asked("good"), response=Response(tokens=(), text=t)) for t in texts]
    brief, full = asyncio.run(judge_group(Trained(tmp_path), rollouts, {}))
    assert full.parts["helpful"] > brief.parts["helpful"] and full.parts["brief"] < brief.parts["brief"]
    with pytest.raises(TypeError, match="train an Attributes head"):
        RewardModel.start(llama).fit_ratings([], [], Fit())


def test_a_frozen_backbone_stays(llama):
    model = RewardModel.start(llama).freeze_backbone()
    kept = [p.clone() for p in model.backbone.parameters()]
    model.fit(by_length(20, 0), by_length(5, 500), Fit(steps=3, batch=8, lr=1e-2, every=3))
    assert all(torch.equal(p, k) for p, k in zip(model.backbone.parameters(), kept, strict=True))


def ranked(count: int, start: int) -> list[Ranking]:
    """Two or three answers each; more digits are better."""
    digits = ["one", "two", "three", "four", "five", "six"]
    lists: list[Ranking] = []
    for i in range(start, start + count):
        lengths = (5 + i % 2, 3, 1)[: 2 + i % 2]
        texts = (" ".join(digits[(5 * i + j) % 6] for j in range(n)) for n in lengths)
        answers = tuple(Answered(prompt=asked("good"), media={}, text=text) for text in texts)
        lists.append(Ranking(answers=answers, labels=lengths))
    return lists


def test_lists_of_any_length_are_ranked(llama, monkeypatch):
    """Four steps with pairs up to two apart: the reach is 1, 1, 2, 2."""
    held_out, model = ranked(20, 500), RewardModel.start(llama)
    history = model.fit_ranking(ranked(60, 0), held_out, Fit(steps=40, batch=8, lr=3e-3, every=20))
    assert history.best == model.concordance(held_out) > 0.95
    assert sum(history.losses[-5:]) < sum(history.losses[:5])
    reaches: list[int] = []

    def noted(scores: torch.Tensor, labels: torch.Tensor, reach: int, gap: float) -> torch.Tensor:
        reaches.append(reach)
        return scores.sum(-1)

    monkeypatch.setattr("actors.reward_model.skip_wise", noted)
    model.fit_ranking(ranked(4, 0), held_out, Fit(steps=4, batch=2, lr=1e-5, every=4), skip=2)
    assert reaches == [1, 1, 2, 2]


def test_a_list_scores_as_its_losses_say(llama):
    """A list of 2 beside one of 3: Plackett-Luce of each alone; of 2 with the labels apart, both losses are
    -log sigmoid(s_1 - s_2), so the first step's loss of that list is 1.5 times it."""
    model = RewardModel.start(llama)
    short = ranked(1, 0)
    first, second = model.score(short[0].answers)[0]
    history = model.fit_ranking(short, short, Fit(steps=1, batch=1, lr=1e-6, every=1))
    expected = -1.5 * torch.nn.functional.logsigmoid(first - second)
    assert history.losses[0] == pytest.approx(expected.item(), abs=1e-5)
    scores, labels = model._listed(ranked(2, 0))
    assert labels.isnan().tolist() == [[False, False, True], [False] * 3]
    torch.testing.assert_close(scores[0, :2], model.score(short[0].answers)[0], atol=1e-5, rtol=1e-4)


def test_lists_that_are_no_rankings():
    answers = ranked(1, 1)[0].answers
    for labels, why in (((3.0, 2.0), "2 labels for 3 answers"), ((1.0, 2.0, 0.0), "from best to worst")):
        with pytest.raises(ValueError, match=why):
            Ranking(answers=answers, labels=labels)
    with pytest.raises(ValueError, match="not all alike"):
        Ranking(answers=answers, labels=(1.0, 1.0, 1.0))


def test_a_reranker_moves_from_its_reference(llama):
    """Before the first step every score is the reference's, so the loss is log 2 whatever the scores are."""
    model = RewardModel.start(llama)
    chunks = by_length(40, 0)
    history = model.fit_reranker(
        chunks, by_length(15, 500), Fit(steps=50, batch=16, lr=3e-3, every=25), beta=1.0
    )
    assert history.losses[0] == pytest.approx(0.693147, abs=1e-4)
    assert history.best == model.accuracy(by_length(15, 500)) > 0.8
