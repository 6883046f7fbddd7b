"""Loads a weight version into an engine and proves, in four parts, that the engine computes with it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from actors import proof
from actors.adoption import Arrays, Swap
from actors.engine_client import EngineClient
from pipelines.types import Canary, Proof, WeightVersion

ATTEMPTS = 2  # what cannot be proved is loaded once more from the same tensors
PROBE_BLOCKS = 2  # KV blocks that the cache canary fills: a shorter prompt is never cached and shows nothing
NOT_TRIED = proof.Verdict(result="failed", detail={"error": "not tried"})


@dataclass(frozen=True, kw_only=True)
class Held:
    """The proved version that serves, with both sides' canaries under it."""

    number: int
    canaries: proof.Canaries


class Prover:
    """Brings versions into one engine. Nothing else may use the engine while `load_and_prove` runs."""

    def __init__(self, client: EngineClient, swap: Swap, canaries: Sequence[Canary]) -> None:
        self._client = client
        self._swap = swap
        self._canaries = tuple(canaries)
        self._cache_canary = next((c for c in self._canaries if c.prompt.media), self._canaries[0])
        self._floor = proof.smallest_floor(client.settings.dtype)
        self._repeat_noise = 0.0
        self._tainted = False  # unproved weights have computed keys and values
        self.held: Held | None = None

    async def calibrate(self) -> tuple[float, ...]:
        """Canary values of the weights on disk, read twice: what differs is the noise of a repetition."""
        await self._client.on_engine(images_encoded)  # from here on images are counted
        own = await self._read_canaries()
        self._repeat_noise = proof.largest_gap(own, await self._read_canaries())
        return own

    async def load_and_prove(self, version: WeightVersion, tensors: Arrays) -> Proof:
        """Sets `held` when the proof holds; leaves it as it was when not. Never raises for bad weights."""
        began = time.perf_counter()
        received = await asyncio.to_thread(proof.judge_bytes, version, tensors)
        parts = {"bytes": received, **dict.fromkeys(("elements", "canary", "caches"), NOT_TRIED)}
        held: Held | None = None
        attempts = 0
        while received.result == "proved" and held is None and attempts < ATTEMPTS:
            attempts += 1
            parts, held = await self._attempt(version, tensors, received)
        self.held = held or self.held
        return Proof(
            version=version.number,
            generator=self._client.name,
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
        """Load and prove once. The second value is None unless all parts hold."""
        parts = {"bytes": received, **dict.fromkeys(("elements", "canary", "caches"), NOT_TRIED)}
        with _failing(parts, "caches"):
            await self._probe_caches()  # fills the caches, so that a forgotten reset shows afterwards
        with _failing(parts, "elements"):
            report = await self._client.on_engine(lambda engine: self._swap.load(engine, version, tensors))
            parts["elements"] = proof.judge_elements(report)
        with _failing(parts, "caches"):
            await self._client.on_engine(self._swap.reset)
            if self._tainted:
                await self._client.on_engine(lambda engine: engine.collective_rpc("plumbline_zero_kv"))
            parts["caches"] = proof.judge_caches(await self._probe_caches())
        held = None
        with _failing(parts, "canary"):
            now = proof.Canaries(own=await self._read_canaries(), learner=version.canary)
            parts["canary"] = self._judge_canaries(now)
            if all(part.result != "failed" for part in parts.values()):
                if self.held is None:
                    self._floor = proof.noise_floor(now, self._repeat_noise, self._precision(version))
                held = Held(number=version.number, canaries=now)
        self._tainted = held is None
        return parts, held

    def _precision(self, version: WeightVersion) -> str:
        """The coarser of both sides' number formats."""
        formats = {self._client.settings.dtype, *(digest.dtype for digest in version.manifest.values())}
        return "float32" if formats == {"float32"} else "bfloat16"

    def _judge_canaries(self, now: proof.Canaries) -> proof.Verdict:
        if len(now.learner) != len(now.own):
            error = f"the learner reports {len(now.learner)} canaries, the generator has {len(now.own)}"
            return proof.Verdict(result="failed", detail={"error": error})
        if self.held is None:
            return proof.judge_first(now, [len(c.tokens) for c in self._canaries])
        return proof.judge_change(self.held.canaries, now, self._floor)

    async def _read_canaries(self) -> tuple[float, ...]:
        lora = self._swap.request
        readings = [self._client.logprob(c.prompt, c.media, c.tokens, lora) for c in self._canaries]
        return tuple(await asyncio.gather(*readings))

    async def _probe_caches(self) -> proof.CacheReading:
        """Decode a canary greedily and read from which caches the engine served it."""
        client, canary = self._client, self._cache_canary
        block = await client.on_engine(lambda engine: engine.vllm_config.cache_config.block_size)
        padding = await client.prepare(self._padding, PROBE_BLOCKS * block)
        item = await client.prepare(client.input, canary.prompt, canary.media, padding)
        before = await client.on_engine(_counters)
        output = await client.answer(item, client.params(temperature=0.0, max_tokens=1), self._swap.request)
        after = await client.on_engine(_counters)
        return proof.CacheReading(
            cached_tokens=output.num_cached_tokens or 0,
            media=len(set(canary.prompt.media)),
            encoded=after[0] - before[0],
            media_hits=after[1] - before[1],
        )

    def _padding(self, wanted: int) -> tuple[int, ...]:
        """The canary's answer over and over, until the prompt fills some KV blocks or the context is full."""
        canary, processing = self._cache_canary, self._client.processing
        length = len(processing.encode(canary.prompt, canary.media).input_ids)
        missing = min(wanted + 1 - length, processing.max_length - length - 1)
        return (canary.tokens * (missing // len(canary.tokens) + 1))[: max(0, missing)]


@contextmanager
def _failing(parts: dict[str, proof.Verdict], part: str) -> Iterator[None]:
    """An exception while a part is being proved is the failure of this part."""
    try:
        yield
    except Exception as error:
        parts[part] = proof.Verdict(result="failed", detail={"error": f"{type(error).__name__}: {error}"})


def images_encoded(engine: Any) -> int:
    """Images that went through the vision tower since the first call."""
    (count,) = engine.collective_rpc("plumbline_count_images")
    return count


def _counters(engine: Any) -> tuple[int, int]:
    """(images encoded, images served by the multimodal cache) so far."""
    cache = engine.renderer.mm_processor_cache
    return images_encoded(engine), cache.make_stats().hits if cache is not None else 0
