"""The learner's forward: from prompts and answers to one log-probability per cell.

A picture that several rows of a batch show goes through the vision tower once, and only positions that
predict an answer token are projected to the vocabulary.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from actors.processing import Encoded, Processing
from pipelines.checkpoint import NotACheckpoint
from pipelines.logprobs import Targets, answer_targets, summed, token_logps
from pipelines.types import Media, Message, Part, Prompt

Row = tuple[Encoded, Sequence[int]]  # what the model is shown, and the answer's tokens


@dataclass(frozen=True, kw_only=True)
class Batch:
    """N rows, right-padded to length L."""

    input_ids: Tensor  # [N, L] int64
    attention_mask: Tensor  # [N, L] int64
    image_mask: Tensor  # [N, L] int32, 1 at image tokens (the model's `mm_token_type_ids`)
    pixel_values: Tensor | None  # [patches, patch size] of the distinct pictures
    grid: Tensor | None  # [pictures, 3]
    shown: tuple[int, ...]  # for each picture shown, row by row: which of the distinct pictures it is
    targets: Targets

    def to(self, device: torch.device) -> Batch:
        moved = {
            name: value.to(device)
            for name, value in vars(self).items()
            if isinstance(value, Tensor | Targets)
        }
        return replace(self, **moved)


def collate(rows: Sequence[Row], processing: Processing) -> Batch:
    """Pads rows on the right and lists each distinct picture once."""
    sequences = [[*encoded.input_ids, *answer] for encoded, answer in rows]
    longest = max(len(sequence) for sequence in sequences)
    ids = torch.full((len(rows), longest), processing.pad, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for index, sequence in enumerate(sequences):
        ids[index, : len(sequence)] = torch.tensor(sequence, dtype=torch.long)
        mask[index, : len(sequence)] = 1
    image_mask = torch.zeros_like(ids, dtype=torch.int32)
    if processing.image_token is not None:
        image_mask = ((ids == processing.image_token) & (mask == 1)).int()
    pixels: list[Tensor] = []
    grids: list[Tensor] = []
    first: dict[int, int] = {}  # id of an encoded prompt -> index of its first picture
    shown: list[int] = []
    for encoded, _ in rows:
        if encoded.pixel_values is None or encoded.image_grid_thw is None:
            continue
        if id(encoded) not in first:
            first[id(encoded)] = sum(len(grid) for grid in grids)
            pixels.append(encoded.pixel_values)
            grids.append(encoded.image_grid_thw)
        shown += range(first[id(encoded)], first[id(encoded)] + len(encoded.image_grid_thw))
    return Batch(
        input_ids=ids,
        attention_mask=mask,
        image_mask=image_mask,
        pixel_values=torch.cat(pixels) if pixels else None,
        grid=torch.cat(grids) if grids else None,
        shown=tuple(shown),
        targets=answer_targets(
            [len(encoded.input_ids) for encoded, _ in rows], [answer for _, answer in rows]
        ),
    )


def blank_row(processing: Processing) -> Row:
    """A row of weight 0 that runs every module of the model, the vision tower included.

    It pads micro-batches: under ZeRO-3 all ranks must run the same modules, or the others wait for ever.
    """
    gray = Media(kind="image", space="rgb8", payload=np.full((56, 56, 3), 128, np.uint8))
    part = Part(kind="image", digest=gray.digest) if processing.has_vision else Part(kind="text", text="")
    prompt = Prompt(id="blank", messages=(Message(role="user", parts=(part,)),))
    return processing.encode(prompt, {gray.digest: gray}), (min(processing.eos, default=processing.pad),)


class Scorer(nn.Module):
    """Sums the log-probabilities of each row's answer: [N] float32, nats.

    `model` is a Hugging Face causal or Qwen2.5-VL model. Raises `NotACheckpoint` for architectures whose head
    does more than a projection, or whose forward does not take prepared image features.
    """

    def __init__(self, model: Any, processing: Processing) -> None:
        super().__init__()
        self.model = model
        vision = processing.has_vision
        parameters = inspect.signature(model.base_model.forward).parameters
        if vision and "mm_encoder_outputs" not in parameters:
            raise NotACheckpoint(
                f"model {str(processing.path)!r}: {type(model).__name__} cannot be trained here; expected "
                "Qwen2.5-VL or a text-only causal model"
            )
        scaled = ("final_logit_softcapping", "logit_scale", "logits_scaling")
        for name in scaled:
            if getattr(processing.text_config, name, None) not in (None, 1.0):
                raise NotACheckpoint(
                    f"model {str(processing.path)!r}: its head uses {name}, which is not supported; "
                    "expected a plain projection to the vocabulary"
                )

    def forward(self, batch: Batch) -> Tensor:
        backbone = self.model.base_model
        extra: Mapping[str, Any] = {}
        if batch.pixel_values is not None and batch.grid is not None:
            features = backbone.get_image_features(batch.pixel_values, batch.grid, return_dict=True)
            distinct = features.pooler_output
            features.pooler_output = tuple(distinct[index] for index in batch.shown)
            extra = {
                "mm_encoder_outputs": {"image": features},
                "image_grid_thw": batch.grid[list(batch.shown)],
                "mm_token_type_ids": batch.image_mask,
            }
        hidden = backbone(
            input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False, **extra
        ).last_hidden_state
        tokens = token_logps(hidden, self.model.get_output_embeddings(), batch.targets)
        return summed(tokens, batch.targets)


def without_dropout(model: nn.Module) -> None:
    """Turns every dropout off, so that a log-probability is a function of weights and input alone."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if isinstance(getattr(module, "attention_dropout", None), float):
            vars(module)["attention_dropout"] = 0.0
