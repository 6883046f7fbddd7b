"""What terms keep beside the policy: what they observe, and the heads that they train."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from pipelines.objectives.base import Head, Objective, Reads
from pipelines.objectives.batch import Totals, add_totals
from pipelines.settings import LearnerSettings


@torch.no_grad()
def observed(objective: Objective, reads: Reads) -> Totals:
    """What the terms observe in a micro-batch: key -> (sum, count)."""
    seen = [term.observe(reads) for _, term in objective.terms]
    return add_totals(
        [{key: (float(total), float(count)) for key, (total, count) in found.items()} for found in seen]
    )


class Heads:
    """The heads of all stages, in float32, equal on all ranks, each with an AdamW of its own."""

    def __init__(
        self, heads: Sequence[Head], width: int, settings: LearnerSettings, device: torch.device, seed: int
    ) -> None:
        self._settings, self._heads = settings, {head.name: head for head in heads}
        if len(self._heads) < len(heads):
            raise ValueError(
                f"two terms declare different heads of one name: {[head.name for head in heads]}"
            )
        self.modules: dict[str, nn.Module] = {}
        self._optimizers: dict[str, torch.optim.AdamW] = {}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            for name, head in sorted(self._heads.items()):
                self.modules[name] = head.build(width).to(device)
        self.reset()

    def reset(self) -> None:
        """Moments start anew."""
        for name, module in self.modules.items():
            self._optimizers[name] = torch.optim.AdamW(
                module.parameters(),
                lr=self._settings.lr,
                betas=self._settings.betas,
                weight_decay=self._settings.weight_decay,
            )

    def of(self, objective: Objective) -> dict[str, nn.Module]:
        return {head.name: self.modules[head.name] for head in objective.heads}

    def gather(self, objective: Objective) -> bool:
        """Averages the gradients of the objective's heads over ranks; whether all are finite."""
        finite = True
        for module in self.of(objective).values():
            for parameter in module.parameters():
                grad = parameter.grad if parameter.grad is not None else torch.zeros_like(parameter)
                dist.all_reduce(grad)
                parameter.grad = grad / dist.get_world_size()
                finite = finite and bool(torch.isfinite(parameter.grad).all())
        return finite

    def step(self, objective: Objective, applied: bool, warm: float) -> None:
        """Clips and steps after the policy did, `warm` of the full learning rate; forgets the gradients."""
        for name, module in self.of(objective).items():
            if applied:
                head, optimizer = self._heads[name], self._optimizers[name]
                torch.nn.utils.clip_grad_norm_(module.parameters(), self._settings.clip)
                for group in optimizer.param_groups:
                    group["lr"] = (head.lr or self._settings.lr) * warm
                optimizer.step()
            module.zero_grad(set_to_none=True)

    def state(self) -> dict[str, Any]:
        return {
            name: {"module": module.state_dict(), "optimizer": self._optimizers[name].state_dict()}
            for name, module in self.modules.items()
        }

    def load(self, state: Mapping[str, Any]) -> None:
        for name, saved in state.items():
            self.modules[name].load_state_dict(saved["module"])
            self._optimizers[name].load_state_dict(saved["optimizer"])
