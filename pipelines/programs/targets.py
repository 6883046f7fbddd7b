"""What auxiliary heads are trained on: numbers of the data row as score parts."""

from __future__ import annotations

from dataclasses import dataclass, replace

from pipelines.programs.sampling import rescored
from pipelines.rollout import Draft, Drop, Step, Tools
from pipelines.types import Score


@dataclass(frozen=True)
class BoxTargets(Step):
    """The first box of the row and how many there are, as parts of an answer's score.

    "box.x0", "box.y0", "box.x1" and "box.y1" are shares of the picture's width and height; "boxes" is their
    number. An answer that was not judged has no value, only parts.
    """

    of: str = "g"
    key: str = "boxes"

    async def __call__(self, draft: Draft, tools: Tools, seed: int) -> Draft:
        boxes = draft.prompt.gold.get(self.key)
        if not boxes or not draft.prompt.media:
            raise Drop(f"no_{self.key}")
        height, width = draft.media[draft.prompt.media[0]].payload.shape[:2]
        x0, y0, x1, y1 = boxes[0]["box"]
        parts = {"box.x0": x0 / width, "box.y0": y0 / height, "box.x1": x1 / width, "box.y1": y1 / height}
        parts["boxes"] = float(len(boxes))
        (index,) = draft.members(self.of)
        score = draft.scores[index] or Score(value=None, missing="not_judged")
        return rescored(draft, {index: replace(score, parts={**score.parts, **parts})})
