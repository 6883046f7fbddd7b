"""When a generator may take another prompt: the bound on how old the weights behind a comparison can be.

Lag is counted in *published versions*. Version u is published after `u * sync_every` learner steps, so the
comparisons of step s (1-based) are trained when version `(s - 1) // sync_every` is due. A generator at
proved version u may add a group only while everything trained or under way fits into the steps at which
version u is at most `max_lag` versions behind:

    trained + live < (u + max_lag + 1) * sync_every * groups_per_step

With `max_lag = 0` and `sync_every = 1` this is strictly on-policy: the next step is sampled only from the
weights of the last one.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Admission:
    """The bound, and the end of the run: no more groups than `max_steps` need."""

    max_lag: int  # published versions
    sync_every: int  # learner steps between two published versions
    groups_per_step: int
    max_steps: int

    def __post_init__(self) -> None:
        for name, least in (("max_lag", 0), ("sync_every", 1), ("groups_per_step", 1), ("max_steps", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"admission: {name} is at least {least}, got {getattr(self, name)}")

    def admits(self, version: int, trained: int, live: int) -> bool:
        """Whether a generator at proved `version` may add a group.

        `trained` and `live` (leased + buffered + sealed) count groups of the whole run.
        """
        steps = min((version + self.max_lag + 1) * self.sync_every, self.max_steps)
        return trained + live < steps * self.groups_per_step

    def due(self, step: int) -> int:
        """Number of the version that is published before step `step` (1-based) is trained."""
        return (step - 1) // self.sync_every
