"""What every generator has: a gate, a proved weight version, and answers in the policy's tokens."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar

from actors import proof
from actors.gate import Gate
from actors.processing import Processing
from actors.proof import Verdict
from actors.prover import Held, Prover, Subject
from actors.transfer import Arrays, Shipment, receive
from pipelines.decoding import Decoder
from pipelines.loop import RoleFailed
from pipelines.types import Behaviour, Canary, Prompt, Proof, Response, Rollout, WeightVersion

T = TypeVar("T")
Spans = tuple[tuple[int, int], ...]
InFlight = Literal["wait", "keep", "abort"]


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


class Holder(ABC):
    """A generator without its engine.

    `timeout_s`: deadline of one request, of one bucket of weights and of one weight sync. `in_flight`: what a
    new version does to answers under way.
    """

    def __init__(
        self,
        name: str,
        processing: Processing,
        decoding: Decoding,
        timeout_s: float,
        in_flight: InFlight = "wait",
    ) -> None:
        self.name = name
        self.processing = processing
        self.decoding = decoding
        self.timeout_s = timeout_s
        self.in_flight = in_flight
        self.cut_transfers = 0  # weights that did not arrive whole
        self.fallbacks = 0  # broadcasts that did not, after which the same weights came another way
        self._gate = Gate(name)
        self._adopting = asyncio.Lock()
        self._prover: Prover | None = None
        self._sampled_tokens = 0

    @abstractmethod
    async def prepare(self, function: Callable[..., T], *arguments: Any) -> T:
        """Template, tokens and pictures off the event loop, one at a time: tokenizers are not shareable."""

    @property
    def version(self) -> int:
        """The proved weight version; -1 before the first."""
        held = self._prover.held if self._prover else None
        return held.number if held else -1

    @property
    def held(self) -> Held:
        """What answers inside the gate; there is none before the first version."""
        assert self._prover is not None and self._prover.held is not None
        return self._prover.held

    def watch(self, subject: Subject, canaries: Sequence[Canary]) -> Prover:
        """The prover of all later versions. Raises ValueError without canaries."""
        if not canaries:
            raise ValueError(
                f"generator {self.name!r}: got no canaries; at least one is needed to prove weights"
            )
        self._prover = Prover(subject, canaries)
        return self._prover

    async def adopt(self, version: WeightVersion, tensors: Arrays | Shipment) -> Proof:
        """Take over a version: fetch and check its bytes, close the gate, drain, load, forget caches, prove,
        open the gate.

        What fails is loaded once more from the given tensors; then the generator is quarantined until a later
        `adopt` succeeds. Never raises for weights that cannot be proved: read `Proof.holds`.
        Raises RoleFailed "transfer_cut" when the bytes do not arrive and TimeoutError when requests in flight
        do not end (either way the old version goes on serving), and RuntimeError before `start`.
        """
        if self._prover is None:
            raise RuntimeError(f"generator {self.name!r} was not started")
        async with self._adopting:
            arrays, received = await self._received(version, tensors)
            if received.result == "failed":
                result = self._prover.refused(version, received)
                await self._gate.shut(_unproved(result))
                return result
            async with self._gate.closed(self.timeout_s, self._hasten):
                try:
                    result = await self._prover.load_and_prove(version, arrays, received)
                except BaseException:
                    self._gate.quarantine = f"weight version {version.number} was cut while it entered"
                    raise
                self._gate.quarantine = None if result.holds else _unproved(result)
        return result

    def _hasten(self) -> None:
        """New weights wait until the answers under way have left."""
        if self.in_flight == "abort":
            self._gate.abort()

    async def _received(self, version: WeightVersion, tensors: Arrays | Shipment) -> tuple[Arrays, Verdict]:
        """A version's tensors, and whether they are what was published: by broadcast, else as ever."""
        fell_back: dict[str, str] = {}
        if isinstance(tensors, Shipment) and tensors.call is not None:
            from actors.collective import NotCollected, taken

            try:
                return await asyncio.wait_for(asyncio.to_thread(taken, version, tensors.call), self.timeout_s)
            except NotCollected as error:
                fell_back["fell_back"] = str(error)
            except TimeoutError:  # the thread hangs in spite of its deadlines
                fell_back["fell_back"] = f"timeout: no broadcast within {self.timeout_s:g} s"
            self.fallbacks += 1
        arrays = await self._fetched(f"weight version {version.number}", tensors)
        received = await asyncio.to_thread(proof.judge_bytes, version, arrays)
        return arrays, replace(received, detail={**received.detail, **fell_back})

    async def _fetched(self, what: str, tensors: Any) -> Any:
        if not isinstance(tensors, Shipment):
            return tensors
        try:
            return await receive(what, tensors, self.timeout_s)
        except RoleFailed:
            self.cut_transfers += 1
            raise

    async def encode(self, text: str, origin: str) -> Response:
        """An answer given as text, in the policy's tokens, with the end of sequence.

        Raises ValueError for a text that holds a special token, or a word that the tokenizer does not know.
        """
        return await self.prepare(self._encoded, text, origin)

    async def decode(self, tokens: Sequence[int]) -> str:
        """The text of an answer's tokens, without special tokens."""
        return await self.prepare(self.processing.decode, tuple(tokens))

    def resolved(self, decoder: Decoder | None) -> Decoder:
        """The decoder with the run's temperature where it leaves it open."""
        decoder = decoder or Decoder()
        if decoder.temperature is not None:
            return decoder
        return replace(decoder, temperature=self.decoding.temperature)

    def room(self, prompt: Prompt, prefix: Sequence[int]) -> int:
        """Tokens that may follow a prefix. Raises ValueError when it cannot be continued."""
        processing = self.processing
        bad = sorted(set(prefix) & (set(processing.forbidden) | processing.eos))
        if bad:
            raise ValueError(
                f"prompt {prompt.id!r}: the beginning of the answer holds the special tokens {bad}; it "
                "cannot be continued"
            )
        left = self.decoding.max_tokens - len(prefix)
        if left < 1:
            raise ValueError(
                f"prompt {prompt.id!r}: the beginning of the answer has {len(prefix)} tokens and leaves no "
                f"room; an answer has at most rollout.max_tokens = {self.decoding.max_tokens}"
            )
        return left

    def made(
        self,
        prompt: Prompt,
        tokens: Sequence[int],
        logps: Iterable[float],
        *,
        finished: bool,
        held: Held,
        decoder: Decoder,
        prefix: Sequence[int] = (),
        spans: Spans = (),
    ) -> Rollout:
        """A rollout of this generator, its last token by `held`. Raises `ForbiddenToken`."""
        bad = sorted(set(tokens) & set(self.processing.forbidden))
        if bad:
            raise ForbiddenToken(
                f"prompt {prompt.id!r}: the response holds special tokens {bad}; it is not used"
            )
        self._sampled_tokens += len(tokens) - len(prefix)
        plain = type(decoder) is Decoder
        return Rollout(
            prompt=prompt,
            response=Response(
                tokens=tuple(tokens),
                text=self.processing.decode(tokens),
                origin="stitched" if prefix else "sampled",
                finished=finished,
            ),
            behaviour=Behaviour(
                stream=decoder.stream,
                decoder={
                    **({} if plain else decoder.to_json()),
                    "temperature": decoder.temperature,
                    "top_p": self.decoding.top_p,
                },
                oldest=min((number for number, _ in spans), default=held.number),
                newest=held.number,
                logps=tuple(float(value) for value in logps),
                digest=held.digest,
                versions=spans if len(spans) > 1 else (),
            ),
        )

    def _encoded(self, text: str, origin: str) -> Response:
        processing = self.processing
        processing.check_text(text, f"answer of origin {origin!r}")
        tokens: list[int] = processing.tokenizer(text, add_special_tokens=False)["input_ids"]
        if set(tokens) & set(processing.forbidden):
            raise ValueError(
                f"answer of origin {origin!r}: {text[:80]!r} holds words that the model's tokenizer does not "
                "know; they cannot be scored"
            )
        end = processing.tokenizer.eos_token_id
        tokens.append(int(end if end is not None else min(processing.eos)))
        return Response(tokens=tuple(tokens), text=processing.decode(tokens), origin=origin)


def _unproved(result: Proof) -> str:
    return f"weight version {result.version} is not proved: {dict(result.detail)}"
