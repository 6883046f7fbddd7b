"""The generators of a run and the weight version that each has proved."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from actors.producer import reach
from pipelines.journal import Journal
from pipelines.loop import RunFailed
from pipelines.types import Proof

POLL_S = 10.0  # one question to the publisher; without an answer it is asked again


class UnprovedVersion(RuntimeError):
    """A generator could not prove that it holds a published version; nothing may be sampled from it."""


class Fleet:
    """Brings every published version to every generator, in order, and writes the proofs to `journal`.

    A generator's version moves only after its proof holds, and after it has the reference that goes with
    it. `timeout_s`: deadline of one adoption, which drains, loads and proves, each with the engine's own
    deadline.
    """

    def __init__(self, generators: Sequence[Any], publisher: Any, journal: Journal, timeout_s: float) -> None:
        names = [f"generator-{index}" for index in range(len(generators))]
        self._generators = [reach(g, name, timeout_s) for g, name in zip(generators, names, strict=True)]
        self._publisher = reach(publisher, "publisher", timeout_s)
        self._journal = journal
        self._versions = dict.fromkeys(range(len(generators)), -1)

    def versions(self) -> dict[int, int]:
        """Index of each generator -> newest version it has proved; generators without one are left out."""
        return {index: number for index, number in self._versions.items() if number >= 0}

    async def follow(self) -> None:
        """Adopt versions for ever.

        Raises:
            UnprovedVersion: a generator could not prove one.
            RoleFailed: a generator or the publisher died or did not answer in time.
        """
        await asyncio.gather(*(self._follow(index) for index in self._versions))

    async def reached(self, number: int, deadline_s: float) -> None:
        """Wait until every generator has proved version `number`; RunFailed names those that have not."""
        until = time.monotonic() + deadline_s
        while behind := [index for index, version in self._versions.items() if version < number]:
            if time.monotonic() > until:
                raise RunFailed(
                    f"generators {behind} did not reach weight version {number} in {deadline_s:g} s; "
                    f"versions proved: {self._versions}"
                )
            await asyncio.sleep(0.05)

    async def _follow(self, index: int) -> None:
        known = 0  # number of the reference that the generator has; 0: the run's model
        while True:
            got = await self._publisher.next(after=self._versions[index], timeout_s=POLL_S)
            if got is None:
                continue
            version, [tensors, *reference] = got
            proof: Proof = await self._generators[index].adopt(version, tensors)
            self._journal.write("proof", **asdict(proof), holds=proof.holds)
            if not proof.holds:
                raise UnprovedVersion(
                    f"{proof.generator} could not prove weight version {proof.version} and takes no more "
                    f"work: bytes received {proof.bytes_received}, elements loaded {proof.elements_loaded}, "
                    f"canary change {proof.canary_change}, caches fresh {proof.caches_fresh}; "
                    f"{dict(proof.detail)}"
                )
            if reference and reference[0] != known:
                known, weights = reference
                await self._generators[index].adopt_reference(weights)
            self._versions[index] = version.number
