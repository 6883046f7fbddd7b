"""A causal or Qwen2.5-VL model that reads prompts once and grows answers token by token on a key-value cache.

Prompts are padded on the right, as the learner pads them; positions and masks are given explicitly, so that
what is generated behind the padding continues the prompt.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from actors.forward import Batch, Row, collate
from actors.processing import Encoded, Processing
from pipelines.types import Op, Prompt

VISUAL_DROP = "visual_drop"


@dataclass(frozen=True, kw_only=True)
class Context:
    """What is read in one go: a prompt, an answer or its beginning, and what attention may not see."""

    encoded: Encoded
    answer: tuple[int, ...] = ()
    hidden: tuple[int, ...] = ()  # positions of prompt tokens that no position attends to


def hidden_positions(prompt: Prompt, encoded: Encoded, image_token: int | None) -> tuple[int, ...]:
    """Positions that the prompt's acts hide.

    "visual_drop" with `rho`: each visual embedding is hidden with that probability, drawn from the act's seed
    (BDHS of Understanding Alignment, third-party note: rho = .99). Raises ValueError for other acts and for a
    rho outside [0, 1].
    """
    hidden: set[int] = set()
    visual = [i for i, token in enumerate(encoded.input_ids) if token == image_token]
    for act in prompt.acts:
        kept = np.random.default_rng(act.seed).random(len(visual)) >= _rho(prompt, act)
        hidden |= {position for position, keep in zip(visual, kept, strict=True) if not keep}
    return tuple(sorted(hidden))


def _rho(prompt: Prompt, act: Op) -> float:
    rho = act.params.get("rho")
    if act.name != VISUAL_DROP or not isinstance(rho, int | float) or not 0 <= rho <= 1:
        raise ValueError(
            f"prompt {prompt.id!r}: the operation {act.name!r} with {dict(act.params)} inside the model is "
            f"not known; expected {VISUAL_DROP!r} with 'rho' in [0, 1]"
        )
    return float(rho)


class Growing:
    """R answers that grow: what the model has computed of them so far."""

    def __init__(self, cache: Any, mask: Tensor, following: Tensor) -> None:
        self.cache = cache
        self.mask = mask  # [R, length] int64, 1 at what is attended to
        self.following = following  # [R] position of the next token

    @property
    def length(self) -> int:
        """Tokens in the cache, padding included."""
        return self.mask.shape[1]

    def select(self, rows: Tensor) -> None:
        """Keep these rows, in this order; a row may be taken several times."""
        self.cache.batch_select_indices(rows)
        self.mask, self.following = self.mask[rows], self.following[rows]


class CachedModel:
    """`model`: a Hugging Face model of the kinds that the learner trains. Not for several threads at once."""

    def __init__(self, model: Any, processing: Processing) -> None:
        self.model = model.eval().requires_grad_(False)
        self.processing = processing
        self._backbone: Any = model.base_model
        self._language: Any = getattr(self._backbone, "language_model", self._backbone)
        self.pictures_read = 0  # pictures that went through the vision tower so far
        self.forwards = 0  # so far: whoever watches sees whether it works

    @torch.inference_mode()
    def read(self, contexts: Sequence[Context]) -> tuple[list[Tensor], Growing]:
        """Logits behind each context, and what answers grow from.

        Logits are one [answer + 1, vocabulary] float32 tensor per context: what predicts each token of its
        answer, and the token after it.
        """
        from transformers import DynamicCache

        self.forwards += 1
        batch = collate([Row(c.encoded, c.answer) for c in contexts], self.processing)
        batch = batch.to(self.model.device)
        positions, following = self._positions(batch)
        mask = batch.attention_mask.clone()
        for row, context in enumerate(contexts):
            mask[row, list(context.hidden)] = 0
        cache = DynamicCache(config=self._language.config)
        last = self._backbone(
            input_ids=batch.input_ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            **self._pictures(batch),
        ).last_hidden_state
        first = [len(c.encoded.input_ids) - 1 for c in contexts]
        sizes = [len(c.answer) + 1 for c in contexts]
        chosen = torch.cat([last[i, f : f + n] for i, (f, n) in enumerate(zip(first, sizes, strict=True))])
        logits = self.model.get_output_embeddings()(chosen).float()
        return list(logits.split(sizes)), Growing(cache, mask, following)

    @torch.inference_mode()
    def step(self, growing: Growing, tokens: Tensor) -> Tensor:
        """Append one token to each answer; the logits of the next, [R, vocabulary] float32."""
        self.forwards += 1
        growing.mask = torch.nn.functional.pad(growing.mask, (0, 1), value=1)
        position = growing.following[:, None]
        last = self._language(
            inputs_embeds=self._language.get_input_embeddings()(tokens)[:, None],
            attention_mask=growing.mask,
            position_ids=position.expand(3, -1, 1) if self.processing.has_vision else position,
            past_key_values=growing.cache,
            use_cache=True,
        ).last_hidden_state
        growing.following = growing.following + 1
        return self.model.get_output_embeddings()(last[:, -1]).float()

    @torch.inference_mode()
    def attention(self, contexts: Sequence[Context], layer: int) -> list[tuple[float, ...]]:
        """Share of the attention of each context's answer tokens that falls on each picture of its prompt.

        Of one layer, mean over its heads and the answer's tokens; all keys together have the share 1.
        """
        seen: list[Tensor] = []
        attending = self._language.layers[layer].self_attn
        hook = attending.register_forward_hook(lambda *call: seen.append(call[-1][1]))
        try:
            with self._eager():
                self.read(contexts)
        finally:
            hook.remove()
        [weights] = seen  # [contexts, heads, queries, keys]
        return [self._mass(weights[row], context) for row, context in enumerate(contexts)]

    def _mass(self, weights: Tensor, context: Context) -> tuple[float, ...]:
        start = len(context.encoded.input_ids)
        keys = weights[:, start : start + len(context.answer)].mean(dim=(0, 1))
        places = [
            i for i, token in enumerate(context.encoded.input_ids) if token == self.processing.image_token
        ]
        grid = context.encoded.image_grid_thw
        if grid is None:
            return ()
        per_token = int(grid.prod(dim=1).sum()) // len(places)  # patches that are merged into one token
        counts = (grid.prod(dim=1) // per_token).tolist()
        return tuple(float(part.sum()) for part in keys[places].split(counts))

    @contextmanager
    def _eager(self) -> Iterator[None]:
        """Attention that shows its weights; faster kinds never form them."""
        usual = self._language.config._attn_implementation
        self._language.set_attn_implementation("eager")
        try:
            yield
        finally:
            self._language.set_attn_implementation(usual)

    def _pictures(self, batch: Batch) -> dict[str, Any]:
        """Features of the distinct pictures, as the backbone takes them."""
        if batch.pixel_values is None or batch.grid is None:
            return {}
        features = self._backbone.get_image_features(batch.pixel_values, batch.grid, return_dict=True)
        self.pictures_read += len(batch.grid)
        distinct = features.pooler_output
        features.pooler_output = tuple(distinct[index] for index in batch.shown)
        return {"mm_encoder_outputs": {"image": features}}

    def _positions(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Positions of all tokens, [3, N, L] for models with pictures and else [N, L], and the next [N]."""
        lengths = batch.attention_mask.sum(dim=1)
        if batch.grid is None:
            positions = torch.arange(batch.input_ids.shape[1], device=lengths.device).expand_as(
                batch.input_ids
            )
            return (positions.expand(3, -1, -1) if self.processing.has_vision else positions), lengths
        positions, shift = self._backbone.get_rope_index(
            batch.input_ids,
            mm_token_type_ids=batch.image_mask,
            image_grid_thw=batch.grid[list(batch.shown)],
            attention_mask=batch.attention_mask,
        )
        return positions, lengths + shift.squeeze(1)
