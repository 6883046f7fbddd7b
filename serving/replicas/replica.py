"""A replica: Ray Serve's LLM server with a gate, a proved version, and answers that are safe to show."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import time
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import ray
from ray.serve.exceptions import RayServeException
from ray.serve.llm.deployment import LLMServer
from ray.serve.llm.openai_api_models import ChatCompletionRequest, CompletionRequest, EmbeddingRequest

from serving.checkpoint import Servable
from serving.replicas.conductor import NAME, NAMESPACE
from serving.replicas.engine_settings import engine_config
from serving.replicas.follower import Follower, first_version
from serving.replicas.plain_text import NotText, PlainText
from serving.replicas.policy_engine import PolicyEngine
from serving.replicas.swap import Closed, Quarantined, Swapper
from serving.wire import Answer, Kind, Refusal, Standing, Version

PROBE_EVERY_S = 30.0  # a token is generated to see that the engine lives
PROBE_S = 20.0  # it may take that long, unless other answers go on
SHOWN = 300  # characters of an engine's message

FIELDS = {"completion": "prompt", "embedding": "input"}
CHANGING = Refusal(status=503, code="swapping", message="the replica changes its version", retry_after_s=1)
BROKEN = Refusal(status=503, code="engine_failed", message="the engine failed; try again", retry_after_s=1)
#: A path, a dotted or CamelCase name of code, an address: none of them belongs into an answer.
INTERNAL = re.compile(
    r"[\\/]\w+[\\/.]|\w+\.\w+\.\w+|\b[A-Z]+[a-z]+[A-Z]\w+|0x[0-9a-f]+|\d+:\d+|Traceback|<class"
)
TOO_LONG = re.compile(
    r"context length|max_model_len|maximum model length|too long|longer than", re.IGNORECASE
)

log = logging.getLogger(__name__)


class PolicyServer(LLMServer):
    """One slot's engine. It is ready (its constructor returns) once its version is proved.

    Args:
        llm_config: of `engine_config`; its model source gives way to the version's path.
        slot: `stable` or `canary`.
        version: to serve for good; None: the conductor says which, now and later.
    """

    async def __init__(self, llm_config: Any, *, slot: str, version: Version | None = None) -> None:
        self._model = llm_config.model_id
        self._name = _replica_name()
        self._progress = self._probed = time.monotonic()
        self._following: asyncio.Task[None] | None = None
        first = version or await first_version(self._wanted, self._loading(slot))
        llm_config.model_loading_config.model_source = first.path
        await super().__init__(llm_config)
        client = self.engine._engine_client  # type: ignore[union-attr]  # ray.llm gives no other way to it
        config = client.vllm_config.model_config
        sees = bool(
            (config.multimodal_config and config.multimodal_config.get_limit_per_prompt("image")) or 0
        )
        self._policy = PolicyEngine(self.engine, model=self._model, started_from=Path(first.path), sees=sees)
        self._plain = PlainText.of(client.get_tokenizer(), config.hf_config)
        self._swapper = Swapper(self._policy, replica=self._name, slot=slot)
        await self._policy.first(first)
        await self._swapper.begin(first)
        if version is None:
            self._following = asyncio.create_task(Follower(self, self._wanted).follow())

    def _loading(self, slot: str) -> Standing:
        return Standing(replica=self._name, slot=slot, version=None, state="loading", in_flight=0)

    async def _wanted(self, standing: Standing) -> Version | None:
        conductor: Any = ray.get_actor(NAME, namespace=NAMESPACE)
        return await conductor.wanted.remote(self._model, standing)

    # -- what the gateway and the conductor call ----------------------------------------------------------

    async def answer(
        self, kind: Kind, body: dict[str, Any], request_id: str
    ) -> AsyncGenerator[Answer | Refusal, None]:
        """One answer, or its chunks; closing the generator aborts the request in the engine.

        `body`: an OpenAI request that is checked already, with media as data URLs.
        """
        try:
            async with self._swapper.gate.passing():
                version = self._swapper.version
                assert version is not None
                async for item in self._asked(kind, body, request_id):
                    self._progress = time.monotonic()
                    if isinstance(item, Refusal):
                        yield item
                        return
                    yield Answer(version=version.id, replica=self._name, body=item)
        except Closed:
            yield CHANGING
        except NotText as error:
            yield Refusal(status=400, code="special_token", message=str(error))

    async def _asked(
        self, kind: Kind, body: dict[str, Any], request_id: str
    ) -> AsyncGenerator[dict[str, Any] | Refusal, None]:
        plain = self._plain.chat(body) if kind == "chat" else self._plain.written(body, FIELDS[kind])
        answers = None
        try:
            answers = self._engine_answers(kind, {**plain, "request_id": request_id, "model": self._model})
            async for item in answers:
                for value in _values(item):
                    yield value
        except (ValueError, TypeError) as error:  # what the engine's own checks raise
            log.warning("request %s: %s", request_id, type(error).__name__)
            yield refusal(400, str(error))
        except Exception as error:
            log.error("request %s: %s", request_id, type(error).__name__)
            yield BROKEN
        finally:
            if answers is not None:
                await answers.aclose()

    def _engine_answers(self, kind: Kind, body: dict[str, Any]) -> AsyncGenerator[Any, None]:
        engine: Any = self.engine
        if kind == "chat":
            return engine.chat(ChatCompletionRequest(**body))
        if kind == "completion":
            return engine.completions(CompletionRequest(**body))
        return engine.embeddings(EmbeddingRequest(**body))  # type: ignore[operator]  # a union of models

    async def standing(self) -> Standing:
        return self._swapper.standing

    async def swap(self, version: Version) -> Standing:
        """Change over to a version; see `serving.replicas.swap`."""
        return await self._swapper.swap(version)

    async def proof(self) -> dict[str, Any]:
        """What proved the version that is served."""
        return dict(self._swapper.proof)

    async def check_health(self) -> None:
        """Serve's hook. Raises when the replica is to be replaced."""
        swapper = getattr(self, "_swapper", None)
        if swapper is None:  # it still starts
            return
        swapper.require_sound()
        await super().check_health()
        now = time.monotonic()
        if swapper.standing.state != "serving" or now - self._probed < PROBE_EVERY_S:
            return
        self._probed = now
        try:
            await asyncio.wait_for(self._policy.token(), PROBE_S)
        except TimeoutError:
            if self._progress < now:  # not busy: nothing came out at all
                raise Quarantined(f"{self._name}: no token within {PROBE_S:.0f} s") from None


def deployment(
    servable: Servable,
    *,
    slot: str,
    gpus: int = 0,
    version: Version | None = None,
    options: dict[str, Any] | None = None,
    engine: dict[str, Any] | None = None,
) -> Any:
    """A bound Serve deployment, `<model>--<slot>`.

    `servable`: the checkpoint that says what the model is; `version`: as for `PolicyServer`; `options`: of
    Serve (num_replicas, autoscaling_config, ...); `engine`: further arguments of vLLM, such as a tool parser.
    """
    from ray import serve as ray_serve
    from ray.serve.llm import LLMConfig

    config = LLMConfig(**engine_config(servable, gpus, engine))
    chosen = PolicyServer.get_deployment_options(config)
    chosen |= {"name": f"{servable.name}--{slot}", "health_check_timeout_s": 2 * PROBE_S} | (options or {})
    return ray_serve.deployment(PolicyServer, **chosen).bind(config, slot=slot, version=version)


def refusal(status: int, message: str) -> Refusal:
    """An engine's error in words that are safe to show; what was not recognised is not repeated."""
    if status >= 500:
        return BROKEN
    if TOO_LONG.search(message):
        return Refusal(
            status=400,
            code="context_length_exceeded",
            message="the prompt and the answer asked for exceed the model's context; shorten the prompt, use "
            "fewer or smaller media, or lower max_tokens",
        )
    shown = message.strip().split("\n")[0][:SHOWN]
    if not shown or INTERNAL.search(message):
        shown = "the model cannot take this request; check its fields and media"
    return Refusal(status=status, code="invalid_request", message=shown)


def _values(item: Any) -> list[dict[str, Any] | Refusal]:
    """What the engine gave: an object, an error, or a piece of an event stream."""
    if isinstance(item, str):
        lines = [line.removeprefix("data:").strip() for line in item.splitlines() if line.startswith("data:")]
        return [_checked(json.loads(line)) for line in lines if line != "[DONE]"]
    return [_checked(item.model_dump(mode="json", exclude_none=True))]


def _checked(value: dict[str, Any]) -> dict[str, Any] | Refusal:
    error = value.get("error")
    if not error:
        return value
    return refusal(int(error.get("code") or 500), str(error.get("message") or ""))


def _replica_name() -> str:
    from ray import serve as ray_serve

    try:
        return ray_serve.get_replica_context().replica_id.unique_id
    except RayServeException:  # outside of Serve, as in tests
        return "local"
