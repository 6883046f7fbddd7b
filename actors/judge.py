"""A fixed language or vision-language model on vLLM: the port behind judges and implicit rewards.

It is never trained and knows nothing of weight versions. A plain class; `shared` places one per run and name.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from actors.engine_client import EngineClient
from pipelines.settings import EngineSettings
from pipelines.types import MediaTable, Prompt


class JudgeModel:
    """A `Completer` and `LogProb` of `pipelines.rewards`. The engine starts with the first question.

    `model`: a checkpoint in Hugging Face layout. `temperature` 0 is greedy, and then all samples are equal.
    Raises `NotACheckpoint` for other folders, ValueError for prompts that cannot be shown, `EngineError` and
    TimeoutError; rewards turn these into missing scores.
    """

    def __init__(
        self,
        model: str | Path,
        engine: EngineSettings | None = None,
        *,
        temperature: float = 0.0,
        max_tokens: int = 256,
        seed: int = 0,
    ) -> None:
        self._client = EngineClient("judge", str(model), engine or EngineSettings(), None, seed)
        self._temperature, self._max_tokens = temperature, max_tokens
        self._starting: asyncio.Task[None] | None = None

    async def complete(self, prompt: Prompt, media: MediaTable, n: int, seed: int) -> Sequence[str]:
        """n answers, without special tokens."""
        await self.start()
        client = self._client
        item, length = await client.prepare(self._input, prompt, media)
        client.processing.require_fit(length, self._max_tokens, f"prompt {prompt.id!r} for the judge")
        sampled = n if self._temperature > 0 else 1
        params = client.params(
            n=sampled, temperature=self._temperature, max_tokens=self._max_tokens, seed=seed
        )
        output = await client.answer(item, params, None)
        texts = [client.processing.decode(completion.token_ids) for completion in output.outputs]
        return texts if self._temperature > 0 else texts * n

    async def logprob(self, prompt: Prompt, media: MediaTable, tokens: Sequence[int]) -> float:
        """log p(tokens | prompt), summed, nats."""
        await self.start()
        return await self._client.logprob(prompt, media, tokens, None)

    async def start(self) -> None:
        """Bring the engine up; callers that come meanwhile wait for the same one."""
        if self._starting is None:
            self._starting = asyncio.ensure_future(self._client.start())
        await asyncio.shield(self._starting)

    async def stop(self) -> None:
        await self._client.stop()

    def _input(self, prompt: Prompt, media: MediaTable) -> tuple[dict[str, Any], int]:
        encoded = self._client.processing.encode(prompt, media)
        return self._client.input(prompt, media), len(encoded.input_ids)


class SharedJudge:
    """One `JudgeModel` of that name for all processes of a run, as a Ray actor that the first caller places.

    Safe to build before Ray runs and cheap to send. The actor ends with the run; when it dies, the next call
    places another. It reserves the CPUs and GPUs of `engine`, which the run's own sum does not contain.
    """

    def __init__(
        self, name: str, model: str | Path, engine: EngineSettings | None = None, **options: Any
    ) -> None:
        self._name, self._model = name, str(model)
        self._engine, self._options = engine or EngineSettings(), options

    async def complete(self, prompt: Prompt, media: MediaTable, n: int, seed: int) -> Sequence[str]:
        return await _own_error(self.actor().complete.remote(prompt, media, n, seed))

    async def logprob(self, prompt: Prompt, media: MediaTable, tokens: Sequence[int]) -> float:
        return await _own_error(self.actor().logprob.remote(prompt, media, tokens))

    def actor(self) -> Any:
        """The handle; places the actor when there is none of that name."""
        import ray

        placed: Any = ray.remote(JudgeModel)
        return placed.options(
            name=f"judge-{self._name}",
            get_if_exists=True,
            num_cpus=self._engine.cpus,
            num_gpus=self._engine.gpus,
            max_concurrency=1000,
        ).remote(self._model, self._engine, **self._options)


async def _own_error(answer: Any) -> Any:
    """The answer, or what the judge itself raised: Ray's text would begin with a traceback."""
    from ray.exceptions import RayTaskError

    try:
        return await answer
    except RayTaskError as error:
        raise error.cause from error
