"""What a replica is around its engine: it asks the conductor, has a gate, and answers under one version."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import ray
from ray.serve.exceptions import RayServeException

from serving.replicas.chunks import together
from serving.replicas.conductor import NAME, NAMESPACE
from serving.replicas.follower import Follower, first_intact, first_version
from serving.replicas.integrity import require_intact
from serving.replicas.swap import Closed, Engine, Swapper
from serving.wire import Answer, Kind, Refusal, Standing, Version

CHANGING = Refusal(status=503, code="swapping", message="the replica changes its version", retry_after_s=1)

TOGETHER_S = 0.025  # a reader does not see it; models that decode slower send token by token
PROBE_S = 20.0  # a health check may take that long
#: Of Serve's deployments. A replica that died is replaced as soon as a check has failed.
HEALTH = {"health_check_period_s": 2.0, "health_check_timeout_s": 2 * PROBE_S}


class Gated:
    """A replica without its engine, which a subclass brings.

    A subclass's constructor calls `_introduce`, `_first`, and `_begin` with its engine at last; it gives
    `_asked`. The replica is ready (the constructor returns) once its version is proved.
    """

    _swapper: Swapper | None = None

    def _introduce(self, model: str, slot: str) -> None:
        self._model, self._slot, self._name = model, slot, _replica_name()
        self._progress = time.monotonic()  # when something last came out of the engine
        self._starting = Standing(replica=self._name, slot=slot, version=None, state="loading", in_flight=0)
        self._following: asyncio.Task[None] | None = None

    async def _first(self, given: Version | None) -> Version:
        """The version to start with, its files verified: the promoted one, or where that is damaged the one
        before. Raises BadCheckpoint."""
        if given is not None:
            await _verify(given)
            return given
        told, self._starting = await first_intact(self._wanted, self._starting, _verify)
        return told

    async def _begin(self, engine: Engine, first: Version, *, follow: bool) -> None:
        """Prove the version that the engine was started with. Raises when it cannot be proved.

        `follow`: change over when the conductor says so, for the first time before anybody is answered, since
        another version may have been promoted while the engine started.
        """
        self._swapper = Swapper(engine, replica=self._name, slot=self._slot)
        await self._swapper.begin(first)
        if follow:
            await self._swapper.swap(await first_version(self._wanted, self._starting))
            self._following = asyncio.create_task(Follower(self, self._wanted).follow())

    async def _wanted(self, standing: Standing) -> Version | None:
        conductor: Any = ray.get_actor(NAME, namespace=NAMESPACE)
        return await conductor.wanted.remote(self._model, standing)

    def _label(self, version: Version, body: dict[str, Any]) -> str:
        """The version that answers to this request name."""
        return version.id

    def _asked(
        self, kind: Kind, body: dict[str, Any], request_id: str
    ) -> AsyncGenerator[dict[str, Any] | Refusal, None]:
        """What the engine says: OpenAI's objects, or a refusal, which ends it."""
        raise NotImplementedError

    # -- what the gateway and the conductor call ----------------------------------------------------------

    async def answer(
        self, kind: Kind, body: dict[str, Any], request_id: str
    ) -> AsyncGenerator[Answer | Refusal, None]:
        """One answer, or its chunks; closing the generator aborts the request in the engine.

        `body`: an OpenAI request that is checked already, with media as data URLs.
        """
        swapper = self._sound
        try:
            async with swapper.gate.passing(), aclosing(self._asked(kind, body, request_id)) as items:
                version = swapper.version
                assert version is not None
                async for item in items:
                    self._progress = time.monotonic()
                    if isinstance(item, Refusal):
                        yield item
                        return
                    yield Answer(version=self._label(version, body), replica=self._name, body=item)
        except Closed:
            yield CHANGING

    async def answers(
        self, kind: Kind, body: dict[str, Any], request_id: str
    ) -> AsyncGenerator[list[Answer | Refusal], None]:
        """`answer` in lists, which are fewer."""
        async with aclosing(together(self.answer(kind, body, request_id), TOGETHER_S)) as lists:
            async for some in lists:
                yield some

    async def standing(self) -> Standing:
        return self._sound.standing

    async def swap(self, version: Version) -> Standing:
        """Change over to a version; see `serving.replicas.swap`."""
        return await self._sound.swap(version)

    async def proof(self) -> dict[str, Any]:
        """What proved the version that is served."""
        return dict(self._sound.proof)

    @property
    def _sound(self) -> Swapper:
        assert self._swapper is not None, "Serve calls nothing before the constructor has returned"
        return self._swapper


async def _verify(version: Version) -> None:
    await asyncio.to_thread(require_intact, version)


def _replica_name() -> str:
    from ray import serve as ray_serve

    try:
        return ray_serve.get_replica_context().replica_id.unique_id
    except RayServeException:  # outside of Serve, as in tests
        return "local"
