"""vLLM as a replica changes it over: verify, load, prove. It is reached through Ray Serve's engine alone."""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from actors.proof import CacheReading, LoadReport, judge_caches, judge_elements, largest_gap, smallest_floor
from serving.replicas import adapter_proof
from serving.replicas.adapters import Adapter
from serving.replicas.integrity import require_intact
from serving.replicas.probes import Unproved, probe
from serving.wire import Version

BESIDE_WEIGHTS = ("tokenizer.json", "chat_template.jinja", "generation_config.json", "processor_config.json")
VOLATILE = ("transformers_version", "_name_or_path")
STEP_S = 300.0  # for a call of the worker


class PolicyEngine:
    """`serving.replicas.swap.Engine` around a started `ray.llm` engine, which nothing else may use during
    `adopt`.

    Args:
        engine: Serve's engine, whose client is vLLM's.
        model: the name under which it serves.
        started_from: the folder whose configuration, tokenizer and template it holds for good.
        adapters: of the version that it was started with, and the folder of each.
    """

    def __init__(
        self,
        engine: Any,
        *,
        model: str,
        started_from: Path,
        adapters: Sequence[tuple[Adapter, Path]] = (),
    ) -> None:
        self._engine, self._model, self._adapters = engine, model, adapters
        self._client, self._probe = engine._engine_client, probe(engine, model)
        self._beside = _beside(started_from)
        self._known: dict[str, tuple[float, ...]] = {}  # version -> its canaries
        config = self._client.vllm_config.model_config
        self._floor = smallest_floor(str(config.dtype).removeprefix("torch."))

    async def first(self, version: Version) -> None:
        """Keep the canaries of the weights that vLLM loaded when it started: `adopt` must repeat them."""
        self._known[version.id] = await self._probe.canaries()

    async def verify(self, version: Version) -> None:
        await asyncio.to_thread(self._verify, version)

    def _verify(self, version: Version) -> None:
        if self._adapters and version.id not in self._known:
            raise Unproved("the adapters that are served beside the version before were trained on that one")
        require_intact(version)
        beside = _beside(Path(version.path))
        other = sorted(name for name in self._beside if self._beside[name] != beside[name])
        if other:
            raise Unproved(
                f"its {', '.join(other)} differ from what the engine was started with; only weights can be "
                "changed in place, so deploy it as a model of its own"
            )

    async def adopt(self, version: Version) -> Mapping[str, Any]:
        before = await self._probe.canaries()  # fills the caches, so that a forgotten reset shows afterwards
        await self._probe.cached()
        report = await self._load(version)
        elements = judge_elements(report)
        if elements.result == "failed":
            raise Unproved(f"elements: {dict(elements.detail)}")
        images = await self._images()
        cached = await self._probe.cached()
        after = await self._probe.canaries()
        reading = CacheReading(
            cached_tokens=cached,
            media=int(self._probe.sees),
            encoded=await self._images() - images,
            media_hits=0,
        )
        caches = judge_caches(reading)
        if caches.result == "failed":
            raise Unproved(f"caches: {dict(caches.detail)}")
        canary = self._judge(version, before, after)
        adapters = {
            one.name: await adapter_proof.add(self._engine, one, folder, self._model, self._floor)
            for one, folder in self._adapters
        }
        proof = {"elements": dict(elements.detail), "caches": dict(caches.detail), "canary": canary}
        return {**proof, "adapters": adapters}

    async def _load(self, version: Version) -> LoadReport:
        await self._client.pause_generation(mode="wait", clear_cache=True)
        try:
            reports = await self._client.collective_rpc(
                "plumbline_load_folder", timeout=STEP_S, args=(version.path,)
            )
            # Also where the load fails: the worker's caches are empty by then, the scheduler's are not.
        finally:
            await self._client.reset_mm_cache()
            await self._client.reset_encoder_cache()
            reset = await self._client.reset_prefix_cache()
            await self._client.resume_generation()
        if not reset:
            raise Unproved("caches: the prefix cache was not reset, a request still holds blocks of it")
        whole = [LoadReport(**report) for report in reports]
        return max(whole, key=lambda one: (bool(one.missing or one.stale), one.elements - one.written))

    def _judge(self, version: Version, before: tuple[float, ...], after: tuple[float, ...]) -> dict[str, Any]:
        """Finite, and what this replica saw of the version before.

        A version's first values have nothing to be held against here: that they differ from those before it
        is recorded, and that they do not is no failure (a change may be too small for a canary).
        """
        if not all(map(math.isfinite, after)):
            raise Unproved(f"canary: it gives {after}")
        known = self._known.setdefault(version.id, after)
        gap = largest_gap(known, after)
        scale = max(1.0, *(abs(value) for value in known))
        if gap > self._floor * scale:
            raise Unproved(f"canary: {after}, but {known} when the version was loaded before")
        moved = largest_gap(before, after)
        return {"values": list(after), "moved": moved, "distinguishable": moved > self._floor}

    async def alive(self) -> None:
        """Raises when the engine does not answer."""
        await self._probe.alive()

    async def _images(self) -> int:
        counts = await self._client.collective_rpc("plumbline_count_images", timeout=STEP_S)
        return int(counts[0])


def _beside(folder: Path) -> dict[str, Any]:
    """What an engine reads once, when it starts."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    files: dict[str, Any] = {
        "config.json": {key: value for key, value in config.items() if key not in VOLATILE}
    }
    for name in BESIDE_WEIGHTS:
        file = folder / name
        files[name] = hashlib.sha256(file.read_bytes()).hexdigest() if file.exists() else None
    return files
