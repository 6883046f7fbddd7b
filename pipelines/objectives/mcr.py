"""MCR: what one modality alone contributes, by permuting the other across samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from pipelines.objectives.base import EdgeTable, Reads
from pipelines.objectives.terms import EdgeTerm


@dataclass(frozen=True)
class PermutationContrast(EdgeTerm):
    """-(log pi(y | x) - log pi(y | x')) per token, x' the prompt with another sample's media: minus what the
    media alone tells about the answer.

    MCR, arXiv 2411.07335 (code read), its permutation contrast L_MIPD. The paper permutes latents inside the
    encoder; here the media of another prompt stand in, on an edge between the same answer under x and x'.
    Under the identity permutation it is 0. Its supervised contrastive and conditional-entropy terms couple
    latents of different samples and are left out; the game between encoders is `game`.
    """

    on: str = "media"

    @property
    def views(self) -> frozenset[str]:
        return frozenset({"policy"})

    def losses(self, reads: Reads, table: EdgeTable) -> Tensor:
        mean = reads.tokens["policy"].sum(-1) / reads.lengths.clamp(min=1)
        return mean[table.loser] - mean[table.winner]


def game(own: Sequence[Tensor], other: Sequence[Tensor], k: float, scale: float) -> list[Tensor]:
    """An encoder's regulariser gradients: scale (own + k other), from its own and the other modality's loss.

    k = -1 is greedy, 0 independent, 1 collaborative (MCR, code read). These are gradients of two losses with
    respect to one encoder, which a sum of terms cannot express: k differs by parameter.
    """
    return [scale * (mine + k * theirs) for mine, theirs in zip(own, other, strict=True)]
