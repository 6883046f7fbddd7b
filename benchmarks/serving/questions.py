"""What the loads ask: held-out scenes of the embedded world, as pictures in a chat's message."""

from __future__ import annotations

import base64
import io
from typing import Any

from numpy.typing import NDArray
from PIL import Image


def describe(pixels: NDArray[Any]) -> list[dict[str, object]]:
    """The content of a message that asks for a description of (height, width, 3) pixels."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    url = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
    return [
        {"type": "image_url", "image_url": {"url": url}},
        {"type": "text", "text": "describe the image ."},
    ]
