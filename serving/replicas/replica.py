"""A replica: Ray Serve's LLM server behind a gate, with answers that are safe to show."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import time
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path
from typing import Any

from ray.serve.llm import LLMConfig
from ray.serve.llm.deployment import LLMServer
from ray.serve.llm.openai_api_models import ChatCompletionRequest, CompletionRequest

from actors.engine_errors import is_of_request
from serving.checkpoint import Servable
from serving.replicas.adapter_files import fetch
from serving.replicas.adapters import Adapter, engine_arguments
from serving.replicas.contrast import Contrasting
from serving.replicas.engine_settings import engine_config
from serving.replicas.gated import HEALTH, PROBE_S, Gated
from serving.replicas.plain_text import NotText, PlainText
from serving.replicas.policy_engine import PolicyEngine
from serving.replicas.probes import EMBEDDING
from serving.replicas.swap import Quarantined
from serving.wire import Kind, Refusal, Version, over

PROBE_EVERY_S = 30.0  # a token is generated to see that the engine lives
SHOWN = 300  # characters of an engine's message

FIELDS = {"completion": "prompt", "embedding": "input"}
ENDED = "Internal server error"  # vLLM's whole word for a request that it ended, as where a grammar got stuck
UNREACHABLE = Refusal(
    status=400,
    code="format_unreachable",
    message="the model has no tokens for what response_format or tools ask for; ask without them",
)
BROKEN = Refusal(status=503, code="engine_failed", message="the engine failed; try again", retry_after_s=1)
#: A path, a dotted or CamelCase name of code, an address: none of them belongs into an answer.
INTERNAL = re.compile(
    r"[\\/]\w+[\\/.]|\w+\.\w+\.\w+|\b[A-Z]+[a-z]+[A-Z]\w+|0x[0-9a-f]+|\d+:\d+|Traceback|<class"
)
TOO_LONG = re.compile(
    r"context length|max_model_len|maximum model length|too long|longer than", re.IGNORECASE
)

log = logging.getLogger(__name__)


class PolicyServer(Gated, LLMServer):
    """One slot's engine. It is ready (its constructor returns) once its version is proved.

    Args:
        engine: of `engine_config`; its model source gives way to the version's path.
        slot: `stable` or `canary`.
        version: to serve for good; None: the conductor says which, now and later.
        adapters: of the version, served beside it under names of their own.
    """

    async def __init__(
        self,
        engine: dict[str, Any],
        *,
        slot: str,
        version: Version | None = None,
        adapters: Sequence[Adapter] = (),
    ) -> None:
        model = engine["model_loading_config"]
        self._introduce(model["model_id"], slot)
        self._probed = time.monotonic()
        self._adapters = {adapter.name: adapter for adapter in adapters}
        first = await self._first(version)
        fetched = [(one, (await asyncio.to_thread(fetch, one.source, one.digest))[0]) for one in adapters]
        source = {**model, "model_source": first.path}
        await super().__init__(LLMConfig(**{**engine, "model_loading_config": source}))
        client = self.engine._engine_client  # type: ignore[union-attr]  # ray.llm gives no other way to it
        self._policy = PolicyEngine(
            self.engine, model=self._model, started_from=Path(first.path), adapters=fetched
        )
        self._plain = PlainText.of(client.get_tokenizer(), client.vllm_config.model_config.hf_config)
        await self._policy.first(first)
        await self._begin(self._policy, first, follow=version is None)

    def _label(self, version: Version, body: dict[str, Any]) -> str:
        adapter = self._adapters.get(body["model"])
        return version.id if adapter is None else over(version.id, adapter.id)

    async def _asked(
        self, kind: Kind, body: dict[str, Any], request_id: str
    ) -> AsyncGenerator[dict[str, Any] | Refusal, None]:
        answers, bound = None, _bound(body)
        try:
            plain = self._plain.chat(body) if kind == "chat" else self._plain.written(body, FIELDS[kind])
            if "contrast" in body:
                plain["contrast"] = self._plain.chat(body["contrast"])
            model = body["model"] if body["model"] in self._adapters else self._model
            answers = self._engine_answers(kind, {**plain, "request_id": request_id, "model": model})
            async for item in answers:
                for value in _values(item, bound):
                    yield value
        except NotText as error:
            yield Refusal(status=400, code="special_token", message=str(error))
        except Exception as error:
            refused = refusal(400 if is_of_request(error) else 500, str(error), bound)
            level = logging.WARNING if refused.status < 500 else logging.ERROR
            log.log(level, "request %s: %s", request_id, type(error).__name__)
            yield refused
        finally:
            if answers is not None:
                await answers.aclose()

    def _engine_answers(self, kind: Kind, body: dict[str, Any]) -> AsyncGenerator[Any, None]:
        engine: Any = self.engine
        if "contrast" in body:
            return Contrasting(engine).answer(body)
        if kind == "chat":
            return engine.chat(ChatCompletionRequest(**body))
        if kind == "completion":
            return engine.completions(CompletionRequest(**body))
        return engine.embeddings(EMBEDDING.validate_python(body))

    async def check_health(self) -> None:
        """Serve's hook. Raises when the replica is to be replaced."""
        swapper = self._swapper
        if swapper is None:  # it still starts
            return
        swapper.require_sound()
        await super().check_health()
        now = time.monotonic()
        if swapper.standing.state != "serving" or now - self._probed < PROBE_EVERY_S:
            return
        self._probed = now
        try:
            await asyncio.wait_for(self._policy.alive(), PROBE_S)
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
    adapters: Sequence[Adapter] = (),
) -> Any:
    """A bound Serve deployment, `<model>--<slot>`.

    `servable`: the checkpoint that says what the model is; `version`, `adapters`: as for `PolicyServer`;
    `options`: of Serve (num_replicas, autoscaling_config, ...); `engine`: further arguments of vLLM, such as
    a tool parser.
    """
    from ray import serve as ray_serve

    # Sent as a dict: an LLMConfig remembers which folder it was first asked about, and a replica that starts
    # later would start vLLM with that one instead of what is promoted then.
    arguments = engine_config(servable, gpus, {**(engine or {}), **engine_arguments(adapters)})
    chosen = PolicyServer.get_deployment_options(LLMConfig(**arguments))
    del chosen["num_replicas"]  # beside `autoscaling_config` Serve refuses it; one is the default
    chosen |= {"name": f"{servable.name}--{slot}", **HEALTH} | (options or {})
    made = ray_serve.deployment(PolicyServer, **chosen)
    return made.bind(arguments, slot=slot, version=version, adapters=adapters)


def refusal(status: int, message: str, bound: bool = False) -> Refusal:
    """An engine's error in words that are safe to show; what was not recognised is not repeated.

    `bound`: a grammar held the answer to a format.
    """
    if status >= 500:
        return UNREACHABLE if bound and message == ENDED else BROKEN
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


def _bound(body: dict[str, Any]) -> bool:
    form = (body.get("response_format") or {}).get("type", "text")
    return form != "text" or bool(body.get("tools"))


def _values(item: Any, bound: bool) -> list[dict[str, Any] | Refusal]:
    """What the engine gave: an object, an error, or a piece of an event stream."""
    if isinstance(item, dict):
        return [item]
    if isinstance(item, str):
        lines = [line.removeprefix("data:").strip() for line in item.splitlines() if line.startswith("data:")]
        return [_checked(json.loads(line), bound) for line in lines if line != "[DONE]"]
    return [_checked(item.model_dump(mode="json", exclude_none=True), bound)]


def _checked(value: dict[str, Any], bound: bool) -> dict[str, Any] | Refusal:
    error = value.get("error")
    if not error:
        return value
    return refusal(int(error.get("code") or 500), str(error.get("message") or ""), bound)
