from __future__ import annotations

import pytest

from pipelines.worlds.glyphs.scenes import Glyph, Scene


@pytest.fixture(scope="session")
def two_objects() -> Scene:
    """A red seven top left and a blue one bottom right, drawn from two real scans."""
    common = {"size": 24, "turn": 0.0}
    seven = Glyph(digit=7, colour=0, cell=0, scan=7, corner=(4, 4), box=(4, 4, 28, 28), **common)
    one = Glyph(digit=1, colour=2, cell=3, scan=1, corner=(36, 36), box=(36, 36, 60, 60), **common)
    return Scene(id="by-hand", objects=(seven, one))
