"""A generator: one vLLM engine that samples for the policy and takes over weight versions only with proof.

A plain class without Ray. Its gate is closed while weights change, and stays closed ("quarantine") when a
version cannot be proved; `adopt` is the only way through. All awaits have the deadlines of `EngineSettings`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from actors.adoption import AdapterWeights, Arrays, FullWeights, Swap
from actors.engine import EngineError
from actors.engine_client import EngineClient
from actors.gate import Gate, Quarantined
from actors.prover import Prover
from pipelines.settings import EngineSettings, LoraSettings
from pipelines.types import Behaviour, Canary, MediaTable, Prompt, Proof, Response, Rollout, WeightVersion

__all__ = ["Decoding", "EngineError", "ForbiddenToken", "Generator", "PromptMismatch", "Quarantined"]


class ForbiddenToken(ValueError):
    """A response holds a special token that would break or shift the learner's forward."""


class PromptMismatch(ValueError):
    """The engine expanded a prompt to other token ids than the learner will see, as it would every time."""


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """How responses are sampled."""

    temperature: float = 1.0
    top_p: float = 1.0
    max_tokens: int = 48


class Generator:
    """Samples, evaluates and scores with the newest proved weights.

    `model_path`: checkpoint in Hugging Face layout; `lora`: adapter settings when only an adapter is trained;
    `swap`: how versions enter the engine (default: by `lora`). Before the first `adopt`, `greedy` and
    `logprob` use the weights on disk, and `sample` waits.
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
        self.client = EngineClient(name, model_path, engine, lora, seed)
        self._decoding = decoding
        self._timeout_s = engine.timeout_s
        self._swap: Swap = swap or (AdapterWeights(lora, model_path) if lora else FullWeights())
        self._gate = Gate(name)
        self._adopting = asyncio.Lock()
        self._prover: Prover | None = None
        self._sampled_tokens = 0

    @property
    def version(self) -> int:
        """The proved weight version; -1 before the first."""
        held = self._prover.held if self._prover else None
        return held.number if held else -1

    async def start(self, canaries: Sequence[Canary]) -> dict[str, Any]:
        """Bring the engine up and warm every kernel that sampling and proving use.

        Returns the seconds it took and the canary values of the weights on disk.
        Raises ValueError without canaries, and what vLLM raises when it does not start.
        """
        if not canaries:
            raise ValueError(
                f"generator {self.name!r}: got no canaries; at least one is needed to prove weights"
            )
        self._prover = Prover(self.client, self._swap, canaries)
        began = time.perf_counter()
        await self.client.start()
        built = time.perf_counter()
        first = canaries[0]
        patience = (
            self.client.settings.start_timeout_s
        )  # vLLM compiles a kernel for the first log-probability
        await self._samples(first.prompt, first.media, n=2, seed=0, timeout_s=patience)
        own = await self._prover.calibrate()
        return {"build_s": built - began, "warm_up_s": time.perf_counter() - built, "canary": own}

    async def stop(self) -> None:
        """End the engine; requests in flight fail."""
        await self.client.stop()
        self._swap.close()

    async def health(self) -> dict[str, Any]:
        """Answers at any time, also while decoding or proving."""
        engine = self.client.engine
        return {
            "name": self.name,
            "alive": engine.alive,
            "version": self.version,
            "quarantined": self._gate.quarantine,
            "open": self._gate.open,
            "in_flight": self._gate.inside,
            "engine_steps": engine.steps,
            "engine_faults": engine.faults,
            "busy_s": engine.busy_seconds,
            "sampled_tokens": self._sampled_tokens,
        }

    async def sample(self, prompt: Prompt, media: MediaTable, n: int, seed: int) -> tuple[Rollout, ...]:
        """n responses, all under one weight version; waits while a version is being adopted.

        `Behaviour.logps` are the policy's own log-probabilities: temperature 1, nothing masked or cut.
        Raises `Quarantined`, `ForbiddenToken`, `PromptMismatch`, `EngineError`, TimeoutError, and ValueError
        for prompts that cannot be shown to the model.
        """
        async with self._gate.pass_through(self._timeout_s):
            version = self.version
            output = await self._samples(prompt, media, n, seed, self._timeout_s)
            rollouts = tuple(self.rollout(prompt, completion, version) for completion in output.outputs)
        self._sampled_tokens += sum(len(rollout.response.tokens) for rollout in rollouts)
        return rollouts

    async def greedy(self, prompts: Sequence[tuple[Prompt, MediaTable]], max_tokens: int) -> list[str]:
        """The most likely answers, for evaluation. They share the engine with sampling."""
        client = self.client
        async with self._gate.pass_through(self._timeout_s, before_first=True):
            items = [await client.prepare(client.input, prompt, media) for prompt, media in prompts]
            params = client.params(temperature=0.0, max_tokens=max_tokens)
            outputs = await client.answers(items, params, self._swap.request)
        return [client.processing.decode(output.outputs[0].token_ids) for output in outputs]

    async def logprob(self, prompt: Prompt, media: MediaTable, tokens: Sequence[int]) -> float:
        """log p(tokens | prompt) of the weights in the engine, summed, nats; teacher-forced.

        A side door past the gate: it does not say which version answered.
        """
        return await self.client.logprob(prompt, media, tokens, self._swap.request)

    async def adopt(self, version: WeightVersion, tensors: Arrays) -> Proof:
        """Take over a version: close the gate, drain, load, forget caches, prove, open the gate.

        What fails is loaded once more from the given tensors; then the generator is quarantined until a later
        `adopt` succeeds. Never raises for weights that cannot be proved: read `Proof.holds`.
        Raises TimeoutError when requests in flight do not end (the old version then goes on serving), and
        RuntimeError before `start`.
        """
        if self._prover is None:
            raise RuntimeError(f"generator {self.name!r} was not started")
        async with self._adopting, self._gate.closed(self._timeout_s):
            result = await self._prover.load_and_prove(version, tensors)
            failed = f"weight version {version.number} is not proved: {dict(result.detail)}"
            self._gate.quarantine = None if result.holds else failed
        return result

    def rollout(self, prompt: Prompt, completion: Any, version: int) -> Rollout:
        """A rollout from vLLM's completion. Raises `ForbiddenToken`."""
        tokens = tuple(completion.token_ids)
        bad = sorted(set(tokens) & set(self.client.processing.forbidden))
        if bad:
            raise ForbiddenToken(
                f"prompt {prompt.id!r}: the response holds special tokens {bad}; it is not used"
            )
        return Rollout(
            prompt=prompt,
            response=Response(
                tokens=tokens,
                text=self.client.processing.decode(tokens),
                finished=completion.finish_reason == "stop",
            ),
            behaviour=Behaviour(
                stream="policy",
                decoder={"temperature": self._decoding.temperature, "top_p": self._decoding.top_p},
                oldest=version,
                newest=version,
                logps=tuple(
                    float(entry[token].logprob)
                    for entry, token in zip(completion.logprobs, tokens, strict=True)
                ),
            ),
        )

    async def _samples(self, prompt: Prompt, media: MediaTable, n: int, seed: int, timeout_s: float) -> Any:
        item, expected = await self.client.prepare(self._checked_input, prompt, media)
        params = self.client.params(
            n=n,
            temperature=self._decoding.temperature,
            top_p=self._decoding.top_p,
            max_tokens=self._decoding.max_tokens,
            seed=seed,
            logprobs=0,
        )
        output = await self.client.answer(item, params, self._swap.request, timeout_s)
        if list(output.prompt_token_ids) != expected:
            raise PromptMismatch(
                f"prompt {prompt.id!r}: the engine expanded it to {len(output.prompt_token_ids)} tokens, the "
                f"learner's processor to {len(expected)}, and they differ; the checkpoint's processor and "
                "vLLM's disagree about images"
            )
        return output

    def _checked_input(self, prompt: Prompt, media: MediaTable) -> tuple[dict[str, Any], list[int]]:
        processing = self.client.processing
        ids = processing.encode(prompt, media).input_ids
        processing.require_fit(len(ids), self._decoding.max_tokens, f"prompt {prompt.id!r}")
        return self.client.input(prompt, media), ids
