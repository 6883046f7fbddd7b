"""The learner's eye: what the models say of a micro-batch, as terms read it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
import torch.distributed as dist
from torch import Tensor

from actors.forward import collate
from actors.policy import Policy
from actors.references import References
from actors.rows import Rows
from actors.running import Heads
from pipelines.objectives.base import Objective, Reads
from pipelines.objectives.batch import Table, tabulate
from pipelines.types import Canary, Comparison, MediaTable

LOGITS = 2**26  # most float32 logits of a micro-batch that live at once


@dataclass(frozen=True, kw_only=True)
class MicroBatch:
    """Comparisons that go through the models together."""

    comparisons: tuple[Comparison, ...]
    table: Table


class Reader:
    """Scores comparisons with policy and reference. All ranks call every method together."""

    def __init__(self, policy: Policy, references: References, heads: Heads) -> None:
        self._policy, self._references, self._heads = policy, references, heads
        self.rows = Rows(policy.processing)

    def micro_batches(self, comparisons: Sequence[Comparison], largest: int) -> list[MicroBatch]:
        """Equally many on all ranks; the last ones may be empty."""
        size = self._policy.settings.micro_batch
        chunks = [tuple(comparisons[start : start + size]) for start in range(0, largest, size)]
        return [MicroBatch(comparisons=chunk, table=tabulate(chunk, self._policy.device)) for chunk in chunks]

    def pieces(self, micros: Sequence[MicroBatch]) -> int:
        """In how many pieces all ranks project a micro-batch to the vocabulary."""
        most = max(sum(len(cell.response.tokens) for cell in micro.table.cells) for micro in micros)
        tokens = torch.tensor(most, device=self._policy.device)
        dist.all_reduce(tokens, dist.ReduceOp.MAX)
        return max(1, math.ceil(int(tokens) * self._policy.processing.text_config.vocab_size / LOGITS))

    def read(
        self,
        micro: MicroBatch,
        media: MediaTable,
        pieces: int,
        objective: Objective,
        carry: Mapping[str, float],
    ) -> tuple[Reads, Tensor]:
        """(what the terms of the objective read, a zero that holds every output of the policy in the graph).

        Without that zero ZeRO-3 would see other modules in the backward of a rank whose terms read nothing.
        """
        table, policy, needs = micro.table, self._policy, objective.needs
        batch = collate(self.rows.of(table, media), policy.processing, pieces).to(policy.device)
        reference = self._references.read(batch, table, micro.comparisons, objective)
        found = policy(batch, needs, reference.selected if reference else None)
        reads = table.reads(policy.device)
        cells, length = reads.mask.shape  # what lies behind the table's cells is padding
        tokens = {"policy": found["logps"]}
        features = {name: values for name, values in found.items() if name in needs}
        if reference is not None:
            tokens["reference"] = reference.logps
            if reference.hidden is not None:
                features["reference_hidden"] = reference.hidden
        tokens = {view: values[:cells, :length] for view, values in tokens.items()}
        if "behaviour" in objective.views:
            tokens["behaviour"] = table.behaviour(policy.device).masked_fill(~reads.mask, 0.0)
        reads = replace(
            reads,
            tokens=tokens,
            features={name: values[:cells, :length] for name, values in features.items()},
            heads=self._heads.of(objective),
            carry=carry,
        )
        zero = torch.stack([values.sum() for values in found.values()]).sum() * 0.0
        return reads, zero

    @torch.no_grad()
    def reliance(self, comparisons: Sequence[Comparison], media: MediaTable) -> list[float]:
        """log p(y|x, m) - log p(y|x, gray m) of a few answers, nats."""
        rows = self.rows.with_and_without_media(comparisons, media)
        batch = collate(self.rows.padded(rows), self._policy.processing).to(self._policy.device)
        scores = self._policy(batch)["logps"].sum(-1)
        return (scores[: len(rows) : 2] - scores[1 : len(rows) : 2]).tolist()

    @torch.no_grad()
    def canary(self, canaries: Sequence[Canary]) -> tuple[float, ...]:
        """Summed log-probability of each canary's answer, nats."""
        scores: list[float] = []
        for canary in canaries:
            batch = collate(self.rows.of_canary(canary), self._policy.processing).to(self._policy.device)
            scores.append(float(self._policy(batch)["logps"][0].sum()))
        return tuple(scores)
