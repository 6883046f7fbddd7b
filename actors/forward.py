"""The learner's forward: from prompts and answers to log-probabilities and features per answer token.

A picture that several rows of a batch show goes through the vision tower once, and only positions that
predict an answer token are projected to the vocabulary.
"""

from __future__ import annotations

import inspect
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from actors.processing import Encoded, Processing
from pipelines.checkpoint import NotACheckpoint
from pipelines.logprobs import Head, Targets, answer_targets, spread, token_reads
from pipelines.types import Media, Message, Part, Prompt


class Row(NamedTuple):
    """What the model is shown, the answer's tokens, and what each is scored on (None: on itself)."""

    encoded: Encoded
    tokens: Sequence[int]
    scored: Sequence[int] | None = None


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
    pieces: int = 1  # in how many the projection to the vocabulary is cut; the same on all ranks

    def to(self, device: torch.device) -> Batch:
        moved = {
            name: value.to(device)
            for name, value in vars(self).items()
            if isinstance(value, Tensor | Targets)
        }
        return replace(self, **moved)


def collate(rows: Sequence[Row], processing: Processing, pieces: int = 1) -> Batch:
    """Pads rows on the right and lists each distinct picture once."""
    sequences = [[*row.encoded.input_ids, *row.tokens] for row in rows]
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
    for encoded, *_ in rows:
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
            [len(row.encoded.input_ids) for row in rows],
            [row.tokens if row.scored is None else row.scored for row in rows],
        ),
        pieces=pieces,
    )


def blank_row(processing: Processing) -> Row:
    """A row of weight 0 that runs every module of the model, the vision tower included.

    It pads micro-batches: under ZeRO-3 all ranks must run the same modules, or the others wait for ever.
    """
    gray = Media(kind="image", space="rgb8", payload=np.full((56, 56, 3), 128, np.uint8))
    part = Part(kind="image", digest=gray.digest) if processing.has_vision else Part(kind="text", text="")
    prompt = Prompt(id="blank", messages=(Message(role="user", parts=(part,)),))
    answer = (min(processing.eos, default=processing.pad),)
    return Row(processing.encode(prompt, {gray.digest: gray}), answer)


class Scorer(nn.Module):
    """Reads the answer tokens of each row: "logps" [N, L] float32, nats, and the features of `needs`.

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

    def forward(
        self,
        batch: Batch,
        needs: Collection[str] = (),
        reference: tuple[Tensor, Head] | None = None,
    ) -> dict[str, Tensor]:
        """The entry "logps" and one per feature of `needs`, [N, L] or [N, L, width]; 0 at what is not scored.

        "selected" gives the hidden states of the scored tokens alone, [T, width]: what another forward takes
        as its `reference`, together with the head that belongs to them.
        """
        hidden = last_hidden(self.model.base_model, batch)
        targets = batch.targets
        selected = hidden[targets.row, targets.position]
        head = self.model.get_output_embeddings()
        reads = token_reads(selected, head, targets.token, needs, reference, batch.pieces)
        found = {name: spread(values, targets) for name, values in reads.items()}
        if "hidden" in needs:
            found["hidden"] = spread(selected.float(), targets)
        if "selected" in needs:
            found["selected"] = selected
        return found


def last_hidden(backbone: Any, batch: Batch) -> Tensor:
    """Last hidden states, [N, length, width]; each distinct picture goes through the vision tower once."""
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
    return backbone(
        input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False, **extra
    ).last_hidden_state


def without_dropout(model: nn.Module) -> None:
    """Turns every dropout off, so that a log-probability is a function of weights and input alone."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if isinstance(getattr(module, "attention_dropout", None), float):
            vars(module)["attention_dropout"] = 0.0
