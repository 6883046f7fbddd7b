"""A generator: one vLLM engine that samples for the policy and takes over weight versions only with proof.

A plain class without Ray. Its gate is closed while weights change, and stays closed ("quarantine") when a
version cannot be proved; `adopt` is the only way through. All awaits have the deadlines of `EngineSettings`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from actors import proof
from actors.adoption import AdapterWeights, Arrays, FullWeights, Swap
from actors.engine import EngineThread, build_engine
from actors.gate import Gate, Quarantined
from actors.processing import Processing
from pipelines.settings import EngineSettings, LoraSettings
from pipelines.types import (
    Behaviour,
    Canary,
    MediaTable,
    Prompt,
    Proof,
    Response,
    Rollout,
    WeightVersion,
)

T = TypeVar("T")
PROBE_BLOCKS = 2  # KV blocks that the cache canary fills: a shorter prompt is never cached, so it shows nothing

__all__ = ["Decoding", "ForbiddenToken", "Generator", "PromptMismatch", "Quarantined"]


class ForbiddenToken(ValueError):
    """A response holds a special token that would break or shift the learner's forward."""


class PromptMismatch(RuntimeError):
    """The engine expanded a prompt to other token ids than the learner will see."""


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """How responses are sampled."""

    temperature: float = 1.0
    top_p: float = 1.0
    max_tokens: int = 48


@dataclass(frozen=True, kw_only=True)
class Held:
    """The proved version that serves, with both sides' canaries under it."""

    number: int
    canaries: proof.Canaries


class Generator:
    """Samples, evaluates and scores with the newest proved weights.

    `model_path`: checkpoint in Hugging Face layout; `lora`: adapter settings when only an adapter is trained;
    `swap`: how versions enter the engine (default: by `lora`). Before the first `adopt`, `greedy` and `logprob`
    use the weights on disk and `sample` waits.
    """

    def __init__(
        self,
        name: str,
        model_path: str,
        engine: EngineSettings,
        decoding: Decoding,
        lora: LoraSettings | None = None,
        seed: int = 0,
        swap: Swap | None = None,
    ) -> None:
        self.name = name
        self._settings = engine
        self._decoding = decoding
        self._processing = Processing(model_path, max_length=engine.max_model_len)
        self._engine = EngineThread(lambda: build_engine(model_path, engine, lora, seed))
        self._swap: Swap = swap or (AdapterWeights(lora, model_path) if lora else FullWeights())
        self._preparing = ThreadPoolExecutor(1, thread_name_prefix="prepare")
        self._gate = Gate(name)
        self._adopting = asyncio.Lock()
        self._canaries: tuple[Canary, ...] = ()
        self._held: Held | None = None
        self._floor = proof.smallest_floor(engine.dtype)
        self._repeat_noise = 0.0
        self._tainted = False  # unproved weights have computed keys and values
        self._sampled_tokens = 0

    # -- life -------------------------------------------------------------------------------------------------

    @property
    def version(self) -> int:
        """The proved weight version; -1 before the first."""
        return self._held.number if self._held else -1

    async def start(self, canaries: Sequence[Canary]) -> dict[str, Any]:
        """Bring the engine up and warm every kernel that sampling and proving use.

        Returns the seconds it took and the canary values of the weights on disk.
        Raises ValueError without canaries, and what vLLM raises when it does not start.
        """
        if not canaries:
            raise ValueError(f"generator {self.name!r}: got no canaries; a weight version is proved with at least one")
        self._canaries = tuple(canaries)
        began = time.perf_counter()
        await asyncio.wait_for(asyncio.wrap_future(self._engine.start()), self._settings.start_timeout_s)
        built = time.perf_counter()
        await self._on_engine(_images_encoded)  # from here on images are counted
        first = self._canaries[0]
        await self._samples(first.prompt, first.media, n=2, seed=0, timeout_s=self._settings.start_timeout_s)
        own = await self._read_canaries()
        self._repeat_noise = proof.largest_gap(own, await self._read_canaries())
        warm = time.perf_counter()
        return {"build_s": built - began, "warm_up_s": warm - built, "canary": own, "repeat_noise": self._repeat_noise}

    async def stop(self) -> None:
        """End the engine; requests in flight fail."""
        await asyncio.to_thread(self._engine.stop)
        self._preparing.shutdown(wait=False, cancel_futures=True)
        self._swap.close()

    async def health(self) -> dict[str, Any]:
        """Answers at any time, also while decoding or proving."""
        return {
            "name": self.name,
            "alive": self._engine.alive,
            "version": self.version,
            "quarantined": self._gate.quarantine,
            "open": self._gate.open,
            "in_flight": self._gate.inside,
            "engine_steps": self._engine.steps,
            "engine_faults": self._engine.faults,
            "busy_s": self._engine.busy_seconds,
            "sampled_tokens": self._sampled_tokens,
        }

    # -- sampling ---------------------------------------------------------------------------------------------

    async def sample(self, prompt: Prompt, media: MediaTable, n: int, seed: int) -> tuple[Rollout, ...]:
        """n responses, all under one weight version; waits while a version is being adopted.

        `Behaviour.logps` are the policy's own log-probabilities: temperature 1, nothing masked or cut.
        Raises `Quarantined`, `ForbiddenToken`, `PromptMismatch`, `EngineError`, TimeoutError, and ValueError for
        prompts that cannot be shown to the model.
        """
        async with self._gate.pass_through(self._settings.timeout_s):
            if self._held is None:
                raise RuntimeError(f"generator {self.name!r}: no weight version was adopted yet")
            number = self._held.number
            output = await self._samples(prompt, media, n, seed, self._settings.timeout_s)
            rollouts = tuple(self._rollout(prompt, completion, number) for completion in output.outputs)
        self._sampled_tokens += sum(len(r.response.tokens) for r in rollouts)
        return rollouts

    async def greedy(self, prompts: Sequence[tuple[Prompt, MediaTable]], max_tokens: int) -> list[str]:
        """The most likely answers, for evaluation. They share the engine with sampling."""
        async with self._gate.pass_through(self._settings.timeout_s, before_first=True):
            params = self._params(temperature=0.0, max_tokens=max_tokens)
            items = [await self._prepare(self._input, prompt, media) for prompt, media in prompts]
            answers = [asyncio.wrap_future(self._submit(item, params)) for item in items]
            await self._all_of(answers)
        return [self._processing.decode(answer.result().outputs[0].token_ids) for answer in answers]

    async def logprob(self, prompt: Prompt, media: MediaTable, tokens: Sequence[int]) -> float:
        """log p(tokens | prompt) of the weights in the engine, summed, nats. Teacher-forced.

        A side door past the gate: proofs go through it. It says nothing about which version answered.
        """
        if not tokens:
            raise ValueError(f"prompt {prompt.id!r}: got no answer tokens to score")
        item = await self._prepare(self._input, prompt, media, tuple(tokens))
        params = self._params(temperature=0.0, max_tokens=1, prompt_logprobs=0)
        output = await self._wait(self._submit(item, params))
        scored = output.prompt_logprobs[-len(tokens) :]
        return sum(entry[token].logprob for entry, token in zip(scored, tokens, strict=True))

    def _rollout(self, prompt: Prompt, completion: Any, number: int) -> Rollout:
        tokens = tuple(completion.token_ids)
        bad = sorted(set(tokens) & set(self._processing.forbidden))
        if bad:
            raise ForbiddenToken(f"prompt {prompt.id!r}: the response holds special tokens {bad}; it is not used")
        logps = tuple(
            float(entry[token].logprob) for entry, token in zip(completion.logprobs, tokens, strict=True)
        )
        return Rollout(
            prompt=prompt,
            response=Response(
                tokens=tokens,
                text=self._processing.decode(tokens),
                finished=completion.finish_reason == "stop",
            ),
            behaviour=Behaviour(
                stream="policy",
                decoder={"temperature": self._decoding.temperature, "top_p": self._decoding.top_p},
                oldest=number,
                newest=number,
                logps=logps,
            ),
        )

    async def _samples(self, prompt: Prompt, media: MediaTable, n: int, seed: int, timeout_s: float) -> Any:
        item, expected = await self._prepare(self._checked_input, prompt, media)
        params = self._params(
            n=n,
            temperature=self._decoding.temperature,
            top_p=self._decoding.top_p,
            max_tokens=self._decoding.max_tokens,
            seed=seed,
            logprobs=0,
        )
        output = await self._wait(self._submit(item, params), timeout_s)
        if list(output.prompt_token_ids) != expected:
            raise PromptMismatch(
                f"prompt {prompt.id!r}: the engine expanded it to {len(output.prompt_token_ids)} tokens, the "
                f"learner's processor to {len(expected)}, and they differ; the checkpoint's processor and vLLM's "
                "disagree about images"
            )
        return output

    # -- requests ---------------------------------------------------------------------------------------------

    def _params(self, **given: Any) -> Any:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        # Constructed directly: minus infinity is what makes a token impossible, whatever its logit.
        return SamplingParams(
            logit_bias=dict.fromkeys(self._processing.forbidden, float("-inf")) or None,
            stop_token_ids=sorted(self._processing.eos),
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
            **given,
        )

    def _checked_input(self, prompt: Prompt, media: MediaTable) -> tuple[dict[str, Any], list[int]]:
        encoded = self._processing.encode(prompt, media)
        self._processing.require_fit(len(encoded.input_ids), self._decoding.max_tokens, f"prompt {prompt.id!r}")
        return self._input(prompt, media), encoded.input_ids

    def _input(self, prompt: Prompt, media: MediaTable, answer: tuple[int, ...] = ()) -> dict[str, Any]:
        item: dict[str, Any] = {"prompt_token_ids": [*self._processing.compact(prompt), *answer]}
        pictures = self._processing.pictures(prompt, media)
        if pictures:
            item["multi_modal_data"] = {"image": pictures}
        return item

    def _submit(self, item: Mapping[str, Any], params: Any) -> Future[Any]:
        return self._engine.submit(item, params, self._swap.request)

    async def _prepare(self, function: Callable[..., T], *arguments: Any) -> T:
        """Template, tokens and pictures off the event loop, one at a time: tokenizers dislike being shared."""
        return await asyncio.get_running_loop().run_in_executor(self._preparing, function, *arguments)

    async def _all_of(self, answers: Sequence[asyncio.Future[Any]]) -> None:
        """Wait for many answers; the deadline is for the next one, since all share one engine."""
        waiting = set(answers)
        try:
            while waiting:
                done, waiting = await asyncio.wait(
                    waiting, timeout=self._settings.timeout_s, return_when=asyncio.FIRST_COMPLETED
                )
                if not done:
                    raise TimeoutError(
                        f"generator {self.name!r}: {len(waiting)} of {len(answers)} answers are missing and none "
                        f"came within {self._settings.timeout_s} s"
                    )
                for answer in done:
                    answer.result()  # raises what the engine raised
        finally:
            for answer in waiting:
                answer.cancel()

    async def _wait(self, future: Future[T], timeout_s: float | None = None) -> T:
        return await asyncio.wait_for(asyncio.wrap_future(future), timeout_s or self._settings.timeout_s)

    async def _on_engine(self, function: Any) -> Any:
        return await self._wait(self._engine.call(function))

    # -- weights ----------------------------------------------------------------------------------------------

    async def adopt(self, version: WeightVersion, tensors: Arrays) -> Proof:
        """Take over a version: close the gate, drain, load, forget caches, prove, open the gate.

        What fails is loaded once more from the given tensors; then the generator is quarantined until a later
        `adopt` succeeds. Never raises for weights that cannot be proved: read `Proof.holds`.
        Raises TimeoutError when requests in flight do not end; the old version then goes on serving.
        """
        async with self._adopting:
            began = time.perf_counter()
            async with self._gate.closed(self._settings.timeout_s):
                received = await asyncio.to_thread(proof.judge_bytes, version, tensors)
                held: Held | None = None
                parts = {"bytes": received, **dict.fromkeys(("elements", "canary", "caches"), _NOT_TRIED)}
                attempts = 0
                while received.result == "proved" and held is None and attempts < 2:
                    attempts += 1
                    parts, held = await self._attempt(version, tensors, received)
                result = _proof(version, self.name, parts, attempts, time.perf_counter() - began)
                if held is None:
                    self._gate.quarantine = f"weight version {version.number} is not proved: {dict(result.detail)}"
                else:
                    self._held = held
                    self._gate.quarantine = None
            return result

    async def _attempt(
        self, version: WeightVersion, tensors: Arrays, received: proof.Verdict
    ) -> tuple[dict[str, proof.Verdict], Held | None]:
        """Load and prove once. The second value is None unless all parts hold."""
        parts = {"bytes": received, **dict.fromkeys(("elements", "canary", "caches"), _NOT_TRIED)}
        with _failing(parts, "caches"):
            await self._probe_caches()  # fills the caches, so that a forgotten reset shows afterwards
        with _failing(parts, "elements"):
            report = await self._on_engine(lambda engine: self._swap.load(engine, version, tensors))
            parts["elements"] = proof.judge_elements(report)
        with _failing(parts, "caches"):
            await self._on_engine(self._swap.reset)
            if self._tainted:
                await self._on_engine(lambda engine: engine.collective_rpc("plumbline_zero_kv"))
            parts["caches"] = proof.judge_caches(await self._probe_caches())
        held = None
        with _failing(parts, "canary"):
            now = proof.Canaries(own=await self._read_canaries(), learner=version.canary)
            parts["canary"] = self._judge_canaries(now)
            if all(part.result != "failed" for part in parts.values()):
                if self._held is None:
                    self._floor = proof.noise_floor(now, self._repeat_noise, self._precision(version))
                held = Held(number=version.number, canaries=now)
        self._tainted = held is None
        return parts, held

    def _precision(self, version: WeightVersion) -> str:
        """The coarser of both sides' number formats."""
        formats = {self._settings.dtype, *(digest.dtype for digest in version.manifest.values())}
        return "float32" if formats == {"float32"} else "bfloat16"

    def _judge_canaries(self, now: proof.Canaries) -> proof.Verdict:
        if len(now.learner) != len(now.own):
            detail = {"error": f"the learner reports {len(now.learner)} canaries, the generator has {len(now.own)}"}
            return proof.Verdict(result="failed", detail=detail)
        if self._held is None:
            return proof.judge_first(now, [len(c.tokens) for c in self._canaries])
        return proof.judge_change(self._held.canaries, now, self._floor)

    async def _read_canaries(self) -> tuple[float, ...]:
        readings = [self.logprob(c.prompt, c.media, c.tokens) for c in self._canaries]
        return tuple(await asyncio.gather(*readings))

    async def _probe_caches(self) -> proof.CacheReading:
        """Decode a canary greedily and read from which caches the engine served it."""
        canary = self._cache_canary
        block = await self._on_engine(lambda engine: engine.vllm_config.cache_config.block_size)
        padding = await self._prepare(self._padding, canary, PROBE_BLOCKS * block)
        item = await self._prepare(self._input, canary.prompt, canary.media, padding)
        before = await self._on_engine(_counters)
        output = await self._wait(self._submit(item, self._params(temperature=0.0, max_tokens=1)))
        after = await self._on_engine(_counters)
        return proof.CacheReading(
            cached_tokens=output.num_cached_tokens or 0,
            media=len(set(canary.prompt.media)),
            encoded=after[0] - before[0],
            media_hits=after[1] - before[1],
        )

    @property
    def _cache_canary(self) -> Canary:
        """One with a picture, where there is one: it goes through every cache."""
        return next((canary for canary in self._canaries if canary.prompt.media), self._canaries[0])

    def _padding(self, canary: Canary, wanted: int) -> tuple[int, ...]:
        """The canary's answer over and over, until the prompt fills some KV blocks or the context is full."""
        length = len(self._processing.encode(canary.prompt, canary.media).input_ids)
        room = self._processing.max_length - length - 1
        missing = min(wanted + 1 - length, room)
        return (canary.tokens * (missing // len(canary.tokens) + 1))[: max(0, missing)]


_NOT_TRIED = proof.Verdict(result="failed", detail={"error": "not tried"})


@contextmanager
def _failing(parts: dict[str, proof.Verdict], part: str) -> Iterator[None]:
    """An exception while a part is being proved is the failure of this part."""
    try:
        yield
    except Exception as error:
        detail = {"error": f"{type(error).__name__}: {error}"}
        parts[part] = proof.Verdict(result="failed", detail=detail)


def _proof(
    version: WeightVersion, name: str, parts: Mapping[str, proof.Verdict], attempts: int, seconds: float
) -> Proof:
    return Proof(
        version=version.number,
        generator=name,
        bytes_received=parts["bytes"].result,
        elements_loaded=parts["elements"].result,
        canary_change=parts["canary"].result,
        caches_fresh=parts["caches"].result,
        detail={"attempts": attempts, **{part: dict(verdict.detail) for part, verdict in parts.items()}},
        seconds=seconds,
    )


def _images_encoded(engine: Any) -> int:
    (count,) = engine.collective_rpc("plumbline_count_images")
    return count


def _counters(engine: Any) -> tuple[int, int]:
    """(images encoded, images served by the multimodal cache) so far."""
    cache = engine.renderer.mm_processor_cache
    return _images_encoded(engine), cache.make_stats().hits if cache is not None else 0
