"""A registry as the conductor follows it: promotions arrive by themselves, a bad canary is taken back."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from serving.registry.canary import CanaryGate, CanaryRules
from serving.registry.inbox import collect
from serving.registry.registry import Registry, RegistryError, as_version
from serving.replicas.conductor import Plan

PUBLIC = ("seq", "at", "act", "version", "previous", "weight", "why", "decision")


class Followed:
    """A `serving.replicas.conductor.Source`. Its measurements are of the pair of versions that runs now."""

    def __init__(self, registry: Registry, rules: CanaryRules) -> None:
        self._registry, self._rules = registry, rules
        self._lock = threading.Lock()  # the conductor calls from threads
        self._pair: tuple[str, str] | None = None
        self._gate = CanaryGate(rules)

    def __reduce__(self) -> tuple[Any, ...]:
        """It goes to the conductor's process without its measurements."""
        return Followed, (self._registry, self._rules)

    def plan(self) -> Plan:
        """What the slots are to serve, published versions included. Raises RegistryError where nothing is
        promoted."""
        collect(self._registry)
        return self._standing()

    def observe(self, slot: str, samples: Sequence[dict[str, Any]]) -> None:
        """Count live measurements; a canary that breaks its gate ends, and what was measured after that does
        not count. Samples of versions that no longer run in the slot (`version`, where it is given) are left
        out."""
        plan = self._standing()
        if plan.canary is None:
            return
        served = plan.canary.id if slot == "canary" else plan.stable.id
        verdict = self._judged(
            (plan.stable.id, plan.canary.id),
            slot,
            [sample for sample in samples if sample.get("version") in (None, served)],
        )
        if verdict is not None:
            self._registry.set_canary(None, 0.0, verdict, only=plan.canary.id)

    def _judged(self, pair: tuple[str, str], slot: str, samples: Sequence[dict[str, Any]]) -> str | None:
        """Why the canary of this pair has to end, if it has to."""
        with self._lock:
            if pair != self._pair:
                self._pair, self._gate = pair, CanaryGate(self._rules)
            for sample in samples:
                self._gate.add(slot, sample)
                if (verdict := self._gate.verdict()) is not None:
                    return verdict
        return None

    def _standing(self) -> Plan:
        stable, canary = self._registry.promoted(), self._registry.canary()
        before = self._registry.previous()
        if stable is None:
            raise RegistryError(f"{self._registry.folder}: nothing is promoted; `plumbline promote RUN`")
        plan = Plan(stable=as_version(stable), previous=None if before is None else as_version(before))
        return plan if canary is None else replace(plan, canary=as_version(canary[0]), weight=canary[1])

    def history(self) -> list[dict[str, Any]]:
        """Decisions, oldest first; without paths, machines and people."""
        acts = self._registry.history()
        return [{key: act[key] for key in PUBLIC if act.get(key) is not None} for act in acts]
