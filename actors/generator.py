"""A generator: one vLLM engine that samples for the policy and takes over weight versions only with proof.

A plain class without Ray. Its gate is closed while weights change, and stays closed ("quarantine") when a
version cannot be proved; `adopt` is the only way through. All awaits have the deadlines of `EngineSettings`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from actors.adoption import AdapterWeights, FullWeights, Swap
from actors.drafts import Asked, Draft, joined, prefix_logps
from actors.engine import EngineError
from actors.engine_client import EngineClient
from actors.engine_subject import EngineSubject
from actors.gate import Quarantined
from actors.holder import Decoding, ForbiddenToken, Holder, InFlight, PromptMismatch
from actors.prover import Held
from actors.waiting import all_of
from pipelines.decoding import Ability, Decoder
from pipelines.rollout import Probe, derived_seed
from pipelines.settings import EngineSettings, LoraSettings
from pipelines.types import Canary, MediaTable, Prompt, Response, Rollout

__all__ = ["Decoding", "EngineError", "ForbiddenToken", "Generator", "PromptMismatch", "Quarantined"]

T = TypeVar("T")


class Generator(Holder):
    """Samples, evaluates and scores with the newest proved weights.

    `model_path`: checkpoint in Hugging Face layout; `lora`: adapter settings when only an adapter is trained;
    `swap`: how versions enter the engine (default: by `lora`). Before the first `adopt`, `greedy` and
    `logprob` use the weights on disk, and `sample` and `probe` wait.
    """

    abilities: frozenset[Ability] = frozenset({"prefix", "probe"})

    def __init__(
        self,
        name: str,
        model_path: str,
        engine: EngineSettings,
        decoding: Decoding,
        lora: LoraSettings | None = None,
        seed: int = 0,
        swap: Swap | None = None,
        in_flight: InFlight = "wait",
    ) -> None:
        self.client = EngineClient(name, model_path, engine, lora, seed)
        super().__init__(name, self.client.processing, decoding, engine.timeout_s, in_flight)
        self._swap: Swap = swap or (AdapterWeights(lora, model_path) if lora else FullWeights())

    async def prepare(self, function: Callable[..., T], *arguments: Any) -> T:
        return await self.client.prepare(function, *arguments)

    async def start(self, canaries: Sequence[Canary]) -> dict[str, Any]:
        """Bring the engine up and warm every kernel that sampling and proving use.

        Returns the seconds it took and the canary values of the weights on disk.
        Raises ValueError without canaries, and what vLLM raises when it does not start.
        """
        prover = self.watch(EngineSubject(self.client, self._swap), canaries)
        began = time.perf_counter()
        await self.client.start()
        built = time.perf_counter()
        first = canaries[0]
        patience = (
            self.client.settings.start_timeout_s
        )  # vLLM compiles a kernel for the first log-probability
        await self._samples(first.prompt, first.media, 2, 0, Decoder(temperature=1.0), (), False, patience)
        own = await prover.calibrate()
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
            "pid": os.getpid(),
            "alive": engine.alive,
            "version": self.version,
            "quarantined": self._gate.quarantine,
            "open": self._gate.open,
            "in_flight": self._gate.inside,
            "engine_steps": engine.steps,
            "progress": engine.steps + self.client.prepared,
            "engine_faults": engine.faults,
            "busy_s": engine.busy_seconds,
            "load": self._gate.load.to_json(),
            "sampled_tokens": self._sampled_tokens,
            "cut_transfers": self.cut_transfers,
            "fallbacks": self.fallbacks,
            "aborted": self._gate.aborted,
        }

    async def sample(
        self,
        prompt: Prompt,
        media: MediaTable,
        n: int,
        seed: int,
        *,
        decoder: Decoder | None = None,
        prefix: Sequence[int] = (),
    ) -> tuple[Rollout, ...]:
        """n responses under one weight version; waits while a version is being adopted.

        With `in_flight` "keep" an answer that a new version meets half-way goes on under it: the new weights
        read its tokens so far, and `Behaviour.versions` says which tokens are whose. With a `prefix`, tokens
        of an answer's beginning, each response is that beginning and its continuation. `Behaviour.logps` are
        the policy's own log-probabilities, of a prefix as well: temperature 1, nothing masked or cut.
        Raises `Quarantined`, `ForbiddenToken`, `PromptMismatch`, `EngineError`, TimeoutError, RoleFailed
        where it is aborted for a new version, and ValueError for prompts that cannot be shown to the model
        and decoders that are more than a temperature.
        """
        chosen = self.resolved(decoder)
        if type(chosen) is not Decoder:
            raise ValueError(
                f"vLLM draws from the policy alone and cannot decode as {type(chosen).__name__} does; the "
                "Hugging Face generator can"
            )
        distinct = n if chosen.temperature else 1  # vLLM decodes the one most likely answer once
        asked = Asked(prompt, media, distinct, seed, chosen, tuple(prefix))
        while not asked.done:
            async with self._gate.pass_through(self.timeout_s, abortable=self.in_flight == "abort"):
                await self._go_on(asked, self.held)
        return tuple(self.rollout(asked, draft) for draft in (*asked.drafts,) * (n // distinct))

    async def probe(
        self, prompt: Prompt, media: MediaTable, responses: Sequence[Response], *, attention: bool = False
    ) -> tuple[Probe, ...]:
        """The policy's log-probabilities of given responses, in order, under one weight version.

        `Probe.top` leaves out tokens that an answer must not hold. Raises as `sample` does, and ValueError
        when attention is asked for.
        """
        if attention:
            raise ValueError("vLLM does not show attention weights; the Hugging Face generator does")
        client = self.client
        most = 1 + len(self.processing.forbidden)
        async with self._gate.pass_through(self.timeout_s, abortable=self.in_flight == "abort"):
            version = self.version
            items = [await client.prepare(client.scored, prompt, media, r.tokens) for r in responses]
            params = client.params(temperature=0.0, max_tokens=1, prompt_logprobs=most)
            outputs = await client.answers(items, params, self._swap.request)
        return tuple(
            self._probed(output, response, version)
            for output, response in zip(outputs, responses, strict=True)
        )

    async def greedy(self, prompts: Sequence[tuple[Prompt, MediaTable]], max_tokens: int) -> list[str]:
        """The most likely answers, for evaluation. They share the engine with sampling."""
        client = self.client
        async with self._gate.pass_through(self.timeout_s, before_first=True):
            items = [await client.prepare(client.input, prompt, media) for prompt, media in prompts]
            params = client.params(temperature=0.0, max_tokens=max_tokens)
            outputs = await client.answers(items, params, self._swap.request)
        return [self.processing.decode(output.outputs[0].token_ids) for output in outputs]

    async def logprob(self, prompt: Prompt, media: MediaTable, tokens: Sequence[int]) -> float:
        """log p(tokens | prompt) of the weights in the engine, summed, nats; teacher-forced.

        A side door past the gate: it does not say which version answered.
        """
        return await self.client.logprob(prompt, media, tokens, self._swap.request)

    def rollout(self, asked: Asked, draft: Draft) -> Rollout:
        """A finished draft as a rollout. Raises `ForbiddenToken`."""
        assert asked.beginning_logps is not None
        spans = joined(len(asked.beginning), asked.scored_by, draft.spans)
        return self.made(
            asked.prompt,
            (*asked.beginning, *draft.tokens),
            (*asked.beginning_logps, *draft.logps),
            finished=draft.reason == "stop",
            held=asked.versions[spans[-1][0]],
            decoder=asked.decoder,
            prefix=asked.beginning,
            spans=spans,
        )

    def _probed(self, output: Any, response: Response, version: int) -> Probe:
        barred = set(self.processing.forbidden)
        entries = output.prompt_logprobs[-len(response.tokens) :]
        allowed = [{t: e.logprob for t, e in entry.items() if t not in barred} for entry in entries]
        return Probe(
            logps=tuple(entry[t].logprob for entry, t in zip(entries, response.tokens, strict=True)),
            top=tuple(max(entry, key=lambda token: entry[token]) for entry in allowed),
            version=version,
        )

    def _hasten(self) -> None:
        if self.in_flight == "keep":
            self.client.engine.interrupt()
        super()._hasten()

    async def _go_on(self, asked: Asked, held: Held) -> None:
        """Sample until all drafts have ended, or have to wait for new weights."""
        asked.versions[held.number] = held
        await all_of(self._extend(asked, drafts, held) for drafts in asked.requests())

    async def _extend(self, asked: Asked, drafts: Sequence[Draft], held: Held) -> None:
        """One request to the engine: fresh drafts share it, one that goes on has its own."""
        added = tuple(drafts[0].tokens)
        prefix = (*asked.beginning, *added)
        first = asked.beginning_logps is None
        seed = (
            asked.seed if not added else derived_seed(asked.seed, asked.drafts.index(drafts[0]), len(added))
        )
        output = await self._samples(
            asked.prompt, asked.media, len(drafts), seed, asked.decoder, prefix, first, self.timeout_s
        )
        if output is None:
            return
        for draft, completion in zip(drafts, output.outputs, strict=True):
            draft.take(completion, held.number)
        if first:
            asked.beginning_logps = prefix_logps(output, prefix, len(asked.beginning))
            asked.scored_by = held.number

    async def _samples(
        self,
        prompt: Prompt,
        media: MediaTable,
        n: int,
        seed: int,
        decoder: Decoder,
        prefix: tuple[int, ...],
        score_prefix: bool,
        timeout_s: float,
    ) -> Any:
        """The engine's output; None where new weights arrived before it was asked."""
        item, expected, room = await self.client.prepare(self._checked_input, prompt, media, prefix)
        params = self.client.params(
            n=n,
            temperature=decoder.temperature,
            top_p=self.decoding.top_p,
            max_tokens=room,
            seed=seed,
            logprobs=0,
            prompt_logprobs=0 if score_prefix else None,
        )
        keeps = self.in_flight == "keep"
        if keeps and self._gate.closing:
            return None
        output = await self.client.answer(item, params, self._swap.request, timeout_s, keeps)
        if list(output.prompt_token_ids) != expected:
            raise PromptMismatch(
                f"prompt {prompt.id!r}: the engine expanded it to {len(output.prompt_token_ids)} tokens, the "
                f"learner's processor to {len(expected)}, and they differ; the checkpoint's processor and "
                "vLLM's disagree about images"
            )
        return output

    def _checked_input(
        self, prompt: Prompt, media: MediaTable, prefix: tuple[int, ...]
    ) -> tuple[dict[str, Any], list[int], int]:
        """The request, the token ids that the engine must arrive at, and the most tokens it may add."""
        ids = self.processing.encode(prompt, media).input_ids
        self.processing.require_fit(len(ids), self.decoding.max_tokens, f"prompt {prompt.id!r}")
        return self.client.input(prompt, media, prefix), [*ids, *prefix], self.room(prompt, prefix)
