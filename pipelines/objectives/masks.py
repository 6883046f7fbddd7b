"""SparsePO: learned or measured masks on tokens' rewards and divergences."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from pipelines.objectives.base import EdgeTable, Feature, Head, Reads, log_ratios
from pipelines.objectives.terms import EdgeTerm


class Masks:
    """Base: (mask of the rewards, mask of the divergences), both [N, L] and at least 0."""

    @property
    def heads(self) -> tuple[Head, ...]:
        return ()

    @property
    def needs(self) -> frozenset[Feature]:
        return frozenset({"reference_hidden"})

    def __call__(self, reads: Reads) -> tuple[Tensor, Tensor]:
        raise TypeError(f"{type(self).__name__} does not define its masks")


@dataclass(frozen=True)
class Constant(Masks):
    """The same mask on every token; (1, 1) is TDPO, (1, 0) is DPO."""

    rewards: float = 1.0
    divergences: float = 1.0

    @property
    def needs(self) -> frozenset[Feature]:
        return frozenset()

    def __call__(self, reads: Reads) -> tuple[Tensor, Tensor]:
        ones = reads.mask.to(reads.tokens["policy"].dtype)
        return self.rewards * ones, self.divergences * ones


@dataclass(frozen=True)
class Activation(Masks):
    """MaPO: the reference's mean activation of each token, scaled to [0, 1] over the answer, for both.

    The paper averages all layers; here it is the last one. Its z-normalisation changes nothing, since scaling
    to [0, 1] undoes any positive affine map. An answer whose activations are all equal gets 1.
    """

    def __call__(self, reads: Reads) -> tuple[Tensor, Tensor]:
        level = reads.features["reference_hidden"].mean(-1)
        low = level.masked_fill(~reads.mask, torch.inf).amin(-1, keepdim=True)
        high = level.masked_fill(~reads.mask, -torch.inf).amax(-1, keepdim=True)
        width = high - low
        mask = torch.where(width > 0, (level - low) / width.clamp(min=1e-12), 1.0)
        mask = torch.where(reads.mask, mask, 0.0)
        return mask, mask


@dataclass(frozen=True)
class Learned(Masks):
    """ReLU of a linear head on the layer-normed hidden states of the reference: one mask for both, or two.

    The paper mixes heads on all layers; here it is the last one, without its dropout and weight decay.
    """

    shared: bool = True
    name: str = "mask"

    @property
    def heads(self) -> tuple[Head, ...]:
        return (Head(name=self.name, outputs=1 if self.shared else 2),)

    def __call__(self, reads: Reads) -> tuple[Tensor, Tensor]:
        hidden = reads.features["reference_hidden"]
        masks = F.relu(reads.heads[self.name](F.layer_norm(hidden, hidden.shape[-1:])))
        masks = torch.where(reads.mask[..., None], masks, 0.0)
        return masks[..., 0], masks[..., -1]


@dataclass(frozen=True)
class SparsePair(EdgeTerm):
    """-log sigmoid(beta [(u_w - u_l) - (d_w - d_l)]) + l1 (|m^u| + |m^d|), summed over both answers' tokens.

    SparsePO, arXiv 2410.05102 (code read): u = sum_t m^u_t (log pi - log pi_ref)_t and d = sum_t m^d_t times
    -KL_t(pi_ref || pi). With masks of 1 it is TDPO's first variant, a penalty on the loser's KL; with m^d = 0
    and m^u = 1 it is DPO. The edges' own margins are subtracted.
    """

    beta: float = 0.1
    masks: Masks = field(default_factory=Activation)
    l1: float = 0.0

    @property
    def needs(self) -> frozenset[Feature]:
        return frozenset[Feature]({"kl_forward"}) | self.masks.needs

    @property
    def heads(self) -> tuple[Head, ...]:
        return self.masks.heads

    def losses(self, reads: Reads, table: EdgeTable) -> Tensor:
        rewards, divergences = self.masks(reads)
        score = (rewards * log_ratios(reads) + divergences * reads.features["kl_forward"]).sum(-1)
        losses = -F.logsigmoid(self.beta * (score[table.winner] - score[table.loser]) - table.margin)
        size = (rewards + divergences).sum(-1)
        return losses + self.l1 * (size[table.winner] + size[table.loser])
