"""Which version each slot of a model is to serve, and which replica may change over now. No Ray here."""

from __future__ import annotations

from dataclasses import dataclass, field

from serving.wire import SLOTS, Routing, Standing, Version

FORGET_S = 5.0  # a replica that has not asked for so long is gone; it asks every two seconds or sooner
CHANGE_S = 300.0  # a change-over that takes longer no longer holds up the others


@dataclass
class Slots:
    """One model's slots. Without a canary its slot serves the stable version, and nobody is sent there.

    Replicas ask; nobody is called. So a replica that dies, joins or is cut off needs no bookkeeping here.
    `now`: monotonic seconds.
    """

    model: str
    stable: Version
    canary: Version | None = None
    weight: float = 0.0
    previous: Version | None = None  # promoted before the stable one
    _seen: dict[str, tuple[Standing, float]] = field(default_factory=dict)
    _changing: dict[str, float] = field(default_factory=dict)  # replica -> since when

    def wanted(self, slot: str) -> Version:
        """The version that replicas of `slot` are to serve. Raises ValueError for a name that is no slot."""
        if slot not in SLOTS:
            raise ValueError(f"slot: expected one of {', '.join(SLOTS)}, got {slot!r}")
        return self.canary or self.stable if slot == "canary" else self.stable

    def ask(self, standing: Standing, now: float) -> Version | None:
        """The version that this replica is to change over to now; None: it stays as it is.

        A replica that serves nothing yet is answered at once. Of those that serve, a quarter may change over
        at a time, and one in any case; one that refused the version lately gives its turn away.
        """
        self._forget(now)
        self._seen[standing.replica] = (standing, now)
        target = self.wanted(standing.slot)
        if standing.version == target.id and standing.state == "serving":
            self._changing.pop(standing.replica, None)
            return None
        if standing.version is None:
            return self._first(standing)
        if target.id in standing.refused:
            self._changing.pop(standing.replica, None)
            return None
        if standing.replica in self._changing:
            return target
        peers = [one for one, _ in self._seen.values() if one.slot == standing.slot]
        since = [self._changing.get(one.replica) for one in peers]
        changing = sum(start is not None and now - start <= CHANGE_S for start in since)
        if changing >= max(1, len(peers) // 4):
            return None
        self._changing[standing.replica] = now
        return target

    def _first(self, standing: Standing) -> Version:
        """For a replica that starts. Where a version's files are damaged, the one before it is better than
        no replica at all; once everything was refused, it is told the damaged one again.
        """
        wanted = self.wanted(standing.slot)
        known = [one for one in (wanted, self.stable, self.previous) if one is not None]
        return next((one for one in known if one.id not in standing.refused), wanted)

    def standings(self, now: float) -> list[Standing]:
        """The replicas that asked lately, by name."""
        self._forget(now)
        return [standing for _, (standing, _) in sorted(self._seen.items())]

    def serves(self, slot: str, now: float) -> bool:
        """Whether a replica of `slot` serves the version that the slot is to have."""
        target = self.wanted(slot).id
        return any(
            one.slot == slot and one.state == "serving" and one.version == target
            for one in self.standings(now)
        )

    def routing(self, now: float) -> Routing:
        """Where clients go. Nobody is sent to a canary before a replica serves it."""
        ready = self.canary is not None and self.serves("canary", now)
        return Routing(
            model=self.model,
            stable=self.stable.id,
            canary=self.canary.id if self.canary is not None and ready else None,
            weight=self.weight if ready else 0.0,
        )

    def _forget(self, now: float) -> None:
        for replica in [r for r, (_, seen) in self._seen.items() if now - seen > FORGET_S]:
            del self._seen[replica]
            self._changing.pop(replica, None)
