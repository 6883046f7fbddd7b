"""Loads a weight version into a decoder and proves, in four parts, that the decoder computes with it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from actors import proof
from actors.transfer import Arrays
from actors.waiting import all_of
from pipelines.types import Canary, Proof, WeightVersion

Parts = dict[str, proof.Verdict]
ATTEMPTS = 2  # what cannot be proved is loaded once more from the same tensors
NOT_TRIED = proof.Verdict(result="failed", detail={"error": "not tried"})


@dataclass(frozen=True, kw_only=True)
class Held:
    """The proved version that serves, with both sides' canaries under it."""

    number: int
    digest: str
    canaries: proof.Canaries


class Subject(Protocol):
    """What is brought to a version: an engine, or a model in torch."""

    name: str
    dtype: str

    async def load(self, version: WeightVersion, tensors: Arrays) -> proof.LoadReport: ...

    async def forget(self, tainted: bool) -> None:
        """Drop all that older weights computed; `tainted`: unproved ones as well, so overwrite it."""
        ...

    async def logprob(self, canary: Canary) -> float: ...

    async def read_caches(self, canary: Canary) -> proof.CacheReading:
        """Run a canary and say from which caches it was served."""
        ...


class Prover:
    """Brings versions into one subject. Nothing else may use it while `load_and_prove` runs."""

    def __init__(self, subject: Subject, canaries: Sequence[Canary]) -> None:
        self._subject = subject
        self._canaries = tuple(canaries)
        self._cache_canary = next((c for c in self._canaries if c.prompt.media), self._canaries[0])
        self._floor = proof.smallest_floor(subject.dtype)
        self._repeat_noise = 0.0
        self._tainted = False  # unproved weights are or were in it, and may have computed keys and values
        self.held: Held | None = None

    async def calibrate(self) -> tuple[float, ...]:
        """Canary values of the weights on disk, read twice: what differs is the noise of a repetition."""
        own = await self._read_canaries()
        self._repeat_noise = proof.largest_gap(own, await self._read_canaries())
        return own

    async def load_and_prove(self, version: WeightVersion, tensors: Arrays, received: proof.Verdict) -> Proof:
        """Sets `held` when the proof holds; leaves it as it was when not. Never raises for bad weights.

        `received`: the verdict on the bytes, which are loaded only if they are what was published.
        """
        began = time.perf_counter()
        parts: Parts = {"bytes": received, **dict.fromkeys(("elements", "canary", "caches"), NOT_TRIED)}
        held: Held | None = None
        attempts = 0
        while held is None and attempts < ATTEMPTS:
            attempts += 1
            parts, held = await self._attempt(version, tensors, received)
        self.held = held or self.held
        return self._result(version, parts, attempts, began)

    def refused(self, version: WeightVersion, received: proof.Verdict) -> Proof:
        """The proof of a version whose bytes are not what was published: nothing of it was loaded."""
        parts: Parts = {"bytes": received, **dict.fromkeys(("elements", "canary", "caches"), NOT_TRIED)}
        return self._result(version, parts, 0, time.perf_counter())

    def _result(self, version: WeightVersion, parts: Parts, attempts: int, began: float) -> Proof:
        return Proof(
            version=version.number,
            generator=self._subject.name,
            bytes_received=parts["bytes"].result,
            elements_loaded=parts["elements"].result,
            canary_change=parts["canary"].result,
            caches_fresh=parts["caches"].result,
            detail={"attempts": attempts, **{part: dict(verdict.detail) for part, verdict in parts.items()}},
            seconds=time.perf_counter() - began,
        )

    async def _attempt(
        self, version: WeightVersion, tensors: Arrays, received: proof.Verdict
    ) -> tuple[dict[str, proof.Verdict], Held | None]:
        """Load and prove once. The second value is None unless all parts hold.

        Nothing is run on weights that did not enter wholly: a step that fails in the middle leaves an
        engine's caches at odds with each other.
        """
        parts: Parts = {"bytes": received, **dict.fromkeys(("elements", "canary", "caches"), NOT_TRIED)}
        tainted = self._tainted
        if not tainted:  # else they are full of what the last attempt left
            with _failing(parts, "caches"):
                await self._subject.read_caches(
                    self._cache_canary
                )  # fills the caches, so that a forgotten reset shows afterwards
        self._tainted = True
        with _failing(parts, "elements"):
            parts["elements"] = proof.judge_elements(await self._subject.load(version, tensors))
        if parts["elements"].result == "failed":
            return parts, None
        with _failing(parts, "caches"):
            await self._subject.forget(tainted)
            parts["caches"] = proof.judge_caches(await self._subject.read_caches(self._cache_canary))
        held = None
        with _failing(parts, "canary"):
            now = proof.Canaries(own=await self._read_canaries(), learner=version.canary)
            parts["canary"] = self._judge_canaries(now)
            if all(part.result != "failed" for part in parts.values()):
                if self.held is None:
                    self._floor = proof.noise_floor(now, self._repeat_noise, self._precision(version))
                held = Held(number=version.number, digest=version.digest, canaries=now)
        self._tainted = held is None
        return parts, held

    def _precision(self, version: WeightVersion) -> str:
        """The coarser of both sides' number formats."""
        formats = {self._subject.dtype, *(digest.dtype for digest in version.manifest.values())}
        return "float32" if formats == {"float32"} else "bfloat16"

    def _judge_canaries(self, now: proof.Canaries) -> proof.Verdict:
        if len(now.learner) != len(now.own):
            error = f"the learner reports {len(now.learner)} canaries, the generator has {len(now.own)}"
            return proof.Verdict(result="failed", detail={"error": error})
        if self.held is None:
            return proof.judge_first(now, [len(c.tokens) for c in self._canaries])
        return proof.judge_change(self.held.canaries, now, self._floor)

    async def _read_canaries(self) -> tuple[float, ...]:
        return tuple(await all_of(self._subject.logprob(canary) for canary in self._canaries))


@contextmanager
def _failing(parts: dict[str, proof.Verdict], part: str) -> Iterator[None]:
    """An exception while a part is being proved is the failure of this part."""
    try:
        yield
    except Exception as error:
        parts[part] = proof.Verdict(result="failed", detail={"error": f"{type(error).__name__}: {error}"})
