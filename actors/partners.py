"""With whom a lease is carried out. It travels with the lease, so that pools may change at any time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from actors.remote import reach


@dataclass(frozen=True, kw_only=True)
class Partners:
    """Handles of actors, or objects of this process."""

    generator: Any
    perturbers: Sequence[Any]
    ledger: Any

    def within(self, timeout_s: float) -> Partners:
        """The same with deadlines: `timeout_s` is that of one request to an engine."""
        return Partners(
            # A request may wait at the gate while a sync, which has the same deadline, is under way.
            generator=reach(self.generator, "generator", 3 * timeout_s),
            perturbers=[reach(perturber, "perturber", timeout_s) for perturber in self.perturbers],
            ledger=reach(self.ledger, "ledger", timeout_s),
        )
