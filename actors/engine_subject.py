"""A vLLM engine as the prover sees it."""

from __future__ import annotations

from typing import Any

from actors.adoption import Swap
from actors.engine_client import EngineClient
from actors.proof import CacheReading, LoadReport
from actors.transfer import Arrays
from pipelines.types import Canary, WeightVersion

PROBE_BLOCKS = 2  # KV blocks that the cache canary fills: a shorter prompt is never cached and shows nothing


class EngineSubject:
    """`swap`: how weights enter the engine."""

    def __init__(self, client: EngineClient, swap: Swap) -> None:
        self._client, self._swap = client, swap
        self.name, self.dtype = client.name, client.settings.dtype

    async def load(self, version: WeightVersion, tensors: Arrays) -> LoadReport:
        return await self._client.on_engine(lambda engine: self._swap.load(engine, version, tensors))

    async def forget(self, tainted: bool) -> None:
        await self._client.on_engine(self._swap.reset)
        if tainted:
            await self._client.on_engine(lambda engine: engine.collective_rpc("plumbline_zero_kv"))

    async def logprob(self, canary: Canary) -> float:
        return await self._client.logprob(canary.prompt, canary.media, canary.tokens, self._swap.request)

    async def read_caches(self, canary: Canary) -> CacheReading:
        """Decode a canary greedily and read from which caches the engine served it."""
        client = self._client
        block = await client.on_engine(lambda engine: engine.vllm_config.cache_config.block_size)
        padding = await client.prepare(self._padding, canary, PROBE_BLOCKS * block)
        item = await client.prepare(client.input, canary.prompt, canary.media, padding)
        before = await client.on_engine(_counters)
        output = await client.answer(item, client.params(temperature=0.0, max_tokens=1), self._swap.request)
        after = await client.on_engine(_counters)
        return CacheReading(
            cached_tokens=output.num_cached_tokens or 0,
            media=len(set(canary.prompt.media)),
            encoded=after[0] - before[0],
            media_hits=after[1] - before[1],
        )

    def _padding(self, canary: Canary, wanted: int) -> tuple[int, ...]:
        """The canary's answer over and over, until the prompt fills some KV blocks or the context is full."""
        processing = self._client.processing
        length = len(processing.encode(canary.prompt, canary.media).input_ids)
        missing = min(wanted + 1 - length, processing.max_length - length - 1)
        return (canary.tokens * (missing // len(canary.tokens) + 1))[: max(0, missing)]


def images_encoded(engine: Any) -> int:
    """Images that went through the vision tower since the first call."""
    (count,) = engine.collective_rpc("plumbline_count_images")
    return count


def _counters(engine: Any) -> tuple[int, int]:
    """(images encoded, images served by the multimodal cache) so far."""
    cache = engine.renderer.mm_processor_cache
    return images_encoded(engine), cache.make_stats().hits if cache is not None else 0
