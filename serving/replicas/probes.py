"""Questions to an engine whose answers show what it computes with: one kind for each task."""

from __future__ import annotations

from typing import Any, Protocol

from pydantic import TypeAdapter
from ray.serve.llm.openai_api_models import ChatCompletionRequest, CompletionRequest, EmbeddingRequest

from serving import sample

CANARY = "describe the image ."
EMBEDDING: TypeAdapter[Any] = TypeAdapter(EmbeddingRequest)  # Serve's is a union of shapes
PROBE_BLOCKS = 2  # of keys and values, so that a prefix cache has something to hold


class Unproved(RuntimeError):
    """The engine does not provably compute with the version; the message says which part failed."""


class Probe(Protocol):
    sees: bool  # whether a canary shows an image

    async def canaries(self) -> tuple[float, ...]:
        """Numbers that follow from the weights, the same on every call."""
        ...

    async def cached(self) -> int:
        """Ask what fills the prefix cache; how many tokens of it came from there."""
        ...

    async def alive(self) -> None:
        """Ask for as little as possible. Raises when the engine does not answer."""
        ...


def probe(engine: Any, model: str) -> Probe:
    """The questions for a started `ray.llm` engine, whose client is vLLM's."""
    config = engine._engine_client.vllm_config.model_config
    if config.runner_type == "pooling":
        return Embedding(engine, model)
    limits = config.multimodal_config
    return Writing(engine, model, sees=bool(limits and limits.get_limit_per_prompt("image")))


class Writing:
    """For a model that generates."""

    def __init__(self, engine: Any, model: str, *, sees: bool) -> None:
        self._engine, self._model, self.sees = engine, model, sees
        client = engine._engine_client
        ids = client.get_tokenizer()(CANARY, add_special_tokens=False)["input_ids"]
        config = client.vllm_config
        wanted = PROBE_BLOCKS * config.cache_config.block_size + 1
        length = min(wanted, config.model_config.max_model_len - 1)
        self._ids = (ids * (length // len(ids) + 1))[:length]

    async def canaries(self) -> tuple[float, ...]:
        """Summed log-probabilities of the canary's text; and of one after an image, where the model sees."""
        content: list[dict[str, Any]] = [{"type": "text", "text": CANARY}]
        values = [await self._of_prompt(content)]
        if self.sees:
            picture = {"type": "image_url", "image_url": {"url": sample.picture()}}
            values.append(await self._of_prompt([picture, *content]))
        return tuple(values)

    async def cached(self) -> int:
        """A long prompt without log-probabilities: asking for those of the prompt passes the cache by."""
        answer = await self._completion(self._ids)
        details = answer["usage"].get("prompt_tokens_details") or {}
        return int(details.get("cached_tokens") or 0)

    async def alive(self) -> None:
        await self._completion(self._ids[:1])

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

    async def _completion(self, ids: list[int]) -> dict[str, Any]:
        request = CompletionRequest(model=self._model, temperature=0, prompt=ids, max_tokens=1)
        return await _only(self._engine.completions(request))


class Embedding:
    """For a model that embeds. It has no prefix cache (`serving.replicas.engine_settings.chosen`)."""

    sees = False

    def __init__(self, engine: Any, model: str) -> None:
        self._engine, self._model = engine, model

    async def canaries(self) -> tuple[float, ...]:
        """The canary's vector."""
        request = EMBEDDING.validate_python({"model": self._model, "input": CANARY})
        answer = await _only(self._engine.embeddings(request))
        return tuple(answer["data"][0]["embedding"])

    async def cached(self) -> int:
        return 0

    async def alive(self) -> None:
        await self.canaries()


async def _only(answers: Any) -> dict[str, Any]:
    values = [answer.model_dump() async for answer in answers]
    if len(values) != 1 or values[0].get("error"):
        raise Unproved(f"the engine does not answer: {str(values)[:500]}")
    return values[0]
