"""A picture for canaries, and for the command that users paste: a red square on black."""

from __future__ import annotations

import base64
import io

from PIL import Image


def picture() -> str:
    """Its data URL, a PNG of 64x64 pixels."""
    image = Image.new("RGB", (64, 64), "black")
    image.paste((255, 0, 0), (8, 8, 24, 24))
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
