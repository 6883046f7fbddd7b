"""FSC-CLIP: a contrastive verifier that tells a caption from its rule-made near misses.

FSC-CLIP (arXiv 2410.05210; released code read for the weights, the focal exponent, the smoothing and the
token-to-patch logsumexp; how tokens attend to patches is inferred). B pairs of image and caption, K hard
negative captions per image, D dimensions; everything is L2-normalised before it is compared.

Its loss couples the whole batch and trains two towers, no policy, so it has a trainer of its own here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipelines.rewards.base import missing
from pipelines.rewards.models.training import Fit, History, fit
from pipelines.types import MediaTable, Prompt, Response, Score


@dataclass(frozen=True)
class Views:
    """What a tower gives for N inputs: one vector for all of it and one per patch or token."""

    whole: Tensor  # [N, D]
    parts: Tensor  # [N, P, D]
    mask: Tensor  # [N, P] bool, False at padding


class Towers(Protocol):
    """A CLIP-like pair of encoders over one space."""

    def see(self, pixels: Tensor) -> Views: ...

    def read(self, ids: Tensor, mask: Tensor) -> Views: ...

    @property
    def scale(self) -> Tensor:
        """[]: what cosines are multiplied with, 1 / temperature."""
        ...


def contrastive(images: Tensor, texts: Tensor, scale: Tensor | float) -> Tensor:
    """Symmetric InfoNCE over the batch, []: CLIP's own loss (arXiv 2103.00020, figure 3; from memory)."""
    logits = scale * functional.normalize(images, dim=-1) @ functional.normalize(texts, dim=-1).T
    same = torch.arange(len(logits), device=logits.device)
    return (functional.cross_entropy(logits, same) + functional.cross_entropy(logits.T, same)) / 2


def local_similarity(patches: Views, tokens: Views, scale: Tensor | float) -> Tensor:
    """How well the tokens of each text find themselves in patches of each image, [N] for N such pairs.

    Every token attends to the patches by softmax(scale cos); its match is the cosine between the token and
    what it attended to; the text's is logsumexp(scale match) / scale over its tokens, less
    log(tokens) / scale so that longer texts gain nothing.
    """
    p, t = functional.normalize(patches.parts, dim=-1), functional.normalize(tokens.parts, dim=-1)
    cosines = t @ p.transpose(-1, -2)  # [N, T, P]
    hidden = ~patches.mask.unsqueeze(-2)
    seen = torch.softmax((scale * cosines).masked_fill(hidden, -torch.inf), dim=-1) @ p
    matches = (scale * functional.cosine_similarity(t, seen, dim=-1)).masked_fill(~tokens.mask, -torch.inf)
    count = tokens.mask.sum(-1).to(matches.dtype)
    return (torch.logsumexp(matches, dim=-1) - count.log()) / scale


def hard_negatives(
    true: Tensor, false: Tensor, scale: Tensor | float, gamma: float = 2.0, smoothing: float = 0.02
) -> Tensor:
    """Focal, label-smoothed cross-entropy of the true caption against its near misses, [B].

    `true` [B] and `false` [B, K] are similarities. With p = softmax of the scaled similarities and targets
    y = smoothing / (K + 1) everywhere plus 1 - smoothing at the true one: -sum_i y_i (1 - p_i)^gamma log p_i.
    The focal factor quiets what is told apart already, the smoothing keeps near misses from being pushed off
    for ever, since they are nearly right.
    """
    logs = torch.log_softmax(scale * torch.cat([true.unsqueeze(-1), false], dim=-1), dim=-1)
    targets = torch.full_like(logs, smoothing / logs.shape[-1])
    targets[:, 0] += 1 - smoothing
    return -(targets * (1 - logs.exp()).pow(gamma) * logs).sum(-1)


@dataclass(frozen=True)
class Captioned:
    """A picture, its caption and K near misses; the same K throughout a batch."""

    pixels: Tensor  # [channels, height, width]
    texts: Tensor  # [1 + K, T] int64, the caption first
    mask: Tensor  # [1 + K, T] bool


@dataclass(frozen=True)
class FscClip:
    """contrastive + global_weight * hard negatives of whole vectors + local_weight * those of tokens."""

    global_weight: float = 0.5
    local_weight: float = 0.2
    gamma: float = 2.0
    smoothing: float = 0.02

    def loss(self, towers: Towers, batch: Sequence[Captioned]) -> Tensor:
        """[]"""
        images, texts = _encoded(towers, batch)
        size, each = len(batch), len(texts.whole) // len(batch)
        scale = towers.scale
        cosines = _cosines(images, texts)
        repeated = (v.repeat_interleave(each, dim=0) for v in (images.whole, images.parts, images.mask))
        local = local_similarity(Views(*repeated), texts, scale).reshape(size, each)
        total = contrastive(images.whole, texts.whole[::each], scale)
        for weight, values in ((self.global_weight, cosines), (self.local_weight, local)):
            missed = hard_negatives(values[:, 0], values[:, 1:], scale, self.gamma, self.smoothing)
            total = total + weight * missed.mean()
        return total


def accuracy(towers: Towers, batch: Sequence[Captioned]) -> float:
    """Share of pictures whose own caption is closer than every near miss."""
    images, texts = _encoded(towers, batch)
    cosines = _cosines(images, texts)
    return float((cosines[:, :1] > cosines[:, 1:]).all(-1).float().mean())


def train(
    towers: nn.Module, items: Sequence[Captioned], held_out: Sequence[Captioned], how: Fit, loss: FscClip
) -> History:
    """Fit towers (a module that is also `Towers`) and keep the weights with the best held-out `accuracy`."""
    both: Any = towers
    return fit(
        towers,
        lambda batch: loss.loss(both, batch),
        lambda batch: accuracy(both, batch),
        items,
        held_out,
        how,
    )


def _cosines(images: Views, texts: Views) -> Tensor:
    """[B, 1 + K] between each picture and its own texts."""
    seen, said = functional.normalize(images.whole, dim=-1), functional.normalize(texts.whole, dim=-1)
    return (said.reshape(len(seen), -1, said.shape[-1]) * seen.unsqueeze(1)).sum(-1)


def _encoded(towers: Towers, batch: Sequence[Captioned]) -> tuple[Views, Views]:
    longest = max(item.texts.shape[1] for item in batch)

    def padded(tensor: Tensor) -> Tensor:
        return functional.pad(tensor, (0, longest - tensor.shape[1]))

    ids = torch.cat([padded(item.texts) for item in batch])
    mask = torch.cat([padded(item.mask) for item in batch])
    return towers.see(torch.stack([item.pixels for item in batch])), towers.read(ids, mask)


class ClipTowers(nn.Module):
    """A `transformers.CLIPModel` as `Towers`: patches and tokens pass the projections of the whole."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    @property
    def scale(self) -> Tensor:
        return self.model.logit_scale.exp()

    def see(self, pixels: Tensor) -> Views:
        tower = self.model.vision_model
        out = tower(pixel_values=pixels)
        patches = self.model.visual_projection(tower.post_layernorm(out.last_hidden_state[:, 1:]))
        whole = self.model.visual_projection(out.pooler_output)
        mask = torch.ones(patches.shape[:2], dtype=torch.bool, device=patches.device)
        return Views(whole, patches, mask)

    def read(self, ids: Tensor, mask: Tensor) -> Views:
        out = self.model.text_model(input_ids=ids, attention_mask=mask.long())
        tokens = self.model.text_projection(out.last_hidden_state)
        return Views(self.model.text_projection(out.pooler_output), tokens, mask)


@dataclass(frozen=True)
class ClipScore:
    """scale * cos(picture, answer) of a CLIP-like model, in logits; the mean over several pictures.

    What CLIP-DPO (arXiv 2408.10433; note read) ranks captions by. `prepare` turns a picture (uint8 [height,
    width, 3]) into pixels and `tokenise` a text into ids and mask, each for one item.
    """

    towers: Towers
    prepare: Callable[[Any], Tensor]
    tokenise: Callable[[str], tuple[Tensor, Tensor]]

    def __call__(self, prompt: Prompt, response: Response, media: MediaTable) -> Score:
        if not prompt.media:
            return missing("no_media_to_compare_with")
        pixels = torch.stack([self.prepare(media[digest].payload) for digest in prompt.media])
        ids, mask = self.tokenise(response.text)
        with torch.no_grad():
            seen = functional.normalize(self.towers.see(pixels).whole, dim=-1)
            said = functional.normalize(self.towers.read(ids[None], mask[None]).whole, dim=-1)
            value = float((self.towers.scale * seen @ said.T).mean())
        return Score(value=value)
