"""What the gateway sees of the replicas: Serve's handles, and the conductor behind a short memory."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import suppress
from typing import Any

from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException

from serving.wire import Answer, Kind, Refusal, Routing, Standing

REMEMBER_S = 0.5  # a route may be so old; promotions take seconds
CALL_S = 5.0  # for a call of the conductor
TOLD_EVERY_S = 1.0  # measurements are sent together
HELD = 10_000  # measurements that wait; the newest are kept

LOST = Refusal(
    status=503,
    code="replica_lost",
    message="the replica that was to answer is gone; try again",
    retry_after_s=1,
)

log = logging.getLogger(__name__)


class ServeBackend:
    """Replicas as Serve deployments.

    Args:
        handles: a model's public name -> slot -> the slot's deployment handle.
        conductor: the named actor (`serving.replicas.conductor.Conductor`).
    """

    def __init__(self, handles: Mapping[str, Mapping[str, Any]], conductor: Any) -> None:
        self._handles, self._conductor = handles, conductor
        self._routes: dict[str | None, tuple[float, Routing | None]] = {}
        self._samples: list[tuple[str, str, dict[str, Any]]] = []
        self._telling: asyncio.Task[None] | None = None

    async def answer(
        self, slot: str, kind: Kind, body: dict[str, Any], request_id: str
    ) -> AsyncGenerator[Answer | Refusal, None]:
        """Answers of one replica of the slot; closing the generator aborts the request there."""
        slots = self._handles[body["model"]]
        handle = slots.get(slot, slots["stable"])
        stream = handle.options(stream=True).answers.remote(kind, body, request_id)
        ended = False
        try:
            async for some in stream:
                for item in some:
                    yield item
            ended = True
        except (RayError, RayServeException) as error:
            ended = True
            log.warning("request %s: %s", request_id, type(error).__name__)
            yield LOST
        finally:
            if not ended:
                stream.cancel()

    async def routing(self, model: str | None) -> Routing | None:
        """Versions behind a public name; the last known ones while the conductor does not answer."""
        if model is not None and model not in self._handles:
            return None
        known = self._routes.get(model)
        now = time.monotonic()
        if known is not None and now - known[0] < REMEMBER_S:
            return known[1]
        try:
            found = await asyncio.wait_for(self._conductor.routing.remote(model), CALL_S)
        except (RayError, TimeoutError):
            if known is None:
                raise
            found = known[1]
        self._routes[model] = (now, found)
        return found

    async def models(self) -> list[str]:
        return list(self._handles)

    async def standings(self) -> list[Standing]:
        return await asyncio.wait_for(self._conductor.standings.remote(), CALL_S)

    async def ready(self) -> bool:
        """Whether every model's promoted version is served."""
        try:
            return await asyncio.wait_for(self._conductor.ready.remote(), CALL_S)
        except (RayError, TimeoutError):
            return False

    async def history(self) -> list[dict[str, Any]]:
        return await asyncio.wait_for(self._conductor.history.remote(), CALL_S)

    async def observe(self, slot: str, sample: dict[str, Any]) -> None:
        """Keep a measurement for the conductor; they are sent together, so that no request waits for it."""
        self._samples.append((sample.get("model", next(iter(self._handles))), slot, sample))
        del self._samples[:-HELD]
        if self._telling is None or self._telling.done():
            self._telling = asyncio.create_task(self._tell())

    async def _tell(self) -> None:
        await asyncio.sleep(TOLD_EVERY_S)
        samples, self._samples = self._samples, []
        together: dict[tuple[str, str], list[dict[str, Any]]] = {}
        for model, slot, sample in samples:
            together.setdefault((model, slot), []).append(sample)
        for (model, slot), some in together.items():
            with suppress(RayError, TimeoutError):  # measurements of a second that nobody took are not missed
                await asyncio.wait_for(self._conductor.observe.remote(model, slot, some), CALL_S)
