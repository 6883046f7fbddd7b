"""Margins inside the link."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from pipelines.objectives.base import EdgeTable, Feature, Reads, Statistic, numbers
from pipelines.objectives.plugs import Margin
from pipelines.objectives.scoring import Mean, Scoring
from pipelines.objectives.terms import known


@dataclass(frozen=True)
class Constant(Margin):
    """gamma for every edge (SimPO, arXiv 2405.14734; TRL's code read: gamma itself, papers quote gamma /
    beta)."""

    gamma: float

    def __call__(self, reads: Reads, table: EdgeTable, gap: Tensor) -> Tensor:
        return torch.full_like(gap, self.gamma)


@dataclass(frozen=True)
class ScoreGap(Margin):
    """scale * (score_w - score_l) of the value, or of a named part. An edge that lacks it has weight 0.

    UV-CoT's score-difference DPO (third-party note; the released code leaves it out). MODPO, arXiv 2310.03708
    (code read): the frozen margin rewards are parts, scale = w_k / w_1, and beta = beta' / w_1.
    """

    scale: float = 1.0
    part: str = "value"

    def known(self, table: EdgeTable) -> Tensor:
        return known(*table.part(self.part))

    def __call__(self, reads: Reads, table: EdgeTable, gap: Tensor) -> Tensor:
        winner, loser = table.part(self.part)
        return (self.scale * (winner - loser)).nan_to_num()


@dataclass(frozen=True)
class KLGap(Margin):
    """beta (d_l - sg d_w), d = sum_t KL(pi_ref || pi) over an answer's positions, nats. It carries a
    gradient.

    TDPO, arXiv 2404.11999 (code read), -log sigmoid(u - alpha (beta d_l - sg beta d_w)): `beta` here is alpha
    beta, and `frozen_winner` = False gives its first variant, alpha = 1 and both sides with gradient.

    The sign: d/d d_l of -log sigmoid(h - beta d_l) is + beta sigmoid(beta d_l - h) > 0, so minimising lowers
    d_l, the loser's KL: a penalty. CHiP's released code (arXiv 2501.16629, read) has this form, beta = 0.1 *
    0.1. CHiP's paper, as transcribed in a third-party note, adds gamma (sg d_w - d_l) to the loss; minimising
    that *raises* d_l without bound. Both exist here: this margin, and the term `kl.LoserKl` with the weight
    -gamma.
    """

    beta: float
    frozen_winner: bool = True

    @property
    def views(self) -> frozenset[str]:
        return frozenset({"policy", "reference"})

    @property
    def needs(self) -> frozenset[Feature]:
        return frozenset({"kl_forward"})

    def __call__(self, reads: Reads, table: EdgeTable, gap: Tensor) -> Tensor:
        kl = reads.features["kl_forward"].sum(-1)
        winner = kl.detach() if self.frozen_winner else kl
        return self.beta * (kl[table.loser] - winner[table.winner])


@dataclass(frozen=True)
class ReferenceGate(Margin):
    """beta max(0, log pi_ref(w) - log pi_ref(l)), for a reference-free scoring with the same beta.

    HyPO, "reference gating", arXiv 2602.11902 (formula from a name-collision note): where the reference
    prefers the loser its opinion is left out. Not the HyPO of arXiv 2406.01462.
    """

    beta: float

    @property
    def views(self) -> frozenset[str]:
        return frozenset({"reference"})

    def __call__(self, reads: Reads, table: EdgeTable, gap: Tensor) -> Tensor:
        logps = reads.tokens["reference"].sum(-1)
        return self.beta * F.relu(logps[table.winner] - logps[table.loser])


@dataclass(frozen=True)
class TaskEma(Margin):
    """scale * R, R = the running mean (EMA) of the winners' score, apart for each task; 0 before the first
    step.

    MolPO's adaptive margin (derivative code read). `by`: score part that holds the task's number; None: one
    task; an edge whose winner lacks the part has weight 0. Before the margin is subtracted the gap is bounded
    from above by clip * |R|, so that easy pairs stop pulling; that carries a gradient. A task is not bounded
    before its first step (inferred).
    """

    name: str
    scale: float = 1.0
    by: str | None = None
    decay: float = 0.99
    clip: float | None = None
    scoring: Scoring = field(default_factory=lambda: Mean(against=None))

    @property
    def views(self) -> frozenset[str]:
        return self.scoring.views

    @property
    def statistics(self) -> tuple[Statistic, ...]:
        return (Statistic(name=self.name, kind="ema", decay=self.decay),)

    def known(self, table: EdgeTable) -> Tensor:
        return super().known(table) if self.by is None else known(table.part(self.by)[0])

    def level(self, reads: Reads, tasks: Tensor | None, like: Tensor) -> Tensor:
        """scale * R of each task number in `tasks` (nan: none), shaped and typed as `like`."""
        return self.scale * self._running(reads, tasks, like).nan_to_num()

    def __call__(self, reads: Reads, table: EdgeTable, gap: Tensor) -> Tensor:
        tasks = None if self.by is None else table.part(self.by)[0]
        level = self.level(reads, tasks, gap)
        if self.clip is None:
            return level
        bound = (self.clip * self._running(reads, tasks, gap).abs()).nan_to_num(nan=torch.inf)
        return level + F.relu(gap - bound)

    @torch.no_grad()
    def observe(self, reads: Reads, table: EdgeTable) -> Mapping[str, tuple[Tensor, Tensor]]:
        scores = self.scoring.sides(reads, table)[0]
        counted = (table.weight > 0) & self.known(table)
        if self.by is None:
            return {self.name: (scores[counted].sum(), counted.sum())}
        tasks = table.part(self.by)[0]
        rows = {task: counted & (tasks == task) for task in set(numbers(tasks[counted]))}
        return {self._key(task): (scores[row].sum(), row.sum()) for task, row in rows.items()}

    def _running(self, reads: Reads, tasks: Tensor | None, like: Tensor) -> Tensor:
        """R, nan before the first step of a task."""
        keys = [self.name] * len(like) if tasks is None else [self._key(task) for task in numbers(tasks)]
        return like.new_tensor([reads.carry.get(key, torch.nan) for key in keys])

    def _key(self, task: float) -> str:
        return f"{self.name}/{task:g}"


@dataclass(frozen=True)
class Together(Margin):
    """The sum of several margins (MODPO with more than two objectives)."""

    margins: tuple[Margin, ...]

    @property
    def views(self) -> frozenset[str]:
        return frozenset[str]().union(*(margin.views for margin in self.margins))

    @property
    def needs(self) -> frozenset[Feature]:
        return frozenset[Feature]().union(*(margin.needs for margin in self.margins))

    @property
    def statistics(self) -> tuple[Statistic, ...]:
        return tuple(item for margin in self.margins for item in margin.statistics)

    def known(self, table: EdgeTable) -> Tensor:
        return torch.stack([super().known(table), *(margin.known(table) for margin in self.margins)]).all(0)

    def __call__(self, reads: Reads, table: EdgeTable, gap: Tensor) -> Tensor:
        return torch.stack([torch.zeros_like(gap), *(m(reads, table, gap) for m in self.margins)]).sum(0)

    def observe(self, reads: Reads, table: EdgeTable) -> Mapping[str, tuple[Tensor, Tensor]]:
        return {key: item for m in self.margins for key, item in m.observe(reads, table).items()}
