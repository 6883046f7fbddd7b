"""From somebody's picture, whatever its format, to one RGB array; what cannot be read says why."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from pipelines.types import Media

FORMATS: Final = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
MAX_PIXELS: Final = 40_000_000  # checked in the header, before a decompression bomb is decoded
MIN_SIDE: Final = 4  # pixels; below, a channel axis cannot be told from a spatial one
MAX_ASPECT: Final = 200  # image processors of the Qwen2-VL family refuse more


class BadImage(ValueError):
    """A picture that cannot be used: what was found and what is expected."""

    def __init__(self, got: str, expected: str) -> None:
        super().__init__(got, expected)
        self.got, self.expected = got, expected


def check(source: Path | bytes) -> None:
    """Whether a picture can be loaded. Cheaper than `load`: JPEG is decoded at an eighth of its size."""
    with _opened(source) as image:
        image.draft("L", (1, 1))  # only JPEG heeds it
        _decode(image)


def load(source: Path | bytes) -> Media:
    """The picture as a media in space rgb8.

    Turned upright as its EXIF says; transparency lies on white; 16-bit grey is scaled to 8 bits; of an
    animation the first frame counts. Raises BadImage.
    """
    with _opened(source) as image:
        _decode(image)
        return Media(kind="image", space="rgb8", payload=_as_rgb(image))


def _opened(source: Path | bytes) -> Image.Image:
    if isinstance(source, Path) and not source.exists():
        raise BadImage("no such file", "a picture that exists")
    try:
        image = Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS)
    except Image.DecompressionBombError:
        raise BadImage("a picture of far more pixels", f"at most {MAX_PIXELS:,} pixels") from None
    except Exception as error:  # a damaged header fails in as many ways as there are formats
        if isinstance(error, OSError) and error.errno is not None:
            raise BadImage(str(error.strerror), "a readable file") from None
        raise BadImage("not a picture that can be read", f"one of {', '.join(FORMATS)}") from None
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise BadImage(f"{width} x {height} pixels", f"at most {MAX_PIXELS:,} pixels")
    short, long = sorted((width, height))
    if short < MIN_SIDE or long > MAX_ASPECT * short:
        raise BadImage(
            f"{width} x {height} pixels", f"sides of at least {MIN_SIDE} pixels and at most 1:{MAX_ASPECT}"
        )
    return image


def _decode(image: Image.Image) -> None:
    try:
        image.load()
    except Exception as error:
        reason = str(error) or type(error).__name__
        raise BadImage(f"a damaged or truncated picture ({reason})", "a complete one") from None


def _as_rgb(image: Image.Image) -> NDArray[np.uint8]:
    upright: Image.Image = ImageOps.exif_transpose(image)
    if upright.mode in ("I;16", "I;16B", "I;16L", "I"):
        grey: NDArray[Any] = np.asarray(upright).astype(np.int64)
        scaled = (np.clip(grey, 0, 65535) // 257).astype(np.uint8)
        return np.repeat(scaled[:, :, None], 3, axis=2)
    if upright.mode == "F":
        raise BadImage("floating-point grey", "8 or 16 bits per channel")
    if upright.has_transparency_data:
        layer = upright.convert("RGBA")
        page = Image.new("RGBA", layer.size, "white")
        upright = Image.alpha_composite(page, layer)
    return np.asarray(upright.convert("RGB"))
