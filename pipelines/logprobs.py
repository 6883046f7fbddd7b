"""Log-probabilities of answers: the only place where shifting happens.

The hidden state at position t predicts the token at position t + 1, so an answer of L tokens behind a prompt
of P tokens is read from the positions P - 1 ... P + L - 2.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Targets:
    """Which positions of a padded batch predict which answer tokens; T answer tokens of N rows in all."""

    row: Tensor  # [T] int64, row of the batch
    position: Tensor  # [T] int64, position whose hidden state predicts the token
    token: Tensor  # [T] int64
    rows: int  # N

    def to(self, device: torch.device) -> Targets:
        return Targets(
            row=self.row.to(device),
            position=self.position.to(device),
            token=self.token.to(device),
            rows=self.rows,
        )


def answer_targets(prompt_lengths: Sequence[int], answers: Sequence[Sequence[int]]) -> Targets:
    """Targets of right-padded rows, each a prompt followed by its answer.

    Raises ValueError when a prompt is empty (nothing predicts the first answer token).
    """
    if min(prompt_lengths, default=1) < 1:
        raise ValueError("every row needs at least one prompt token in front of its answer")
    row: list[int] = []
    position: list[int] = []
    token: list[int] = []
    for index, (length, answer) in enumerate(zip(prompt_lengths, answers, strict=True)):
        row += [index] * len(answer)
        position += range(length - 1, length - 1 + len(answer))
        token += answer
    return Targets(
        row=torch.tensor(row, dtype=torch.long),
        position=torch.tensor(position, dtype=torch.long),
        token=torch.tensor(token, dtype=torch.long),
        rows=len(answers),
    )


def token_logps(hidden: Tensor, head: Callable[[Tensor], Tensor], targets: Targets) -> Tensor:
    """Log-probability of each answer token, [T] float32, nats.

    `hidden` [N, length, width] are the last hidden states and `head` projects [T, width] to the vocabulary.
    Rows are selected *before* the projection, so that prompt, image and padding positions never reach it.
    """
    selected = hidden[targets.row, targets.position]
    logits = head(selected).float()
    picked = logits.gather(-1, targets.token.unsqueeze(-1)).squeeze(-1)
    return picked - logits.logsumexp(dim=-1)


def summed(tokens: Tensor, targets: Targets) -> Tensor:
    """Sums per-token values [T] into their rows, [N]; a row without answer tokens gets 0."""
    return tokens.new_zeros(targets.rows).index_add(0, targets.row, tokens)


def lengths(targets: Targets) -> Tensor:
    """Answer tokens of each row, [N] int64."""
    return torch.bincount(targets.row, minlength=targets.rows)
