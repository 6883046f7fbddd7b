"""The anchor: keeps the absolute log-ratio of one cell from falling."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from pipelines.objectives.base import CellTable, Reads, Statistic
from pipelines.objectives.margins import TaskEma
from pipelines.objectives.scoring import Scoring, Sum
from pipelines.objectives.terms import CellTerm


@dataclass(frozen=True)
class Anchor(CellTerm):
    """-log sigmoid(beta s - delta) of one side of an edge, or of a role; s = rho = log pi - log pi_ref, nats.

    mDPO, arXiv 2406.11839 (code and third-party notes read), its anchored preference term, with delta = 0.
    MFPO's margin term (arXiv 2410.15334, third-party note) is the same with delta = eta; its best eta is 0.
    A pair can be satisfied by lowering both sides; this term forbids that. `sign` = -1 pushes the log-ratio
    down instead (OPA-DPO's released anchor on its revised answer; code read). `delta` may follow a running
    mean that a pair's margin of the same name observes (MolPO's floor under the loser; derivative code read);
    a cell that lacks the part it is kept by has weight 0.

    A cell that several edges of the name share counts once, with the largest of their weights.
    Raises ValueError when `on` does not name cells, beta is not positive, or sign is not 1 or -1.
    """

    on: str = "text.winner"
    delta: float | TaskEma = 0.0  # on the scale of beta * s
    beta: float = 0.1
    sign: int = 1
    scoring: Scoring = field(default_factory=Sum)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.beta > 0:
            raise ValueError(f"Anchor(on={self.on!r}): beta must be positive, got {self.beta}")
        if self.sign not in (1, -1):
            raise ValueError(f"Anchor(on={self.on!r}): sign is 1 or -1, got {self.sign}")

    @property
    def views(self) -> frozenset[str]:
        return self.scoring.views

    @property
    def statistics(self) -> tuple[Statistic, ...]:
        return self.delta.statistics if isinstance(self.delta, TaskEma) else ()

    def weights(self, reads: Reads, cells: CellTable) -> Tensor:
        tasks = self._tasks(cells)
        return cells.weight if tasks is None else torch.where(tasks.isnan(), 0.0, cells.weight)

    def losses(self, reads: Reads, cells: CellTable) -> Tensor:
        lifted = self.sign * self.beta * self.scoring.cells(reads)[cells.cell]
        if isinstance(self.delta, TaskEma):
            return -F.logsigmoid(lifted - self.delta.level(reads, self._tasks(cells), lifted))
        return -F.logsigmoid(lifted - self.delta)

    def _tasks(self, cells: CellTable) -> Tensor | None:
        """[C] numbers of the tasks that the running mean is kept by."""
        by = self.delta.by if isinstance(self.delta, TaskEma) else None
        return None if by is None else cells.part(by)
