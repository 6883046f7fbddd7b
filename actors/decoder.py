"""A generator without vLLM: decodes in torch, for what vLLM cannot do and for models that are tiny.

It mixes the logits of two forwards, hides parts of a picture from attention, shows attention, and keeps a
frozen reference beside the policy. Requests that wait are decoded together when they share a decoder.
"""

from __future__ import annotations

import asyncio
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any, TypeVar

import torch

from actors import training
from actors.batching import Batcher
from actors.cached_model import CachedModel, Context, hidden_positions
from actors.canaries import without_media
from actors.decoder_subject import DecoderSubject, WeightLoader, answer_logps
from actors.engine import EngineError
from actors.holder import Decoding, Holder, InFlight
from actors.processing import Processing
from actors.token_sampling import Answer, Ask, Vocabulary, draw
from actors.transfer import Shipment
from pipelines.decoding import Ability, Contrast, Decoder, FromCheckpoint, FromReference, Grounded, Mixture
from pipelines.rollout import Probe
from pipelines.settings import EngineSettings, LoraSettings
from pipelines.types import Canary, MediaTable, Prompt, Response, Rollout

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Look:
    """A request to read an answer: its log-probabilities, most likely tokens and, if asked for, attention."""

    context: Context
    attention: bool = False


Item = Ask | Look
Seen = tuple[list[float], list[int], tuple[float, ...]]  # log-probs, most likely tokens, attention


class HuggingFaceGenerator(Holder):
    """The interface of `Generator`, with more decoders.

    `reference_path`: checkpoint of the frozen reference (default: `model_path`), loaded when a decoder first
    asks for it. It stays that checkpoint, whatever the learner's reference becomes. `attention_layer`: the
    layer that `probe` reads attention from (default: the middle one; MIA-DPO's layer 16 of 32).
    """

    abilities: frozenset[Ability] = frozenset(
        {"reference", "checkpoint", "mixture", "contrast", "acts", "prefix", "probe", "attention"}
    )

    def __init__(
        self,
        name: str,
        model_path: str,
        engine: EngineSettings,
        decoding: Decoding,
        lora: LoraSettings | None = None,
        seed: int = 0,
        reference_path: str | None = None,
        attention_layer: int | None = None,
        in_flight: InFlight = "wait",
    ) -> None:
        processing = Processing(model_path, max_length=engine.max_model_len)
        super().__init__(name, processing, decoding, engine.timeout_s, in_flight)
        self._engine, self._lora, self._seed = engine, lora, seed
        self._reference_path = str(reference_path or model_path)
        self._layer = attention_layer
        self._using = asyncio.Lock()  # of the models
        self._preparing = asyncio.Lock()
        self._batcher: Batcher[Item, Any] = Batcher(self._serve)
        self._others: dict[tuple[str, str], CachedModel] = {}  # by role and path
        self._model: CachedModel | None = None
        self._subject: DecoderSubject | None = None
        self._batches = self._faults = self._prepared = 0
        self._busy_s = 0.0

    async def prepare(self, function: Callable[..., T], *arguments: Any) -> T:
        async with self._preparing:
            self._prepared += 1
            return await asyncio.to_thread(function, *arguments)

    async def start(self, canaries: Sequence[Canary]) -> dict[str, Any]:
        """Load the model and read the canaries. Returns as `Generator.start` does."""
        began = time.perf_counter()
        model = await asyncio.to_thread(self._load)
        loader = WeightLoader(model.model, Path(self.processing.path))
        self._model = model
        self._subject = DecoderSubject(self.name, self._engine.dtype, model, loader, self._alone)
        built = time.perf_counter()
        own = await self.watch(self._subject, canaries).calibrate()
        return {"build_s": built - began, "warm_up_s": time.perf_counter() - built, "canary": own}

    async def stop(self) -> None:
        """Give the models up; requests in flight fail."""
        await self._batcher.stop()
        self._model = None
        self._others.clear()

    async def health(self) -> dict[str, Any]:
        """Answers at any time, also while decoding or proving."""
        forwards = self._model.forwards if self._model is not None else 0
        return {
            "name": self.name,
            "pid": os.getpid(),
            "alive": self._model is not None,
            "version": self.version,
            "quarantined": self._gate.quarantine,
            "open": self._gate.open,
            "in_flight": self._gate.inside,
            "batches": self._batches,
            "engine_steps": forwards,
            "progress": forwards + self._prepared,
            "engine_faults": self._faults,
            "busy_s": self._busy_s,
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
        """n responses, all under one weight version; waits while a version is being adopted.

        With a `prefix`, tokens of an answer's beginning, each response is that beginning and its
        continuation. `Behaviour.logps` are the policy's own log-probabilities, whatever the decoder drew
        from: temperature 1, nothing masked, mixed or cut. The same seed gives the same answers, whichever
        requests are decoded beside it, up to the rounding of logits.
        Raises `Quarantined`, `ForbiddenToken`, `EngineError`, TimeoutError, and ValueError for prompts that
        cannot be shown to the model.
        """
        chosen = self.resolved(decoder)
        async with self._gate.pass_through(self.timeout_s, abortable=self.in_flight == "abort"):
            held = self.held
            ask = await self.prepare(self._ask, prompt, media, n, seed, chosen, tuple(prefix))
            answers: list[Answer] = await self._answer(ask)
            return tuple(
                self.made(
                    prompt,
                    answer.tokens,
                    answer.logps,
                    finished=answer.finished,
                    held=held,
                    decoder=chosen,
                    prefix=prefix,
                )
                for answer in answers
            )

    async def probe(
        self, prompt: Prompt, media: MediaTable, responses: Sequence[Response], *, attention: bool = False
    ) -> tuple[Probe, ...]:
        """The policy's log-probabilities of given responses, in order, under one weight version.

        `Probe.top` leaves out tokens that an answer must not hold. `Probe.attention` is the share of the
        answer's attention that falls on each picture, of all that the answer's tokens attend to.
        """
        async with self._gate.pass_through(self.timeout_s, abortable=self.in_flight == "abort"):
            version = self.version
            base = await self.prepare(self._context, prompt, media, 0)
            looks = [self._look(prompt, base, response.tokens, attention) for response in responses]
            found = await asyncio.gather(*(self._answer(look) for look in looks))
        return tuple(
            Probe(logps=tuple(logps), top=tuple(top), attention=mass, version=version)
            for logps, top, mass in found
        )

    async def greedy(self, prompts: Sequence[tuple[Prompt, MediaTable]], max_tokens: int) -> list[str]:
        """The most likely answers, for evaluation."""
        most_likely = Decoder(temperature=0.0)
        async with self._gate.pass_through(self.timeout_s, before_first=True):
            asks = [
                Ask(
                    context=await self.prepare(self._context, prompt, media, max_tokens),
                    max_tokens=max_tokens,
                    decoder=most_likely,
                )
                for prompt, media in prompts
            ]
            answers = await asyncio.gather(*(self._answer(ask) for ask in asks))
        return [self.processing.decode(answer.tokens) for [answer] in answers]

    async def logprob(self, prompt: Prompt, media: MediaTable, tokens: Sequence[int]) -> float:
        """log p(tokens | prompt) of the weights in the model, summed, nats; teacher-forced.

        A side door past the gate: it does not say which version answered.
        """
        context = await self.prepare(self._context, prompt, media, len(tokens))
        logps, _, _ = await self._answer(self._look(prompt, context, tokens, False))
        return sum(logps)

    async def adopt_reference(self, weights: Mapping[str, torch.Tensor] | Shipment) -> None:
        """From here on the reference has these weights (names of its parameters), as the learner's has.

        The gate is not closed: call it while no request that reads the reference is in flight.
        """
        await self._alone(self._load_reference, await self._fetched("the reference", weights))

    # -- requests -------------------------------------------------------------------------------------------

    def _context(self, prompt: Prompt, media: MediaTable, room: int, answer: tuple[int, ...] = ()) -> Context:
        processing = self.processing
        encoded = processing.encode(replace(prompt, acts=()), media)
        processing.require_fit(len(encoded.input_ids), room, f"prompt {prompt.id!r}")
        hidden = hidden_positions(prompt, encoded, processing.image_token)
        return Context(encoded=encoded, answer=answer, hidden=hidden)

    def _ask(
        self,
        prompt: Prompt,
        media: MediaTable,
        n: int,
        seed: int,
        decoder: Decoder,
        prefix: tuple[int, ...],
    ) -> Ask:
        room, most = self.room(prompt, prefix), self.decoding.max_tokens
        context = self._context(prompt, media, most, prefix)
        second: Context | None = None
        if isinstance(decoder, Grounded) or (isinstance(decoder, Contrast) and decoder.checkpoint is None):
            second = self._context(without_media(prompt), {}, most, prefix)
        elif isinstance(decoder, FromReference | FromCheckpoint | Mixture | Contrast):
            second = context
        elif type(decoder) is not Decoder:
            raise ValueError(f"the Hugging Face generator cannot decode as {type(decoder).__name__} does")
        return Ask(context=context, second=second, n=n, seed=seed, max_tokens=room, decoder=decoder)

    def _look(self, prompt: Prompt, base: Context, tokens: Sequence[int], attention: bool) -> Look:
        where = f"prompt {prompt.id!r}"
        if not tokens:
            raise ValueError(f"{where}: got no answer tokens to score")
        self.processing.require_fit(len(base.encoded.input_ids), len(tokens), where)
        return Look(context=replace(base, answer=tuple(tokens)), attention=attention)

    async def _answer(self, item: Item) -> Any:
        return await asyncio.wait_for(self._batcher.ask(item), self.timeout_s)

    # -- on the model ---------------------------------------------------------------------------------------

    async def _alone(self, function: Callable[..., T], *arguments: Any) -> T:
        async with self._using:
            return await asyncio.to_thread(function, *arguments)

    def _load(self) -> CachedModel:
        model = training.load_model(self.processing, self._engine.dtype)
        if self._lora:
            training.add_adapter(model, self._lora, self._seed, self.processing.has_vision)
        return CachedModel(model, self.processing)

    async def _serve(self, items: Sequence[Item]) -> list[Any]:
        """One result or exception per item; items of one kind and decoder go through the model together."""
        results: list[Any] = [None] * len(items)
        order = sorted(range(len(items)), key=lambda index: _kind(items[index]))
        for _, group in groupby(order, key=lambda index: _kind(items[index])):
            for chunk in self._chunks(list(group), items):
                batch = [items[index] for index in chunk]
                for index, result in zip(chunk, await self._alone(self._run, batch), strict=True):
                    results[index] = result
        return results

    def _chunks(self, indices: Sequence[int], items: Sequence[Item]) -> Iterator[list[int]]:
        """At most `max_num_seqs` rows at a time; a request is never divided."""
        chunk: list[int] = []
        rows = 0
        for index in indices:
            size = _rows(items[index])
            if chunk and rows + size > self._engine.max_num_seqs:
                yield chunk
                chunk, rows = [], 0
            chunk.append(index)
            rows += size
        if chunk:
            yield chunk

    def _run(self, batch: Sequence[Any]) -> Sequence[Any]:
        began = time.perf_counter()
        try:
            return self._looked(batch) if isinstance(batch[0], Look) else self._drawn(batch)
        except Exception as error:
            self._faults += 1
            failure = EngineError(f"decoding failed: {type(error).__name__}: {error}")
            failure.__cause__ = error
            return [failure] * len(batch)
        finally:
            self._batches += 1
            self._busy_s += time.perf_counter() - began

    def _drawn(self, asks: Sequence[Ask]) -> list[list[Answer]]:
        processing = self.processing
        vocabulary = Vocabulary(forbidden=processing.forbidden, eos=processing.eos, top_p=self.decoding.top_p)
        return draw(self._policy, self._second, asks, vocabulary)

    def _looked(self, looks: Sequence[Look]) -> list[Seen]:
        contexts = [look.context for look in looks]
        logits, _ = self._policy.read(contexts)
        mass: list[tuple[float, ...]] = [()] * len(looks)
        if looks[0].attention:
            layers = self.processing.text_config.num_hidden_layers
            mass = self._policy.attention(contexts, layers // 2 if self._layer is None else self._layer)
        barred = torch.tensor(self.processing.forbidden, device=logits[0].device)
        seen: list[Seen] = []
        for context, own, share in zip(contexts, logits, mass, strict=True):
            logps = answer_logps(own, context.answer)
            allowed = own[:-1].index_fill(-1, barred, -math.inf)
            seen.append((logps, allowed.argmax(dim=-1).tolist(), share))
        return seen

    @property
    def _policy(self) -> CachedModel:
        if self._model is None:
            raise RuntimeError(f"generator {self.name!r} does not run: it was not started, or is stopped")
        return self._model

    def _second(self, decoder: Decoder) -> CachedModel:
        """The model of the second forward: the policy without media, another checkpoint, or the reference."""
        if isinstance(decoder, FromReference | Mixture):
            return self._reference
        return self._policy if decoder.checkpoint is None else self._other("checkpoint", decoder.checkpoint)

    @property
    def _reference(self) -> CachedModel:
        """Never one with a checkpoint of the same path: the reference may adopt other weights."""
        return self._other("reference", self._reference_path)

    def _load_reference(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Raises ValueError for names that are missing or unknown."""
        model = self._reference.model
        problem = model.load_state_dict(dict(weights), strict=False)
        stored = set(dict(model.named_parameters()))
        lost = stored & set(problem.missing_keys)
        if problem.unexpected_keys or lost:
            raise ValueError(
                f"generator {self.name!r}: weights of the reference do not fit: unknown "
                f"{problem.unexpected_keys[:3]}, missing {sorted(lost)[:3]}"
            )

    def _other(self, role: str, path: str) -> CachedModel:
        """A model beside the policy, loaded when it is first asked for."""
        if (role, path) not in self._others:
            processing = Processing(path, max_length=self._engine.max_model_len)
            if processing.text_config.vocab_size != self.processing.text_config.vocab_size:
                raise ValueError(
                    f"checkpoint {path!r}: its vocabulary has {processing.text_config.vocab_size} tokens, "
                    f"the policy's {self.processing.text_config.vocab_size}; their tokens are not the same"
                )
            model = training.load_model(processing, self._engine.dtype)
            self._others[role, path] = CachedModel(model, processing)
        return self._others[role, path]


def _kind(item: Item) -> tuple[str, str]:
    """Items of one kind share a forward; as text, so that kinds have an order."""
    return ("look", str(item.attention)) if isinstance(item, Look) else ("draw", repr(item.decoder))


def _rows(item: Item) -> int:
    return 1 if isinstance(item, Look) else item.n
