"""Requests to a generator's engine, from asyncio: inputs, parameters, deadlines."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from actors.engine import EngineThread, build_engine
from actors.processing import Processing
from pipelines.settings import EngineSettings, LoraSettings
from pipelines.types import MediaTable, Prompt

T = TypeVar("T")


class EngineClient:
    """One engine and the processing in front of it. All waits end after `settings.timeout_s`."""

    def __init__(
        self, name: str, model_path: str, settings: EngineSettings, lora: LoraSettings | None, seed: int
    ) -> None:
        self.name = name
        self.settings = settings
        self.processing = Processing(model_path, max_length=settings.max_model_len)
        self.engine = EngineThread(lambda: build_engine(model_path, settings, lora, seed))
        self._preparing = ThreadPoolExecutor(1, thread_name_prefix="prepare")
        self.prepared = 0  # calls so far: whoever watches sees whether it works

    async def start(self) -> None:
        await self.wait(self.engine.start(), self.settings.start_timeout_s)

    async def stop(self) -> None:
        await asyncio.to_thread(self.engine.stop)
        self._preparing.shutdown(wait=False, cancel_futures=True)

    def params(self, **given: Any) -> Any:
        """`SamplingParams` under which special tokens but the end of sequence cannot be sampled."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        # Constructed directly: minus infinity is what makes a token impossible, whatever its logit.
        return SamplingParams(
            logit_bias=dict.fromkeys(self.processing.forbidden, float("-inf")) or None,
            stop_token_ids=sorted(self.processing.eos),
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
            **given,
        )

    def input(self, prompt: Prompt, media: MediaTable, answer: tuple[int, ...] = ()) -> dict[str, Any]:
        """Token ids with one placeholder per image, an answer to score after them, and the pictures."""
        item: dict[str, Any] = {"prompt_token_ids": [*self.processing.compact(prompt), *answer]}
        pictures = self.processing.pictures(prompt, media)
        if pictures:
            item["multi_modal_data"] = {"image": pictures}
        return item

    def scored(self, prompt: Prompt, media: MediaTable, answer: Sequence[int]) -> dict[str, Any]:
        """The input that scores an answer. Raises ValueError for one without tokens, and `TooLong`."""
        if not answer:
            raise ValueError(f"prompt {prompt.id!r}: got no answer tokens to score")
        length = len(self.processing.encode(prompt, media).input_ids)
        self.processing.require_fit(length, len(answer) + 1, f"prompt {prompt.id!r}")  # vLLM adds a token
        return self.input(prompt, media, tuple(answer))

    async def prepare(self, function: Callable[..., T], *arguments: Any) -> T:
        """Template, tokens and pictures off the event loop, one at a time: tokenizers are not shareable."""
        result = await asyncio.get_running_loop().run_in_executor(self._preparing, function, *arguments)
        self.prepared += 1
        return result

    async def answer(
        self,
        item: Mapping[str, Any],
        params: Any,
        lora: Any,
        timeout_s: float | None = None,
        interruptible: bool = False,
    ) -> Any:
        """The finished `RequestOutput` of one request."""
        return await self.wait(self.engine.submit(item, params, lora, interruptible), timeout_s)

    async def answers(self, items: Sequence[Mapping[str, Any]], params: Any, lora: Any) -> list[Any]:
        """Many requests at once; the deadline is for the next answer, since all share one engine."""
        futures = [asyncio.wrap_future(self.engine.submit(item, params, lora)) for item in items]
        waiting = set(futures)
        try:
            while waiting:
                done, waiting = await asyncio.wait(
                    waiting, timeout=self.settings.timeout_s, return_when=asyncio.FIRST_COMPLETED
                )
                if not done:
                    raise TimeoutError(
                        f"generator {self.name!r}: {len(waiting)} of {len(futures)} answers are missing and "
                        f"none came within {self.settings.timeout_s} s"
                    )
                for future in done:
                    future.result()  # raises what the engine raised
        finally:
            for future in waiting:
                future.cancel()
        return [future.result() for future in futures]

    async def logprob(self, prompt: Prompt, media: MediaTable, tokens: Sequence[int], lora: Any) -> float:
        """log p(tokens | prompt), summed, nats; teacher-forced."""
        item = await self.prepare(self.scored, prompt, media, tokens)
        output = await self.answer(item, self.params(temperature=0.0, max_tokens=1, prompt_logprobs=0), lora)
        scored = output.prompt_logprobs[-len(tokens) :]
        return sum(entry[token].logprob for entry, token in zip(scored, tokens, strict=True))

    async def on_engine(self, function: Callable[[Any], T]) -> T:
        """The result of `function(engine)`, run on the engine's thread."""
        return await self.wait(self.engine.call(function))

    async def wait(self, future: Future[T], timeout_s: float | None = None) -> T:
        return await asyncio.wait_for(asyncio.wrap_future(future), timeout_s or self.settings.timeout_s)
