"""Other views of a scene: pictures of what a text says, how well a text fits a picture, banks of pictures.

They stand in for a diffusion model (OViP's negatives), for CLIP (AdaViP, TARS, CLIP-DPO) and for a
collection of real pictures (Re-Align). `gold` is the row with its `scene`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.types import Media
from pipelines.worlds.glyphs.captions import Mention, read_caption
from pipelines.worlds.glyphs.scenes import Glyph, Scene, Split, place_glyph, render_image, scenes
from pipelines.worlds.glyphs.vocabulary import CELLS, COLOURS, DIGITS


def scene_of_text(text: str, gold: Mapping[str, Any], seed: int, split: Split = "train") -> Scene:
    """The scene that a caption describes. Objects of the row's scene keep their looks, others get new ones.

    Of several mentions of one cell the first counts; what is outside the grammar is not drawn.
    """
    known = {_mention(glyph): glyph for glyph in _glyphs(gold)}
    rng = np.random.default_rng(seed)
    cells: dict[int, Glyph] = {}
    for mention in read_caption(text).mentions:
        if mention.cell not in cells:
            new = place_glyph(rng, split, (mention.digit, mention.colour), mention.cell)
            cells[mention.cell] = known.get(mention, new)
    objects = tuple(cells[cell] for cell in sorted(cells))
    return Scene(id=f"glyphs-drawn-{seed}", objects=objects)


def render_text(text: str, media: Media, gold: Mapping[str, Any], seed: int) -> NDArray[np.uint8]:
    """A picture of what a caption says, uint8 [64, 64, 3]; a `Renderer` for `replace.Generate`."""
    return render_image(scene_of_text(text, gold, seed))


def render_anew(text: str, media: Media, gold: Mapping[str, Any], seed: int) -> NDArray[np.uint8]:
    """As `render_text`, but every object gets a new look; a `Renderer` for synthetic pictures."""
    nothing = Scene(id="glyphs-nothing", objects=()).to_json()
    return render_image(scene_of_text(text, {"scene": nothing}, seed))


def similarity(media: Media, texts: Sequence[str], gold: Mapping[str, Any]) -> tuple[float, ...]:
    """How true each text is of the picture as it is now, 0 to 1; a `perturbations.similarity.Similarity`.

    For a text with mentions the mean over these of how visible the mentioned object is, 0 for one that is
    not there; for other texts, such as single words, the mean over words of how visible the most visible
    object is that a word names, 0 for words that name none. Visibility is the correlation of the pixels in
    the object's box with the scene as it was, 0 to 1; so it falls when the object is damaged.
    """
    seen = {_mention(glyph): _visibility(media, glyph, gold) for glyph in _glyphs(gold)}
    return tuple(_fit(text, seen) for text in texts)


def _fit(text: str, seen: Mapping[Mention, float]) -> float:
    mentions = read_caption(text).mentions
    if mentions:
        return float(np.mean([seen.get(mention, 0.0) for mention in mentions]))
    words = text.lower().split()
    named = [max((sight for m, sight in seen.items() if word in _words(m)), default=0.0) for word in words]
    return float(np.mean(named)) if named else 0.0


def _glyphs(gold: Mapping[str, Any]) -> tuple[Glyph, ...]:
    return Scene.from_json(gold["scene"]).objects


def _mention(glyph: Glyph) -> Mention:
    return Mention(glyph.digit, glyph.colour, glyph.cell)


def _words(mention: Mention) -> frozenset[str]:
    return frozenset((DIGITS[mention.digit], COLOURS[mention.colour], *CELLS[mention.cell].split()))


def _visibility(media: Media, glyph: Glyph, gold: Mapping[str, Any]) -> float:
    x0, y0, x1, y1 = glyph.box
    true = render_image(Scene.from_json(gold["scene"]))[y0:y1, x0:x1].astype(np.float64)
    shown = media.payload[y0:y1, x0:x1].astype(np.float64)
    true, shown = true - true.mean(), shown - shown.mean()
    norm = float(np.linalg.norm(true) * np.linalg.norm(shown))
    return max(float((true * shown).sum()) / norm, 0.0) if norm > 0 else 0.0


@dataclass(frozen=True)
class GlyphsBank:
    """The pictures of the first `count` scenes of a split; a `Bank` for `perturbations.replace`."""

    count: int
    seed: int = 0
    split: Split = "train"

    def __call__(self) -> Sequence[Media]:
        drawn = scenes(self.split, 0, self.count, self.seed)
        return [Media(kind="image", space="rgb8", payload=render_image(scene)) for scene in drawn]
