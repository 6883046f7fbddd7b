"""Replicas with a stub for an engine: the gate, the change-over and the answers are those of real ones.

The weights are a few layers, loaded one after the other, and each token is the word that one layer holds. So
an answer that was given while weights changed spells it out, whatever its header says.
"""

from __future__ import annotations

import asyncio
import struct
import time
from collections.abc import AsyncGenerator, Mapping
from pathlib import Path
from typing import Any

from ray import serve as ray_serve

from serving.replicas.gated import HEALTH, Gated
from serving.replicas.integrity import require_intact
from serving.wire import Kind, Refusal, Version

LAYERS = 4
WEIGHTS = "model.safetensors"


def word(folder: Path) -> str:
    """What a checkpoint's weights spell: its last four bytes, a number."""
    (value,) = struct.unpack("<f", (folder / WEIGHTS).read_bytes()[-4:])
    return f"w{value:g}"


class StubEngine:
    """`serving.replicas.swap.Engine`; loading takes `load_s`, a token `token_s`."""

    def __init__(self, load_s: float, token_s: float) -> None:
        self._load_s, self._token_s = load_s, token_s
        self._layers = ["nothing"] * LAYERS

    async def verify(self, version: Version) -> None:
        await asyncio.to_thread(require_intact, version)

    async def adopt(self, version: Version) -> Mapping[str, Any]:
        new = word(Path(version.path))
        for layer in range(LAYERS):
            await asyncio.sleep(self._load_s / LAYERS)
            self._layers[layer] = new
        return {"elements": LAYERS}

    async def tokens(self, count: int) -> AsyncGenerator[str, None]:
        for number in range(count):
            await asyncio.sleep(self._token_s)
            yield self._layers[number % LAYERS]


class StubServer(Gated):
    """One slot's stub."""

    async def __init__(self, model: str, slot: str, load_s: float, token_s: float) -> None:
        self._introduce(model, slot)
        first = await self._first(None)
        self._engine = StubEngine(load_s, token_s)
        await self._begin(self._engine, first, follow=True)

    async def _asked(
        self, kind: Kind, body: dict[str, Any], request_id: str
    ) -> AsyncGenerator[dict[str, Any] | Refusal, None]:
        count = int(body["max_tokens"])
        head = {"id": request_id, "created": int(time.time()), "model": self._model}
        if not body.get("stream"):
            text = " ".join([token async for token in self._engine.tokens(count)])
            choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
            yield {**head, "object": "chat.completion", "choices": [choice]}
            return
        number = 0
        async for token in self._engine.tokens(count):
            number += 1
            last = number == count
            delta = {"role": "assistant", "content": token if last else f"{token} "}
            choice = {"index": 0, "delta": delta, "finish_reason": "stop" if last else None}
            yield {**head, "object": "chat.completion.chunk", "choices": [choice]}

    async def check_health(self) -> None:
        """Serve's hook."""
        if self._swapper is not None:
            self._swapper.require_sound()


def stubs(model: str, slot: str, *, options: dict[str, Any], load_s: float, token_s: float) -> Any:
    """The bound deployment of a slot; `options` are those that real replicas have."""
    chosen = {"name": f"{model}--{slot}", **HEALTH, **options}
    deployment = ray_serve.deployment(StubServer, **chosen, ray_actor_options={"num_cpus": 0})
    return deployment.bind(model, slot, load_s, token_s)
