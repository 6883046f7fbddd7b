"""What a perturbation and a region selector are, and how they meet."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from pipelines.types import Media, Op

Mask = NDArray[np.bool_]  # [height, width], True where damage goes
Picture = NDArray[np.uint8]  # [height, width, 3], RGB


@dataclass(frozen=True, kw_only=True)
class Regions:
    """Where to damage, and why there."""

    mask: Mask
    facts: Mapping[str, Any] = field(default_factory=dict[str, Any])  # JSON-able: keywords, boxes


class Perturbation(Protocol):
    """Damages a media inside a mask (None: everywhere). Pure: the same seed gives the same array.

    A frozen dataclass. `Media` may be of any kind; a perturbation refuses the kinds that it is not made for.
    """

    @property
    def strength(self) -> float:
        """How strong the damage is: larger is stronger, comparable within one kind of perturbation alone."""
        ...

    def __call__(self, media: Media, mask: Mask | None, seed: int) -> Media: ...


@runtime_checkable
class AboutAnswer(Protocol):
    """A perturbation that is complete only once the answer is known, e.g. one that draws what it says."""

    def about(self, answer: str, gold: Mapping[str, Any]) -> Perturbation:
        """The perturbation for this answer and data row."""
        ...


class RegionSelector(Protocol):
    """Finds the regions that an answer speaks of; None when it finds none. The seed serves random ones."""

    def __call__(self, media: Media, answer: str, gold: Mapping[str, Any], seed: int) -> Regions | None: ...


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
    if isinstance(perturbation, AboutAnswer):
        perturbation = perturbation.about(request.answer, request.gold)
    asked = (media, request.answer, request.gold, request.seed)
    regions = selector(*asked) if selector is not None else None
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


def recorded(perturbation: Perturbation, seed: int, **facts: Any) -> Op:
    """The operation that a perturbation leaves on its result: class name, settings, strength and `facts`.

    Settings are the fields that hold a number, text or nothing. `space` is "pixels" where there is no choice.
    """
    dataclass: Any = perturbation
    values = {entry.name: getattr(dataclass, entry.name) for entry in fields(dataclass)}
    settings = {name: value for name, value in values.items() if isinstance(value, bool | int | float | str)}
    name = re.sub(r"(?<!^)(?=[A-Z])", "_", type(perturbation).__name__).lower()
    params = {"space": "pixels", **settings, "strength": float(perturbation.strength), **facts}
    return Op(name=name, params=params, seed=seed)


def picture_of(media: Media, who: str) -> Picture:
    """The pixels of an image. Raises ValueError for media that is no rgb8 image, naming `who` asked."""
    if media.kind != "image" or media.space != "rgb8":
        raise ValueError(
            f"{who} reads images (space rgb8), got {media.kind} in space {media.space!r}; "
            "use a plug made for that kind of media"
        )
    return media.payload


def scaled(picture: Picture, width: int, height: int) -> Picture:
    """A picture at another size: mean over areas where it shrinks, bilinear where it grows."""
    import cv2

    library: Any = cv2
    if picture.shape[:2] == (height, width):
        return picture
    shrinks = picture.shape[0] * picture.shape[1] > height * width
    how = library.INTER_AREA if shrinks else library.INTER_LINEAR
    return library.resize(picture, (width, height), interpolation=how)


def within(media: Media, mask: Mask | None, op: Op, change: Callable[[Picture], Picture]) -> Media:
    """Apply `change` to the picture inside the mask; pixels outside keep their bytes.

    `change` sees the whole picture and returns one of the same shape, so that, unless it looks at the mask
    itself, a masked result equals the unmasked one inside the mask. Raises ValueError for media that is no
    rgb8 image and for a mask of another size.
    """
    picture = picture_of(media, op.name)
    if mask is not None and (mask.dtype != np.bool_ or mask.shape != picture.shape[:2]):
        expected = f"bool {picture.shape[:2]}"
        raise ValueError(f"{op.name}: expected a mask {expected}, got {mask.dtype} {mask.shape}")
    changed = change(picture)
    if mask is not None:
        changed = np.where(mask[..., None], changed, picture)
    return Media(kind=media.kind, space=media.space, payload=changed, parent=media.digest, op=op)
