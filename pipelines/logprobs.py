"""Log-probabilities of answers, and what else terms read of a position: the only place of shifting.

The hidden state at position t predicts the token at position t + 1, so an answer of L tokens behind a prompt
of P tokens is read from the positions P - 1 ... P + L - 2.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint  # pyright: ignore[reportUnknownVariableType]

from pipelines.types import NOT_SCORED

Head = Callable[[Tensor], Tensor]  # hidden states [T, width] -> logits [T, vocabulary]
VOCABULARY_FEATURES = ("kl_forward", "kl_reverse", "collision", "entropy")


@dataclass(frozen=True, kw_only=True)
class Targets:
    """Which positions of a padded batch predict which answer tokens; T scored tokens of N rows in all."""

    row: Tensor  # [T] int64, row of the batch
    position: Tensor  # [T] int64, position whose hidden state predicts the token
    column: Tensor  # [T] int64, index of the token in its answer
    token: Tensor  # [T] int64, what the position is scored on
    rows: int  # N
    columns: int  # tokens of the longest answer

    def to(self, device: torch.device) -> Targets:
        return Targets(
            row=self.row.to(device),
            position=self.position.to(device),
            column=self.column.to(device),
            token=self.token.to(device),
            rows=self.rows,
            columns=self.columns,
        )


def answer_targets(prompt_lengths: Sequence[int], answers: Sequence[Sequence[int]]) -> Targets:
    """Targets of right-padded rows, each a prompt followed by an answer.

    `answers`: what each position of the answer is scored on, `NOT_SCORED` where it is left out. Raises
    ValueError when a prompt is empty (nothing predicts the first answer token).
    """
    if min(prompt_lengths, default=1) < 1:
        raise ValueError("every row needs at least one prompt token in front of its answer")
    found = [
        (row, length - 1 + column, column, token)
        for row, (length, answer) in enumerate(zip(prompt_lengths, answers, strict=True))
        for column, token in enumerate(answer)
        if token != NOT_SCORED
    ]
    row, position, column, token = torch.tensor(found, dtype=torch.long).reshape(-1, 4).unbind(1)
    return Targets(
        row=row,
        position=position,
        column=column,
        token=token,
        rows=len(answers),
        columns=max(map(len, answers), default=0),
    )


def token_reads(
    hidden: Tensor,
    head: Head,
    tokens: Tensor,
    needs: Collection[str] = (),
    reference: tuple[Tensor, Head] | None = None,
    pieces: int = 1,
) -> dict[str, Tensor]:
    """ "logps", the log-probability of each token, and every feature of `needs`: [T] float32 each, nats.

    `hidden` [T, width] are the last hidden states at the predicting positions. Features, over the vocabulary:
    "kl_forward" KL(ref || pi), "kl_reverse" KL(pi || ref), "collision" log sum_v pi(v)^2, "entropy" of pi.
    `reference`: hidden states and head of the reference, which the two KLs compare with; no gradient reaches
    it. In more than one of `pieces` the [T, vocabulary] logits never live at once: a piece is computed again
    in the backward.
    """
    wanted = [name for name in VOCABULARY_FEATURES if name in needs]
    count = len(tokens)
    missing = max(0, pieces - count)  # no piece is empty: sharded heads must run on all ranks alike
    hidden, tokens = F.pad(hidden, (0, 0, 0, missing)), F.pad(tokens, (0, missing))
    others = [None] * pieces
    if reference is not None:
        others = F.pad(reference[0], (0, 0, 0, missing)).tensor_split(pieces)

    def read(part: Tensor, targets: Tensor, other: Tensor | None) -> tuple[Tensor, ...]:
        logits = head(part).float()
        logps = logits - logits.logsumexp(-1, keepdim=True)
        old = None
        if reference is not None and other is not None:
            with torch.no_grad():
                old = reference[1](other).float().log_softmax(-1)
        picked = logps.gather(-1, targets.unsqueeze(-1)).squeeze(-1)
        return picked, *(_feature(name, logps, old) for name in wanted)

    found: list[tuple[Tensor, ...]] = []
    for part, targets, other in zip(
        hidden.tensor_split(pieces), tokens.tensor_split(pieces), others, strict=True
    ):
        if pieces > 1 and torch.is_grad_enabled():
            arguments = {"use_reentrant": False, "determinism_check": "none"}  # sharded weights have no shape
            found.append(checkpoint(read, part, targets, other, **arguments))  # pyright: ignore
        else:
            found.append(read(part, targets, other))
    columns = [torch.cat(column)[:count] for column in zip(*found, strict=True)]
    return dict(zip(("logps", *wanted), columns, strict=True))


def _feature(name: str, logps: Tensor, reference: Tensor | None) -> Tensor:
    """One feature of each position, from log-probabilities over the vocabulary, both [T, vocabulary]."""
    if name == "collision":
        return (2 * logps).logsumexp(-1)
    if name == "entropy":
        return -(logps.exp() * logps).sum(-1)
    if reference is None:
        raise ValueError(f"the feature {name!r} compares with a reference, but there is none")
    if name == "kl_forward":
        return (reference.exp() * (reference - logps)).sum(-1)
    return (logps.exp() * (logps - reference)).sum(-1)


def spread(values: Tensor, targets: Targets) -> Tensor:
    """Values of scored tokens, [T, ...], at their place in [N, columns, ...]; 0 elsewhere."""
    empty = values.new_zeros(targets.rows, targets.columns, *values.shape[1:])
    return empty.index_put((targets.row, targets.column), values)
