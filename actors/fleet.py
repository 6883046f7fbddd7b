"""The generators of a run and the weight version that each has proved."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from pipelines.journal import Journal
from pipelines.types import Proof


class UnprovedVersion(RuntimeError):
    """A generator could not prove that it holds a published version; nothing may be sampled from it."""


class Fleet:
    """Brings every published version to every generator, in order, and keeps the proofs.

    A generator's version moves only after its proof holds.
    """

    def __init__(self, generators: Sequence[Any], publisher: Any, journal: Journal, timeout_s: float) -> None:
        self.generators = list(generators)
        self.proofs: list[Proof] = []
        self._publisher = publisher
        self._journal = journal
        self._timeout_s = timeout_s
        self._versions = dict.fromkeys(range(len(self.generators)), -1)

    def versions(self) -> dict[int, int]:
        """Index of each generator -> newest version it has proved; generators without one are left out."""
        return {index: number for index, number in self._versions.items() if number >= 0}

    async def follow(self) -> None:
        """Adopt versions for ever; ends only by cancellation or `UnprovedVersion`."""
        await asyncio.gather(*(self._follow(index) for index in self._versions))

    async def reached(self, number: int, deadline_s: float) -> None:
        """Wait until every generator has proved version `number`; TimeoutError names who has not."""
        until = time.monotonic() + deadline_s
        while behind := [index for index, version in self._versions.items() if version < number]:
            if time.monotonic() > until:
                raise TimeoutError(
                    f"generators {behind} did not reach weight version {number} in {deadline_s:g} s"
                )
            await asyncio.sleep(0.05)

    async def _follow(self, index: int) -> None:
        while True:
            got = await self._publisher.next.remote(after=self._versions[index], timeout_s=10.0)
            if got is None:
                continue
            version, [tensors] = got
            adopted = self.generators[index].adopt.remote(version, tensors)
            proof: Proof = await asyncio.wait_for(adopted, self._timeout_s)
            self.proofs.append(proof)
            self._journal.write("proof", **asdict(proof), holds=proof.holds)
            if not proof.holds:
                raise UnprovedVersion(
                    f"{proof.generator} could not prove weight version {proof.version} and takes no more work: "
                    f"bytes received {proof.bytes_received}, elements loaded {proof.elements_loaded}, canary "
                    f"change {proof.canary_change}, caches fresh {proof.caches_fresh}; {dict(proof.detail)}"
                )
            self._versions[index] = version.number
