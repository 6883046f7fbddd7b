"""The publisher: owns the bytes of the newest weight versions and hands them out in order.

1. A version comes in buckets and is seen by nobody before it is whole: `hold`..., `publish`.
2. An older attempt is refused, and a number that does not grow.
3. The publisher owns what it hands out (`put` runs in its process): a learner that dies takes nothing along.
   What is handed out are references, one per bucket, or a folder: never bytes.
4. `next` waits for the oldest version a taker has not seen; `latest` is for one that joins.
5. A reference that the learner moved travels with every later version, with a number that tells a new one.
6. A call to a broadcast goes to those who waited when its version came: it has formed before others ask.
7. Only the last `keep` versions are held: a taker further behind gets the oldest that is left.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from actors.transfer import KEPT, Arrays, Shipment
from pipelines.types import WeightVersion

Handout = tuple[WeightVersion, list[Any]]
EMPTY: Arrays = {}
NOTHING: tuple[int, list[Any], set[str]] = (-1, [], set())  # never filled: no version has this number


class Publisher:
    """One weight stream. `put` turns a bucket into what takers receive (`ray.put` where it is placed)."""

    def __init__(
        self, attempt: int, put: Callable[[Mapping[str, Any]], Any] | None = None, keep: int = KEPT
    ) -> None:
        self._attempt = attempt
        self._put = put or (lambda tensors: tensors)
        self._keep = keep
        self._held: dict[int, Handout] = {}
        self._coming: tuple[int, list[Any], set[str]] = NOTHING  # number, buckets, names in them
        self._reference: list[Any] = []  # how many there were, and where the newest is
        self._changed = asyncio.Condition()
        self._waiting = 0  # takers that have all that is published
        self._call: Any = None  # to the broadcast of the newest version

    async def hold(self, attempt: int, number: int, tensors: Arrays) -> None:
        """A bucket of version `number`, which nobody sees yet. Raises as `publish` does."""
        self._accept(attempt, number, tensors)

    async def publish(
        self,
        version: WeightVersion,
        tensors: Arrays = EMPTY,
        folder: str | None = None,
        call: Any = None,
    ) -> int:
        """Take over a version: the last bucket of it, or all of it at once, or where it lies on disk.

        `call`: to its broadcast. Returns the number of takers who waited for the version; they get the call.
        Raises ValueError for an older attempt, a stale number or missing tensors.
        """
        self._accept(version.attempt, version.number, tensors)
        _, buckets, names = self._coming
        if folder is None and names != set(version.manifest):
            odd = sorted(names ^ set(version.manifest))[:3]
            self._coming = NOTHING
            raise ValueError(f"weight version {version.number}: tensors and manifest differ in {odd}")
        shipment = Shipment(buckets=tuple(buckets), folder=folder)
        async with self._changed:
            self._held[version.number] = (version, [shipment, *self._reference])
            for number in sorted(self._held)[: -self._keep]:
                del self._held[number]
            self._coming = NOTHING  # what is held is referred to from there alone
            self._call = call
            self._changed.notify_all()
            return self._waiting

    async def refer(self, attempt: int, weights: Mapping[str, Any]) -> None:
        """The reference's weights from the next version on. Raises ValueError for an older attempt."""
        self._fenced(attempt, "a reference")
        number = 1 + (self._reference[0] if self._reference else 0)
        self._reference = [number, Shipment(buckets=(self._put(weights),))]

    async def next(self, after: int, timeout_s: float) -> Handout | None:
        """The oldest held version above `after`, and in a list: its `Shipment` and, where the learner's
        reference is not the run's model any more, its number and `Shipment`.

        None when nothing was published within `timeout_s`.
        """

        def newer() -> list[int]:
            return [number for number in self._held if number > after]

        async with self._changed:
            waits = not newer()
            self._waiting += waits
            try:
                await asyncio.wait_for(self._changed.wait_for(newer), timeout_s)
            except TimeoutError:
                return None
            finally:
                self._waiting -= waits
            number = min(newer())
            version, [shipment, *reference] = self._held[number]
            if waits and number == max(self._held):
                shipment = replace(shipment, call=self._call)
            return version, [shipment, *reference]

    async def latest(self) -> Handout | None:
        """The newest version, as `next` gives it; None before the first."""
        return self._held[max(self._held)] if self._held else None

    async def newest(self) -> int:
        """Number of the newest published version, -1 before the first."""
        return max(self._held, default=-1)

    def _accept(self, attempt: int, number: int, tensors: Arrays) -> None:
        self._fenced(attempt, "weights")
        newest = max(self._held, default=-1)
        if number <= newest:
            raise ValueError(f"weight version {number} refused: version {newest} is already published")
        if self._coming[0] != number:
            self._coming = (number, [], set())
        _, buckets, names = self._coming
        if tensors:
            buckets.append(self._put(tensors))
            names |= set(tensors)

    def _fenced(self, attempt: int, what: str) -> None:
        if attempt != self._attempt:
            raise ValueError(f"{what} of attempt {attempt} refused: attempt {self._attempt} is running")
