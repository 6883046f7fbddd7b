"""Another picture in place of the true one: drawn at random, retrieved, or made from a text."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pipelines.perturbations.base import Mask, Picture, picture_of, recorded, scaled, within
from pipelines.types import Media

#: Loads other pictures. Hashable, and small when it travels: every process loads for itself.
Bank = Callable[[], Sequence[Media]]
Embedding = Callable[[Media], NDArray[Any]]  # [d]; nearness is the cosine

_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


@dataclass(frozen=True)
class MediaBank:
    """Pictures that are at hand already; for work inside one process, since they travel with it."""

    pictures: tuple[Media, ...]

    def __call__(self) -> Sequence[Media]:
        return self.pictures


@dataclass(frozen=True)
class FolderBank:
    """The pictures (png, jpg, webp, bmp) of a folder in order of their names; it holds all of them in memory.

    Raises ValueError when there is no such folder, none in it, or one that cannot be read.
    """

    path: str

    def __call__(self) -> Sequence[Media]:
        from PIL import Image

        folder = Path(self.path)
        files = (
            sorted(p for p in folder.iterdir() if p.suffix.lower() in _SUFFIXES) if folder.is_dir() else []
        )
        if not files:
            raise ValueError(
                f"bank of pictures: expected a folder with pictures, found none in {self.path!r}"
            )
        pictures: list[Media] = []
        for file in files:
            try:
                with Image.open(file) as opened:
                    payload = np.asarray(opened.convert("RGB"))
            except OSError as error:
                raise ValueError(f"bank of pictures: {str(file)!r} cannot be read: {error}") from error
            pictures.append(Media(kind="image", space="rgb8", payload=payload))
        return pictures


@lru_cache(maxsize=4)
def _pictures(bank: Bank) -> tuple[Media, ...]:
    """A bank is loaded once per process."""
    return tuple(bank())


@lru_cache(maxsize=4)
def _directions(bank: Bank, embed: Embedding) -> NDArray[np.float64]:
    """The embeddings of a bank at unit length, [pictures, d], made once per process."""
    return np.stack([_unit(embed(media)) for media in _pictures(bank)])


def _unit(vector: NDArray[Any]) -> NDArray[np.float64]:
    values = np.asarray(vector, dtype=np.float64).ravel()
    return values / max(float(np.linalg.norm(values)), 1e-12)


def _others(bank: Bank, media: Media) -> list[int]:
    """Positions of the pictures that differ from `media`."""
    others = [i for i, other in enumerate(_pictures(bank)) if other.digest != media.digest]
    if not others:
        raise ValueError("the bank of pictures holds no picture but the one to be replaced; add others to it")
    return others


def companions(bank: Bank, media: Media, count: int, seed: int) -> tuple[Media, ...]:
    """`count` different pictures of a bank, none of them `media`, for `compose`.

    Raises ValueError when the bank has fewer.
    """
    others = _others(bank, media)
    if len(others) < count:
        raise ValueError(
            f"the bank of pictures holds {len(others)} other pictures, expected at least {count}"
        )
    drawn = np.random.default_rng(seed).permutation(len(others))[:count]
    return tuple(_pictures(bank)[others[int(i)]] for i in drawn)


def colour_layout(media: Media) -> NDArray[np.float64]:
    """A cheap embedding without a model, [256]: where which colours are, and how much of each, half and half.

    An 8 x 8 thumbnail (192 values) and the square roots of a 4 x 4 x 4 colour histogram (64 values), each at
    unit length.
    """
    import cv2

    library: Any = cv2
    picture = picture_of(media, "colour_layout")
    thumbnail = library.resize(picture, (8, 8), interpolation=library.INTER_AREA)
    bins = (picture.reshape(-1, 3) // 64) @ np.array([16, 4, 1])
    histogram = np.bincount(bins, minlength=64)[:64]
    return np.concatenate([_unit(thumbnail), _unit(np.sqrt(histogram))])


def _at_size_of(picture: Picture, like: Picture) -> Picture:
    """At the size of the picture that it replaces, so that prompts keep their length."""
    return scaled(picture, like.shape[1], like.shape[0])


@dataclass(frozen=True)
class Swap:
    """A random other picture of a bank. mDPO and CHiP (third-party notes) compare it with milder kinds."""

    bank: Bank = field(repr=False)

    def __call__(self, media: Media, mask: Mask | None, seed: int) -> Media:
        picture_of(media, "swap")
        others = _others(self.bank, media)
        other = _pictures(self.bank)[others[int(np.random.default_rng(seed).integers(len(others)))]]
        op = recorded(self, seed, source=other.digest)
        return within(media, mask, op, lambda picture: _at_size_of(other.payload, picture))

    @property
    def strength(self) -> float:
        """Always 1: nothing of the picture is left."""
        return 1.0


@dataclass(frozen=True)
class Retrieve:
    """A random one of the `top` pictures of a bank that are most similar, though not equal, to this one.

    Re-Align (rDPO) takes a real picture from the nearest CLIP embeddings (from memory). The default embedding
    sees colours and their places alone; `similarity.ClipEmbedding` sees content.

    Raises ValueError when the bank holds no other picture.
    """

    bank: Bank = field(repr=False)
    embed: Embedding = field(default=colour_layout, repr=False)
    top: int = 1

    def __post_init__(self) -> None:
        if self.top < 1:
            raise ValueError(f"Retrieve(top=...): expected at least 1, got {self.top}")

    def __call__(self, media: Media, mask: Mask | None, seed: int) -> Media:
        picture_of(media, "retrieve")
        others = _others(self.bank, media)
        nearness = _directions(self.bank, self.embed)[others] @ _unit(self.embed(media))
        ranked = np.argsort(-nearness, kind="stable")[: self.top]
        rank = int(np.random.default_rng(seed).integers(len(ranked)))
        other = _pictures(self.bank)[others[int(ranked[rank])]]
        facts = {"source": other.digest, "rank": rank, "similarity": round(float(nearness[ranked[rank]]), 6)}
        return within(
            media, mask, recorded(self, seed, **facts), lambda picture: _at_size_of(other.payload, picture)
        )

    @property
    def strength(self) -> float:
        """How many neighbours it draws from: more are less similar."""
        return float(self.top)


class Renderer(Protocol):
    """Makes a picture, uint8 [height, width, 3], of what a text says, e.g. with a diffusion model.

    `media` is the picture that it will replace, `gold` the free columns of its row.
    """

    def __call__(self, text: str, media: Media, gold: Mapping[str, Any], seed: int) -> Picture: ...


@dataclass(frozen=True)
class Generate:
    """A picture of what the answer says, as a negative that matches the rejected answer.

    OViP (code read) has an LLM write an edit instruction and a diffusion model draw it; here both are the
    `render` plug. `damage` fills in the answer through `about`. Raises ValueError without a text.
    """

    render: Renderer = field(repr=False)
    text: str = ""
    gold: Mapping[str, Any] = field(default_factory=dict[str, Any], repr=False, hash=False)

    def about(self, answer: str, gold: Mapping[str, Any]) -> Generate:
        return dataclasses.replace(self, text=answer, gold=gold)

    def __call__(self, media: Media, mask: Mask | None, seed: int) -> Media:
        if not self.text.strip():
            raise ValueError(
                "generate: expected the answer to draw, got no text; is an answer chosen before?"
            )
        picture_of(media, "generate")

        def drawn(picture: Picture) -> Picture:
            return _at_size_of(self.render(self.text, media, self.gold, seed), picture)

        return within(media, mask, recorded(self, seed), drawn)

    @property
    def strength(self) -> float:
        """Always 1: nothing of the picture is left unless the renderer keeps it."""
        return 1.0
