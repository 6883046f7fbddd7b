"""vLLM as a replica changes it over: verify, load, prove. It is reached through Ray Serve's engine alone."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import io
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image
from ray.serve.llm.openai_api_models import ChatCompletionRequest, CompletionRequest

from actors.checkpoints import MANIFEST, verify
from actors.proof import CacheReading, LoadReport, judge_caches, judge_elements, smallest_floor
from serving.wire import Version

CANARY = "describe the image ."
BESIDE_WEIGHTS = ("tokenizer.json", "chat_template.jinja", "generation_config.json", "processor_config.json")
VOLATILE = ("transformers_version", "_name_or_path")
PROBE_BLOCKS = 2  # of keys and values, so that a prefix cache has something to hold
STEP_S = 300.0  # for a call of the worker


class Unproved(RuntimeError):
    """The engine does not provably compute with the version; the message says which part failed."""


class PolicyEngine:
    """`serving.replicas.swap.Engine` around a started `ray.llm` engine, which nothing else may use during
    `adopt`.

    Args:
        engine: Serve's engine, whose client is vLLM's.
        model: the name under which it serves.
        started_from: the folder whose configuration, tokenizer and template it holds for good.
        sees: whether the canary shows an image as well.
    """

    def __init__(self, engine: Any, *, model: str, started_from: Path, sees: bool) -> None:
        self._engine, self._client, self._model = engine, engine._engine_client, model
        self._beside = _beside(started_from)
        self._sees = sees
        self._known: dict[str, tuple[float, ...]] = {}  # version -> its canaries
        config = self._client.vllm_config
        self._floor = smallest_floor(str(config.model_config.dtype).removeprefix("torch."))
        ids = self._client.get_tokenizer()(CANARY, add_special_tokens=False)["input_ids"]
        wanted = PROBE_BLOCKS * config.cache_config.block_size + 1
        length = min(wanted, config.model_config.max_model_len - 1)
        self._ids = (ids * (length // len(ids) + 1))[:length]

    async def first(self, version: Version) -> None:
        """Keep the canaries of the weights that vLLM loaded when it started: `adopt` must repeat them."""
        self._known[version.id] = await self._canaries()

    async def verify(self, version: Version) -> None:
        await asyncio.to_thread(self._verify, version)

    def _verify(self, version: Version) -> None:
        path = Path(version.path)
        if (path / MANIFEST).exists():  # a model of somebody's own has none
            if hashlib.sha256((path / MANIFEST).read_bytes()).hexdigest() != version.digest:
                raise Unproved("its manifest is not the one that was registered")
            verify(path)
        beside = _beside(path)
        other = sorted(name for name in self._beside if self._beside[name] != beside[name])
        if other:
            raise Unproved(
                f"its {', '.join(other)} differ from what the engine was started with; only weights can be "
                "changed in place, so deploy it as a model of its own"
            )

    async def adopt(self, version: Version) -> Mapping[str, Any]:
        before = await self._canaries()  # fills the caches, so that a forgotten reset shows afterwards
        await self._greedy()
        report = await self._load(version)
        elements = judge_elements(report)
        if elements.result == "failed":
            raise Unproved(f"elements: {dict(elements.detail)}")
        images = await self._images()
        output = await self._greedy()
        after = await self._canaries()
        reading = CacheReading(
            cached_tokens=_cached(output),
            media=int(self._sees),
            encoded=await self._images() - images,
            media_hits=0,
        )
        caches = judge_caches(reading)
        if caches.result == "failed":
            raise Unproved(f"caches: {dict(caches.detail)}")
        canary = self._judge(version, before, after)
        return {"elements": dict(elements.detail), "caches": dict(caches.detail), "canary": canary}

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
            raise Unproved(f"canary: its log-probability is {after}")
        known = self._known.setdefault(version.id, after)
        gap = max(abs(a - b) for a, b in zip(known, after, strict=True))
        scale = max(1.0, *(abs(value) for value in known))
        if gap > self._floor * scale:
            raise Unproved(f"canary: {after}, but {known} when the version was loaded before")
        moved = max(abs(a - b) for a, b in zip(before, after, strict=True))
        return {"values": list(after), "moved": moved, "distinguishable": moved > self._floor}

    # -- questions to the engine --------------------------------------------------------------------------

    async def token(self) -> None:
        """Generate one; raises when the engine does not."""
        await self._completion(prompt=self._ids[:1], max_tokens=1)

    async def _canaries(self) -> tuple[float, ...]:
        """Summed log-probabilities of the canary's text; and of one after an image, where the model sees."""
        content: list[dict[str, Any]] = [{"type": "text", "text": CANARY}]
        values = [await self._of_prompt(content)]
        if self._sees:
            picture = {"type": "image_url", "image_url": {"url": _picture()}}
            values.append(await self._of_prompt([picture, *content]))
        return tuple(values)

    async def _of_prompt(self, content: list[dict[str, Any]]) -> float:
        request = ChatCompletionRequest(
            model=self._model,
            messages=[{"role": "user", "content": content}],
            max_tokens=1,
            temperature=0,
            prompt_logprobs=0,
        )
        answer = await _only(self._engine.chat(request))
        total = 0.0
        for position in answer["prompt_logprobs"] or []:
            for entry in (position or {}).values():
                total += float(entry["logprob"])
        return total

    async def _greedy(self) -> dict[str, Any]:
        """A long prompt without log-probabilities: asking for those of the prompt passes the cache by."""
        return await self._completion(prompt=self._ids, max_tokens=1)

    async def _completion(self, **asked: Any) -> dict[str, Any]:
        request = CompletionRequest(model=self._model, temperature=0, **asked)
        return await _only(self._engine.completions(request))

    async def _images(self) -> int:
        counts = await self._client.collective_rpc("plumbline_count_images", timeout=STEP_S)
        return int(counts[0])


async def _only(answers: Any) -> dict[str, Any]:
    values = [answer.model_dump() async for answer in answers]
    if len(values) != 1 or values[0].get("error"):
        raise Unproved(f"the engine does not answer: {str(values)[:500]}")
    return values[0]


def _cached(answer: dict[str, Any]) -> int:
    details = answer["usage"].get("prompt_tokens_details") or {}
    return int(details.get("cached_tokens") or 0)


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


def _picture() -> str:
    picture = Image.new("RGB", (64, 64), "black")
    picture.paste((255, 0, 0), (8, 8, 24, 24))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
