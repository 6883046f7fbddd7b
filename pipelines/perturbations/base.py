"""What a perturbation and a region selector are, and how they meet."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pipelines.types import Media, Op

Mask = NDArray[np.bool_]  # [height, width], True where damage goes


@dataclass(frozen=True, kw_only=True)
class Regions:
    """Where to damage, and why there."""

    mask: Mask
    facts: Mapping[str, Any] = field(default_factory=dict[str, Any])  # JSON-able: keywords, boxes


class Perturbation(Protocol):
    """Damages a media inside a mask (None: everywhere). Pure: the same seed gives the same array."""

    def __call__(self, media: Media, mask: Mask | None, seed: int) -> Media: ...


class RegionSelector(Protocol):
    """Finds the regions that an answer speaks of; None when it finds none."""

    def __call__(self, media: Media, answer: str, gold: Mapping[str, Any]) -> Regions | None: ...


@dataclass(frozen=True, kw_only=True)
class DamageRequest:
    """How one media is to be damaged."""

    perturbation: Perturbation
    seed: int
    selector: RegionSelector | None = None  # None: the whole media, on purpose
    answer: str = ""  # the selector looks for what it speaks of
    gold: Mapping[str, Any] = field(default_factory=dict[str, Any])  # free columns of the row


def damage(media: Media, request: DamageRequest) -> Media:
    """Damage the regions that the selector finds in `media`; the whole media when it finds none.

    The operation recorded on the result says whether that fallback was taken (`fallback`), so that it can
    be counted (MFPO, arXiv 2410.15334, falls back the same way; inferred from a third-party note).
    """
    perturbation, selector = request.perturbation, request.selector
    regions = selector(media, request.answer, request.gold) if selector is not None else None
    if regions is not None and not regions.mask.any():
        regions = None
    damaged = perturbation(media, regions.mask if regions is not None else None, request.seed)
    if damaged.op is None or damaged.parent != media.digest:
        raise ValueError(f"{type(perturbation).__name__} must record its operation and its parent media")
    facts: dict[str, Any] = dict(regions.facts) if regions is not None else {}
    if selector is not None:
        facts["fallback"] = regions is None
    op = Op(name=damaged.op.name, params={**damaged.op.params, **facts}, seed=damaged.op.seed)
    return replace(damaged, op=op)


def within(
    media: Media, mask: Mask | None, op: Op, change: Callable[[NDArray[np.uint8]], NDArray[np.uint8]]
) -> Media:
    """Apply `change` to the picture inside the mask; pixels outside keep their bytes.

    `change` sees the whole picture, uint8 [height, width, 3], and returns one of the same shape, so that a
    masked result equals the unmasked one inside the mask. Raises ValueError for media that is no rgb8 image
    and for a mask of another size.
    """
    if media.kind != "image" or media.space != "rgb8":
        raise ValueError(
            f"{op.name} damages images (space rgb8), got {media.kind} in space {media.space!r}; "
            "use a perturbation made for that kind of media"
        )
    if mask is not None and (mask.dtype != np.bool_ or mask.shape != media.payload.shape[:2]):
        expected = f"bool {media.payload.shape[:2]}"
        raise ValueError(f"{op.name}: expected a mask {expected}, got {mask.dtype} {mask.shape}")
    changed = change(media.payload)
    if mask is not None:
        changed = np.where(mask[..., None], changed, media.payload)
    return Media(kind=media.kind, space=media.space, payload=changed, parent=media.digest, op=op)
