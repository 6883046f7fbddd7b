"""Pictures: any of four formats in, RGB PNG out. Of an animation the first frame counts."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from serving.decoding.framing import Rejected

MIN_SIDE = 4  # pixels; as in alignment: below, a channel axis cannot be told from a spatial one
MAX_ASPECT = 200  # image processors of the Qwen2-VL family refuse more
EXPECTED = "send PNG, JPEG, WEBP or GIF"

Image.MAX_IMAGE_PIXELS = None  # ours is checked first, and says what to do


def clean(data: bytes, limits: dict[str, Any]) -> tuple[str, bytes]:
    """Media type and bytes. Raises Rejected."""
    kind = _format(data)
    if kind == "WEBP":  # its decoder allocates the canvas when it opens
        check_size(*_webp_size(data), limits["image_mpx"])
    try:
        image = Image.open(io.BytesIO(data), formats=[kind])
    except MemoryError:
        raise
    except Exception:  # a damaged header fails in as many ways as there are formats
        raise Rejected(f"no readable {kind}: its header is damaged; {EXPECTED}") from None
    check_size(*image.size, limits["image_mpx"])
    try:
        image.load()
        pixels = _rgb(image)
    except (MemoryError, Rejected):
        raise
    except Exception:
        raise Rejected(f"the {kind} is damaged or incomplete; send the whole file") from None
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG", compress_level=1)
    return "image/png", out.getvalue()


def check_size(width: int, height: int, most_mpx: float) -> None:
    """Raises Rejected for what is too large, too small or too narrow."""
    mpx = width * height / 1e6
    if mpx > most_mpx:
        raise Rejected(f"{mpx:.3g} Mpx ({width} x {height}), at most {most_mpx} Mpx; scale it down")
    short, long = sorted((width, height))
    if short < MIN_SIDE or long > MAX_ASPECT * short:
        raise Rejected(
            f"{width} x {height} pixels, expected sides of at least {MIN_SIDE} pixels and at most "
            f"1:{MAX_ASPECT}; scale or crop it"
        )


def _format(data: bytes) -> str:
    """By content; what the client calls it does not count."""
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if data.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if data.startswith((b"GIF87a", b"GIF89a")):
        return "GIF"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    raise Rejected(f"not a picture of a known format; {EXPECTED}")


def _webp_size(data: bytes) -> tuple[int, int]:
    """Of the canvas, from the first chunk (RFC 9649)."""
    chunk, body = data[12:16], data[20:30]
    if len(body) < 10:
        raise Rejected(f"no readable WEBP: its header is damaged; {EXPECTED}")
    little = int.from_bytes
    if chunk == b"VP8X":
        return little(body[4:7], "little") + 1, little(body[7:10], "little") + 1
    if chunk == b"VP8L":
        bits = little(body[1:5], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    return little(body[6:8], "little") & 0x3FFF, little(body[8:10], "little") & 0x3FFF


def _rgb(image: Image.Image) -> NDArray[np.uint8]:
    """As alignment sees it: upright, transparency on white, 16-bit grey scaled to 8 bits."""
    upright = ImageOps.exif_transpose(image)
    if upright.mode in ("I;16", "I;16B", "I;16L", "I"):
        grey = np.asarray(upright)
        scaled = (np.clip(grey, 0, 65535) // 257).astype(np.uint8)
        return np.repeat(scaled[:, :, None], 3, axis=2)
    if upright.has_transparency_data:
        layer = upright.convert("RGBA")
        page = Image.new("RGBA", layer.size, "white")
        upright = Image.alpha_composite(page, layer)
    return np.asarray(upright.convert("RGB"))
