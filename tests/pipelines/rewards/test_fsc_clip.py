"""FSC-CLIP: its losses by hand, and a tiny random CLIP that learns to tell captions from near misses."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from pipelines.rewards.fsc_clip import (
    Captioned,
    ClipScore,
    ClipTowers,
    FscClip,
    Views,
    accuracy,
    contrastive,
    hard_negatives,
    local_similarity,
    train,
)
from pipelines.rewards.models.training import Fit
from pipelines.types import Media, Message, Part, Prompt, Response


def test_contrastive_by_hand():
    """Orthogonal pairs at scale log 3: each row and column has logits (log 3, 0), so -log 3/4."""
    eye = torch.eye(2)
    assert contrastive(eye, 5 * eye, math.log(3)).item() == pytest.approx(-math.log(0.75))
    assert contrastive(eye, eye.flip(0), math.log(3)).item() == pytest.approx(-math.log(0.25))


def test_hard_negatives_by_hand():
    """Similarities 1 and 0 at scale log 3: p = (3/4, 1/4).

    gamma 0 without smoothing: -log 3/4. gamma 2: times 1/16. Smoothing 0.5: y = (3/4, 1/4), so
    -(3/4 log 3/4 + 1/4 log 1/4)."""
    true, false, scale = torch.tensor([1.0]), torch.tensor([[0.0]]), math.log(3)
    plain = hard_negatives(true, false, scale, gamma=0.0, smoothing=0.0)
    assert plain.item() == pytest.approx(-math.log(0.75))
    assert hard_negatives(true, false, scale, 2.0, 0.0).item() == pytest.approx(plain.item() / 16)
    smooth = hard_negatives(true, false, scale, 0.0, 0.5).item()
    assert smooth == pytest.approx(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25)))


def views(*rows: list[float], mask: list[bool] | None = None) -> Views:
    parts = torch.tensor([rows])
    return Views(parts.mean(1), parts, torch.tensor([mask or [True] * len(rows)]))


def test_tokens_find_their_patches():
    """At a large scale every token that is some patch matches fully: similarity 1; an orthogonal one 0."""
    patches = views([1.0, 0.0, 0.0], [0.0, 1.0, 0.0])
    there = local_similarity(patches, views([1.0, 0.0, 0.0], [0.0, 2.0, 0.0]), 50.0)
    absent = local_similarity(patches, views([0.0, 0.0, 1.0]), 50.0)
    assert there.item() == pytest.approx(1.0, abs=1e-3) and absent.item() == pytest.approx(0.0, abs=1e-3)


def test_padding_does_not_change_a_similarity():
    patches = views([1.0, 0.2, 0.0], [0.0, 1.0, 0.3])
    tokens = views([1.0, 0.5, 0.0], [0.3, 0.3, 0.3])
    padded = views([1.0, 0.5, 0.0], [0.3, 0.3, 0.3], [9.0, 9.0, 9.0], mask=[True, True, False])
    more = views([1.0, 0.2, 0.0], [0.0, 1.0, 0.3], [7.0, 0.0, 7.0], mask=[True, True, False])
    expected = local_similarity(patches, tokens, 10.0)
    torch.testing.assert_close(local_similarity(patches, padded, 10.0), expected)
    torch.testing.assert_close(local_similarity(more, tokens, 10.0), expected)


@pytest.fixture(scope="module")
def tiny() -> ClipTowers:
    from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPVisionConfig

    torch.manual_seed(0)
    text = CLIPTextConfig(
        vocab_size=12,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=8,
        bos_token_id=0,
        eos_token_id=11,
        pad_token_id=0,
    )
    vision = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=16,
        patch_size=8,
    )
    config = CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=16)
    return ClipTowers(CLIPModel(config).eval())


def scenes(count: int, seed: int) -> list[Captioned]:
    """One of 4 quadrants is lit in one of 2 colours; "colour place"; near misses change one word."""
    rng = np.random.default_rng(seed)
    items: list[Captioned] = []
    for _ in range(count):
        colour, place = int(rng.integers(2)), int(rng.integers(4))
        pixels = torch.zeros(3, 16, 16)
        y, x = 8 * (place // 2), 8 * (place % 2)
        pixels[colour, y : y + 8, x : x + 8] = 1.0
        texts = [[1 + colour, 5 + place, 11], [2 - colour, 5 + place, 11]]
        texts.append([1 + colour, 5 + (place + int(rng.integers(1, 4))) % 4, 11])
        ids = torch.tensor([[0, *text] for text in texts])
        items.append(Captioned(pixels, ids, torch.ones_like(ids, dtype=torch.bool)))
    return items


def test_longer_padding_in_a_batch_changes_nothing(tiny):
    short = scenes(2, 5)
    longer = [
        replace(
            item,
            texts=torch.nn.functional.pad(item.texts, (0, 3)),
            mask=torch.nn.functional.pad(item.mask, (0, 3)),
        )
        for item in short
    ]
    loss = FscClip()
    with torch.no_grad():
        torch.testing.assert_close(loss.loss(tiny, longer), loss.loss(tiny, short))
        torch.testing.assert_close(loss.loss(tiny, [short[0], longer[1]]), loss.loss(tiny, short))
    plain = FscClip(global_weight=0.0, local_weight=0.0).loss(tiny, short)
    assert loss.loss(tiny, short) > plain


def test_a_tiny_clip_learns_to_tell_near_misses(tiny):
    held_out = scenes(60, 2)
    before = accuracy(tiny, held_out)
    history = train(tiny, scenes(300, 1), held_out, Fit(steps=120, batch=24, lr=2e-3, every=40), FscClip())
    assert before < 0.7 < 0.95 < history.best == accuracy(tiny, held_out)

    def tokenise(text: str) -> tuple[torch.Tensor, torch.Tensor]:
        ids = torch.tensor([0, *map(int, text.split()), 11])
        return ids, torch.ones_like(ids, dtype=torch.bool)

    def prepare(picture: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(picture.astype(np.float32) / 255).permute(2, 0, 1)

    picture = (scenes(1, 9)[0].pixels.permute(1, 2, 0).numpy() * 255).astype(np.uint8)
    media = Media(kind="image", space="rgb8", payload=picture)
    part = Part(kind="image", digest=media.digest)
    prompt = Prompt(id="p", messages=(Message(role="user", parts=(part,)),))
    reward = ClipScore(tiny, prepare, tokenise)
    true, *false = (" ".join(str(int(t)) for t in row[1:-1]) for row in scenes(1, 9)[0].texts)
    values = [
        reward(prompt, Response(tokens=(), text=text), {media.digest: media}).value for text in (true, *false)
    ]
    assert max(values) == values[0]
    blind = reward(replace(prompt, messages=()), Response(tokens=(), text=true), {})
    assert blind.missing == "no_media_to_compare_with"
