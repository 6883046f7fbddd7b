"""Which part of a run counts after restarts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Lineage:
    """An attempt that resumes from step s rolls back what older attempts did after step s.

    `resumes` holds (attempt, step) of every such resume.
    """

    resumes: tuple[tuple[int, int], ...] = ()

    @staticmethod
    def of(events: Iterable[Mapping[str, Any]]) -> Lineage:
        """From the events `{"event": "resumed", "attempt": k, "step": s}`."""
        return Lineage(
            tuple((int(e["attempt"]), int(e["step"])) for e in events if e.get("event") == "resumed")
        )

    def keeps(self, attempt: int, step: int) -> bool:
        """Whether what this attempt did for this step is part of the final model."""
        return not any(attempt < resumed and step > start for resumed, start in self.resumes)
