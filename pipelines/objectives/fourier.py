"""TARS's spectral regulariser."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from pipelines.objectives.base import CellTable, Feature, Reads, names_of, require_side, side_cells
from pipelines.objectives.terms import CellTerm

transform: Callable[..., Tensor] = cast(Any, torch.fft).rfft
length: Callable[..., Tensor] = cast(Any, torch.linalg).vector_norm  # its gradient at 0 is 0


@dataclass(frozen=True)
class FftTriplet(CellTerm):
    """max(0, margin + |F(w) - F_ref(clean)| - |F(w) - F_ref(other)|): a triplet on spectra of hidden states.

    TARS, arXiv 2507.21584 (code read for the triplet and its margin; what follows is inferred). F is the
    magnitude of the Fourier transform over the width of the last hidden state, averaged over an answer's
    scored tokens, so that neither length nor padding changes it; distances are Euclidean. `on` is the
    policy's corrupted winner, `clean` and `other` the roles of the reference's clean winner and loser. Where
    a comparison lacks one of them the weight is 0; with several, the first counts.
    """

    clean: str = "clean"
    other: str = "cleanl"
    margin: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        require_side(self, self.clean)
        require_side(self, self.other)

    @property
    def edges(self) -> frozenset[str]:
        return super().edges | names_of(self.clean)[0] | names_of(self.other)[0]

    @property
    def roles(self) -> frozenset[str]:
        return super().roles | names_of(self.clean)[1] | names_of(self.other)[1]

    @property
    def needs(self) -> frozenset[Feature]:
        return frozenset({"hidden", "reference_hidden"})

    def weights(self, reads: Reads, cells: CellTable) -> Tensor:
        found = torch.stack([self._first(reads, role)[cells.owner] >= 0 for role in (self.clean, self.other)])
        return torch.where(found.all(0), cells.weight, 0.0)

    def losses(self, reads: Reads, cells: CellTable) -> Tensor:
        policy = self._spectra(reads, "hidden")[cells.cell]
        reference = self._spectra(reads, "reference_hidden").detach()
        near, far = (
            length(policy - reference[self._first(reads, role)[cells.owner]], dim=-1)
            for role in (self.clean, self.other)
        )
        return F.relu(self.margin + near - far)

    def _spectra(self, reads: Reads, feature: Feature) -> Tensor:
        """[N, frequencies]"""
        magnitudes = transform(reads.features[feature], dim=-1).abs()
        scored = torch.where(reads.mask[..., None], magnitudes, 0.0)
        return scored.sum(1) / reads.lengths.clamp(min=1)[:, None]

    def _first(self, reads: Reads, role: str) -> Tensor:
        """[size] the first cell of that role of each comparison, -1 without."""
        cells = side_cells(reads, role)
        first = torch.full((reads.size,), len(reads.lengths), device=reads.lengths.device)
        if cells is not None:
            first = first.scatter_reduce(0, cells.owner, cells.cell, "amin")
        return torch.where(first < len(reads.lengths), first, -1)
