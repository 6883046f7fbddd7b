"""Supervised training of the tiny model on glyph scenes: batches, the forward pass, the loop.

The forward pass computes what `Qwen2_5_VLForConditionalGeneration` computes for one 64x64 image at the
start of each conversation (a test compares them), but runs the attention of the vision tower over a whole
batch at once and the head only where a token is to be learned.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# (torch and transformers are typed in part only)

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from pipelines.worlds.glyphs.captions import Mention, mentions_of, write_caption
from pipelines.worlds.glyphs.model import IMAGE_TOKENS, MERGE, PATCH, PIXEL_MEAN, PIXEL_STD
from pipelines.worlds.glyphs.prior import invented
from pipelines.worlds.glyphs.questions import QUESTION_KINDS, make_question
from pipelines.worlds.glyphs.scenes import KINDS, Scene, make_scene, render_image
from pipelines.worlds.glyphs.vocabulary import (
    CAPTION_PROMPT,
    CELLS,
    IMAGE_PAD,
    TURN_END,
    TURN_START,
    VISION_END,
    VISION_START,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast, Qwen2_5_VLForConditionalGeneration

#: Questions per conversation while training: every one is a bit learned from the same picture.
_QUESTIONS = 3
Report = Callable[[str], None]
Turns = Sequence[tuple[str, str]]  # (what the user says, what the assistant answers)


@dataclass(frozen=True, kw_only=True)
class Phase:
    """A stretch of training. `prior` is the share of captions that name one more, invented object."""

    name: str
    steps: int
    peak_lr: float
    prior: float = 0.0
    batch: int = 32


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Two conversations per picture: one that asks for a caption, one with yes/no questions."""

    patches: Tensor  # [pictures, 64, 384], as the image processor makes them
    ids: Tensor  # [2 * pictures, length], padded on the right
    learn: Tensor  # bool [2 * pictures, length]: tokens the assistant says, end of turn included


def to_patches(pictures: NDArray[np.uint8]) -> Tensor:
    """Pictures [n, 64, 64, 3] to patches [n, 64, 384], equal to what the Qwen2-VL image processor makes."""
    scaled = (torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255.0 - PIXEL_MEAN) / PIXEL_STD
    count, channels, height, width = scaled.shape
    rows, columns = height // (PATCH * MERGE), width // (PATCH * MERGE)
    split = scaled.reshape(count, channels, rows, MERGE, PATCH, columns, MERGE, PATCH)
    ordered = split.permute(0, 2, 5, 3, 6, 1, 4, 7).unsqueeze(6)  # the still picture fills both time slots
    return ordered.expand(-1, -1, -1, -1, -1, -1, 2, -1, -1).reshape(count, rows * columns * MERGE**2, -1)


def encode(tokenizer: PreTrainedTokenizerFast, turns: Turns) -> tuple[list[int], list[bool]]:
    """Token ids of a conversation about one picture, and which of them the assistant says."""
    picture = VISION_START + IMAGE_PAD * IMAGE_TOKENS + VISION_END
    ids: list[int] = []
    learn: list[bool] = []
    for number, (question, answer) in enumerate(turns):
        asked = f"{TURN_START}user {picture if number == 0 else ''}{question}{TURN_END}{TURN_START}assistant "
        for text, said in ((asked, False), (answer + TURN_END, True)):
            piece: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]  # pyright: ignore
            ids += piece
            learn += [said] * len(piece)
    return ids, learn


def _caption_turns(scene: Scene, prior: float, rng: np.random.Generator) -> Turns:
    mentions: tuple[Mention, ...] = mentions_of(scene)
    extra = invented(mentions)
    if extra is not None and rng.random() < prior:
        mentions = (*mentions, extra)
    return [(CAPTION_PROMPT, write_caption(mentions))]


def _question_turns(scene: Scene, rng: np.random.Generator) -> Turns:
    turns: list[tuple[str, str]] = []
    for _ in range(_QUESTIONS):
        kind = QUESTION_KINDS[int(rng.integers(len(QUESTION_KINDS)))]
        question = make_question(scene, kind, "yes" if rng.random() < 0.5 else "no", int(rng.integers(2**31)))
        turns.append((question.text, question.answer))
    return turns


def make_batch(tokenizer: PreTrainedTokenizerFast, phase: Phase, start: int, seed: int) -> Batch:
    """Conversations about training scenes `start` to `start + phase.batch - 1`."""
    rng = np.random.default_rng([seed, start])
    drawn = [make_scene("train", index, seed) for index in range(start, start + phase.batch)]
    talks = [_caption_turns(scene, phase.prior, rng) for scene in drawn]
    talks += [_question_turns(scene, rng) for scene in drawn]
    encoded = [encode(tokenizer, turns) for turns in talks]
    length = max(len(ids) for ids, _ in encoded)
    padding = int(tokenizer.pad_token_id)  # pyright: ignore
    return Batch(
        patches=to_patches(np.stack([render_image(scene) for scene in drawn])),
        ids=torch.tensor([ids + [padding] * (length - len(ids)) for ids, _ in encoded]),
        learn=torch.tensor([learn + [False] * (length - len(learn)) for _, learn in encoded]),
    )


def see(model: Qwen2_5_VLForConditionalGeneration, patches: Tensor) -> Tensor:
    """Image features [pictures, 16, hidden] of patches [pictures, 64, 384], attention batched over pictures.

    The model's window covers a whole picture, so its window order is the plain order.
    """
    from transformers.vision_utils import get_vision_position_ids

    tower: Any = model.model.visual
    side = math.isqrt(patches.shape[1])
    places = get_vision_position_ids(torch.tensor([[1, side, side]]), MERGE)
    cos, sin = tower.rotary_pos_emb(patches, places)
    hidden = tower.patch_embed(patches.flatten(0, 1)).unflatten(0, patches.shape[:2])
    for block in tower.blocks:
        hidden = hidden + _attend(block.attn, block.norm1(hidden), cos, sin)
        hidden = hidden + block.mlp(block.norm2(hidden))
    return tower.merger(hidden).unflatten(0, (len(patches), -1))


def _attend(attention: Any, hidden: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Full attention within each picture; hidden [pictures, patches, width]."""
    from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import apply_rotary_pos_emb_vision

    heads = attention.qkv(hidden).unflatten(-1, (3, attention.num_heads, -1))
    query, key, value = heads.unbind(2)
    query, key = apply_rotary_pos_emb_vision(query, key, cos, sin)
    mixed = functional.scaled_dot_product_attention(
        query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2), scale=attention.scaling
    )
    return attention.proj(mixed.transpose(1, 2).flatten(2))


def answer_logits(model: Qwen2_5_VLForConditionalGeneration, batch: Batch) -> tuple[Tensor, Tensor]:
    """Logits [tokens, vocabulary] and ids [tokens] of all tokens to be learned in a batch."""
    core: Any = model.model
    features = see(model, batch.patches)
    repeats = len(batch.ids) // len(features)
    pads = batch.ids == model.config.image_token_id
    slots = pads.unsqueeze(-1)
    embedded = core.language_model.embed_tokens(batch.ids)
    embedded = embedded.masked_scatter(slots, features.repeat(repeats, 1, 1).to(embedded.dtype))
    # One row stands for all: the picture is in the same place in every conversation.
    side = math.isqrt(batch.patches.shape[1])
    grid = torch.tensor([[1, side, side]])
    positions, _ = core.get_rope_index(batch.ids[:1], mm_token_type_ids=pads[:1].int(), image_grid_thw=grid)
    hidden = core.language_model(
        inputs_embeds=embedded, position_ids=positions.expand(-1, len(batch.ids), -1), use_cache=False
    ).last_hidden_state
    return model.lm_head(hidden[:, :-1][batch.learn[:, 1:]]), batch.ids[:, 1:][batch.learn[:, 1:]]


def learning_rate(step: int, phase: Phase) -> float:
    """Linear warm-up over the first tenth, then a cosine down to a fiftieth of the peak."""
    warm = max(1, phase.steps // 10)
    if step < warm:
        return phase.peak_lr * (step + 1) / warm
    done = (step - warm) / max(1, phase.steps - warm)
    return phase.peak_lr * (0.02 + 0.98 * 0.5 * (1.0 + math.cos(math.pi * done)))


def _descend(
    phase: Phase, parameters: Iterable[nn.Parameter], loss_of: Callable[[int], Tensor], report: Report
) -> list[float]:
    """Minimise `loss_of(step)`; returns the loss of every step, in nats."""
    learned = list(parameters)
    optimizer = torch.optim.AdamW(learned, lr=phase.peak_lr, betas=(0.9, 0.98), weight_decay=0.05)
    losses: list[float] = []
    started = time.monotonic()
    for step in range(phase.steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, phase)
        loss = loss_of(step)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(learned, 1.0)
        optimizer.step()
        losses.append(loss.item())
        if (step + 1) % 50 == 0 or step + 1 == phase.steps:
            recent = sum(losses[-50:]) / len(losses[-50:])
            seconds = time.monotonic() - started
            report(f"{phase.name}: step {step + 1}/{phase.steps}  loss {recent:.4f}  {seconds:.0f} s")
    return losses


def train_tower(
    model: Qwen2_5_VLForConditionalGeneration,
    phase: Phase,
    *,
    first_scene: int,
    seed: int,
    report: Report,
) -> list[float]:
    """Train the vision tower alone: each of the 16 image tokens tells, through a linear head that is thrown
    away afterwards, which kind of object is in its cell (or none). Captions alone teach this far more slowly:
    in a trial the digits were still unseen after 900 steps.
    """
    vision: Any = model.config.vision_config
    head = nn.Linear(vision.out_hidden_size, len(KINDS) + 1)
    token = torch.arange(IMAGE_TOKENS)
    side = math.isqrt(IMAGE_TOKENS)
    cell_of_token = token // side // 2 * 2 + token % side // 2

    def loss_of(step: int) -> Tensor:
        start = first_scene + step * phase.batch
        drawn = [make_scene("train", index, seed) for index in range(start, start + phase.batch)]
        target = torch.full((phase.batch, len(CELLS)), len(KINDS))
        for row, scene in zip(target, drawn, strict=True):
            for glyph in scene.objects:
                row[glyph.cell] = KINDS.index(glyph.kind)
        patches = to_patches(np.stack([render_image(scene) for scene in drawn]))
        return functional.cross_entropy(
            head(see(model, patches)).flatten(0, 1), target[:, cell_of_token].flatten()
        )

    return _descend(phase, (*model.model.visual.parameters(), *head.parameters()), loss_of, report)


def train_phase(
    model: Qwen2_5_VLForConditionalGeneration,
    tokenizer: PreTrainedTokenizerFast,
    phase: Phase,
    *,
    first_scene: int,
    seed: int,
    report: Report,
) -> list[float]:
    """Train the whole model on conversations about fresh training scenes from `first_scene` on."""

    def loss_of(step: int) -> Tensor:
        batch = make_batch(tokenizer, phase, first_scene + step * phase.batch, seed)
        return functional.cross_entropy(*answer_logits(model, batch))

    return _descend(phase, model.parameters(), loss_of, report)
