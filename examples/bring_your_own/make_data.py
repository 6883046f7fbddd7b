"""Draw the pictures of this example and write `data.jsonl`: python examples/bring_your_own/make_data.py

Your own data needs no such script; it is here so that nothing in this folder is a mystery. The pictures are
scenes of the glyphs world with a seed of their own, stored as ordinary PNG files.
"""

from __future__ import annotations

import json
from pathlib import Path

from PIL import Image

from pipelines.worlds.glyphs.scenes import Scene, render_image, scenes
from pipelines.worlds.glyphs.vocabulary import COLOURS, DIGITS

HERE = Path(__file__).parent
COUNT = 16
SEED = 7_001


def row(number: int, scene: Scene) -> dict[str, object]:
    """One line of data.jsonl; every second one in the conversational form, to show both."""
    picture = f"images/{number:02d}.png"
    Image.fromarray(render_image(scene)).save(HERE / picture, optimize=True)
    question = "describe the image ."
    content = [{"type": "image"}, {"type": "text", "text": question}]
    return {
        "id": f"scene-{number:02d}",
        "prompt": question if number % 2 == 0 else [{"role": "user", "content": content}],
        "images": [picture],
        "objects": [f"{COLOURS[glyph.colour]} {DIGITS[glyph.digit]}" for glyph in scene.objects],
    }


def main() -> None:
    (HERE / "images").mkdir(exist_ok=True)
    rows = [row(number, scene) for number, scene in enumerate(scenes("train", 0, COUNT, SEED))]
    (HERE / "data.jsonl").write_text("".join(json.dumps(line) + "\n" for line in rows), encoding="utf-8")


if __name__ == "__main__":
    main()
