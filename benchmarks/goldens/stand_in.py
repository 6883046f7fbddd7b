"""What stands in for a language model, a data loader and a launcher around TRL's own loss code.

The numbers of every batch are short decimals drawn from Python's `random.Random`, whose stream does not
change between releases. Log-probabilities are float64 and are the leaves of the graph, so that each golden
comes with the gradient of the loss with respect to every token's log-probability.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from transformers.utils.generic import ModelOutput

VOCABULARY = 11
PROMPT = 3  # tokens: the row's number, then two tokens that are predicted but belong to no answer
EOS = 10
PAD = 0
IGNORED = -100
LARGEST = -0.05  # nats: no token is certain

Row = list[float]


def draw(name: str, lengths: Sequence[int]) -> list[Row]:
    """Token log-probabilities, nats, three decimals."""
    stream = random.Random(name)
    return [[-round(stream.uniform(0.1, 3.0), 3) for _ in range(length)] for length in lengths]


def nudge(name: str, rows: Sequence[Row], by: float) -> list[Row]:
    """The same tokens under another model: up to `by` nats more or less each."""
    stream = random.Random(name)
    return [[min(round(value + stream.uniform(-by, by), 3), LARGEST) for value in row] for row in rows]


@dataclass(kw_only=True)
class Tokens(ModelOutput):
    """What a causal model returns, and what TRL's fused head returns."""

    logits: Tensor | None = None
    log_probs: Tensor | None = None
    entropy: Tensor | None = None
    log_sum_sq_probs: Tensor | None = None
    mean_logits: Tensor | None = None
    is_top1: Tensor | None = None


class StandIn(nn.Module):
    """A causal model that gives the tokens after the first of row i the log-probabilities `rows[i]`.

    The rest of the probability is spread over the vocabulary in a fixed way. The first token of an input is
    the number of its row. TRL's fused head computes in float32; this one does the same sums in float64.
    """

    is_gradient_checkpointing = False

    def __init__(self, name: str, rows: Sequence[Row], trained: bool = True) -> None:
        super().__init__()
        self.rows = [torch.tensor(row, dtype=torch.float64, requires_grad=trained) for row in rows]
        self.longest = max(len(row) for row in rows)
        stream = random.Random(f"{name}/rest")
        count = len(rows) * self.longest * VOCABULARY
        rest = [round(stream.uniform(-2.0, 2.0), 3) for _ in range(count)]
        self.rest = torch.tensor(rest, dtype=torch.float64).view(len(rows), self.longest, VOCABULARY)

    def forward(
        self, input_ids: Tensor, labels: Tensor | None = None, fused_lm_head: bool = False, **_: Any
    ) -> Tokens:
        logits = self.logits(input_ids)
        if not fused_lm_head:
            return Tokens(logits=logits)
        assert labels is not None
        logps, labels = logits[:, :-1].log_softmax(-1), labels[:, 1:]
        ignored = labels == IGNORED
        chosen = labels.masked_fill(ignored, 0)
        return Tokens(
            log_probs=logps.gather(-1, chosen[..., None])[..., 0].masked_fill(ignored, 0),
            entropy=-(logps.exp() * logps).sum(-1).masked_fill(ignored, 0),
            log_sum_sq_probs=(2 * logps).logsumexp(-1).detach().masked_fill(ignored, 0),
            mean_logits=logits[:, :-1].detach().mean(-1).masked_fill(ignored, 0),
            is_top1=(logps.argmax(-1) == chosen) & ~ignored,
        )

    def logits(self, input_ids: Tensor) -> Tensor:
        """[N, T, VOCABULARY], normalised, so that logits are log-probabilities."""
        steps = input_ids.shape[1] - 1
        keys = input_ids[:, 0].tolist()
        padded = [
            nn.functional.pad(self.rows[key][:steps], (0, max(steps - len(self.rows[key]), 0)), value=-1.0)
            for key in keys
        ]
        value = torch.stack(padded)[..., None]  # [N, steps, 1]
        target = nn.functional.one_hot(input_ids[:, 1:], VOCABULARY).bool()
        others = nn.functional.pad(self.rest[keys], (0, 0, 0, steps))[:, :steps]
        others = others.masked_fill(target, -torch.inf).log_softmax(-1)
        logits = torch.where(target, value, torch.log(-torch.expm1(value)) + others)
        return nn.functional.pad(logits, (0, 0, 0, 1))

    def gradients(self, keys: Sequence[int], start: int = PROMPT - 1) -> list[Row]:
        """d loss / d log-probability of each answer token of these rows."""
        rows: list[Row] = []
        for key in keys:
            gradient = self.rows[key].grad
            rows.append(
                [0.0] * (len(self.rows[key]) - start) if gradient is None else gradient[start:].tolist()
            )
        return rows


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """Token ids of some rows, padded on the right."""

    input_ids: Tensor
    attention_mask: Tensor
    completion_mask: Tensor

    def labels(self) -> Tensor:
        return self.input_ids.masked_fill(self.completion_mask == 0, IGNORED)


def encode(keys: Sequence[int], lengths: Sequence[int], ends: Sequence[bool] | None = None) -> Encoded:
    """Rows `keys` with answers of `lengths` tokens; the last is the end of sequence where `ends` says so."""
    width = PROMPT + max(lengths)
    ids = torch.full((len(keys), width), PAD)
    present = torch.zeros(len(keys), width, dtype=torch.int64)
    answer = torch.zeros(len(keys), width, dtype=torch.int64)
    for at, (key, length) in enumerate(zip(keys, lengths, strict=True)):
        tokens = [3 + (7 * key + 5 * place) % 7 for place in range(length)]  # 3 to 9: never special
        if ends is not None and ends[at]:
            tokens[-1] = EOS
        ids[at, : PROMPT + length] = torch.tensor([key, 1, 2, *tokens])
        present[at, : PROMPT + length] = 1
        answer[at, PROMPT : PROMPT + length] = 1
    return Encoded(input_ids=ids, attention_mask=present, completion_mask=answer)


def models(name: str, policy: Sequence[Row], reference: Sequence[Row]) -> tuple[StandIn, StandIn]:
    """Policy and reference from the rows of the answers; the prompt's two tokens get numbers of their own."""
    prompts = draw(f"{name}/prompt", [PROMPT - 1] * len(policy))
    both: list[StandIn] = []
    for role, rows in (("policy", policy), ("reference", reference)):
        whole = [prompt + row for prompt, row in zip(prompts, rows, strict=True)]
        both.append(StandIn(f"{name}/{role}", whole, trained=role == "policy"))
    return both[0], both[1]


def trainer(cls: type, args: Any, model: nn.Module, reference: nn.Module | None, **attributes: Any) -> Any:
    """A trainer of TRL without its set-up (data, optimizer, launcher): only what its loss reads."""
    made = object.__new__(cls)
    common = {
        "args": args,
        "model": model,
        "ref_model": reference,
        "accelerator": Accelerator(cpu=True),
        "aux_loss_enabled": False,
        "precompute_ref_logps": False,
        "is_encoder_decoder": False,
        "_metrics": defaultdict(lambda: defaultdict(list)),
        "_total_train_tokens": 0,
        "_tp_size": 1,
    }
    for key, value in (common | attributes).items():
        setattr(made, key, value)
    return made


def grouped(rows: Sequence[Row], sides: int) -> list[list[Row]]:
    """[pairs][sides][tokens] of rows that are ordered by side: all winners, then all losers."""
    count = len(rows) // sides
    return [[list(rows[side * count + pair]) for side in range(sides)] for pair in range(count)]
