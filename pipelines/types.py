"""Values that cross a stage: frozen, keyword-only, free of frameworks.

Every field says its shape and unit, and who fills it. Log-probabilities are natural logarithms (nats).
Media travels *beside* a prompt in a table keyed by digest, never inside it, so that a prompt stays a few
hundred bytes and the same picture is stored once however many prompts show it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

MediaKind = Literal["image", "video", "audio"]
PartKind = Literal["text", "image", "video", "audio"]


def array_digest(kind: str, space: str, array: NDArray[Any]) -> str:
    """SHA-256 (hex) of a media array: its kind, space, dtype, shape and bytes."""
    header = f"{kind}|{space}|{array.dtype.str}|{array.shape}|".encode()
    return hashlib.sha256(header + np.ascontiguousarray(array).tobytes()).hexdigest()


def canonical_digest(value: Any) -> str:
    """SHA-256 (hex) of a JSON-able value, independent of key order."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


@dataclass(frozen=True, kw_only=True)
class Op:
    """One operation on a media or inside a model, enough to repeat it. Filled by perturbations."""

    name: str
    params: Mapping[str, Any] = field(default_factory=dict[str, Any])  # JSON-able
    seed: int = 0

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, "params": dict(self.params), "seed": self.seed}


@dataclass(frozen=True, kw_only=True, eq=False)
class Media:
    """A picture, clip or sound as an array. Filled by data adapters and perturbations."""

    kind: MediaKind
    space: str  # "rgb8": uint8 [height, width, 3]
    payload: NDArray[Any]  # made read-only
    parent: str | None = None  # digest of the media it was made from
    op: Op | None = None  # the operation that made it from its parent

    def __post_init__(self) -> None:
        if self.space == "rgb8" and (
            self.payload.dtype != np.uint8 or self.payload.ndim != 3 or self.payload.shape[2] != 3
        ):
            got = f"{self.payload.dtype} {self.payload.shape}"
            raise ValueError(f"media in space rgb8: expected uint8 [height, width, 3], got {got}")
        payload = np.ascontiguousarray(self.payload).view()
        payload.flags.writeable = False
        object.__setattr__(self, "payload", payload)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of what the array holds; equal arrays are the same media."""
        return array_digest(self.kind, self.space, self.payload)


MediaTable = Mapping[str, Media]  # digest -> media
NOT_SCORED = -1  # a target that no loss reads
NEVER_STALE = 2**31 - 1  # weight version of what no policy sampled; handed out as the newest one


@dataclass(frozen=True, kw_only=True)
class Part:
    """A piece of a message: text, or a reference to one media by digest."""

    kind: PartKind
    text: str = ""
    digest: str = ""


@dataclass(frozen=True, kw_only=True)
class Message:
    role: str  # "system", "user" or "assistant"
    parts: tuple[Part, ...]


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """What a model is shown. A damaged input is a `Prompt` as well, with other media."""

    id: str  # the data row's id; a damaged prompt keeps the id of its root
    messages: tuple[Message, ...]
    acts: tuple[Op, ...] = ()  # in-model operations, e.g. attention drop
    gold: Mapping[str, Any] = field(default_factory=dict[str, Any])  # free columns of the row; for rewards
    origin: str = "data"  # "data" or the name of the damage that made it

    @cached_property
    def media(self) -> tuple[str, ...]:
        """Digests of the media in order of appearance."""
        return tuple(part.digest for message in self.messages for part in message.parts if part.digest)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of all that the model sees: messages, media digests and acts (not id, gold, origin)."""
        messages = [[m.role, [[p.kind, p.text, p.digest] for p in m.parts]] for m in self.messages]
        return canonical_digest([messages, [act.to_json() for act in self.acts]])

    def with_media(self, swap: Mapping[str, str], origin: str) -> Prompt:
        """The same prompt with media digests exchanged (`swap`: old digest -> new digest)."""

        def exchanged(part: Part) -> Part:
            return replace(part, digest=swap.get(part.digest, part.digest))

        messages = tuple(replace(m, parts=tuple(exchanged(p) for p in m.parts)) for m in self.messages)
        return replace(self, messages=messages, origin=origin)


@dataclass(frozen=True, kw_only=True)
class Response:
    """Tokens of one answer, as sampled; never re-tokenised.

    What is fed and what is scored may differ: TARS feeds corrupted tokens and does not score them, POVID
    feeds one answer and scores another. `targets` then says what each position is scored on.
    """

    tokens: tuple[int, ...]  # [length] fed, end-of-sequence token included when it was produced
    text: str  # decoded without special tokens, for rewards and people
    origin: str = "sampled"  # "sampled", "gold", "edited" or "stitched"
    finished: bool = True  # False when cut by the length limit
    targets: tuple[int, ...] | None = None  # [length] scored, NOT_SCORED where a position is left out

    def __post_init__(self) -> None:
        if self.targets is not None and len(self.targets) != len(self.tokens):
            raise ValueError(
                f"a response has one target per token: got {len(self.targets)} targets for "
                f"{len(self.tokens)} tokens"
            )

    @property
    def scored(self) -> tuple[int, ...]:
        """[length] what each position is scored on, NOT_SCORED where it is left out."""
        return self.tokens if self.targets is None else self.targets


@dataclass(frozen=True, kw_only=True)
class Behaviour:
    """Who sampled a response. Filled by the generator."""

    stream: str  # whose samples these are: "policy", "reference"... (`Decoder.stream`)
    decoder: Mapping[str, Any]  # temperature, top_p, ...
    oldest: int  # oldest and newest weight version that contributed a token
    newest: int
    logps: tuple[float, ...]  # [length] log-probability of each token when it was sampled, nats
    digest: str = ""  # `WeightVersion.digest` of `newest`, as the generator had proved it
    # (version, tokens) from the first token to the last, where versions changed under way; else empty
    versions: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True, kw_only=True)
class Rollout:
    """A response, the prompt it was *sampled* under and who sampled it (None: human or offline data)."""

    prompt: Prompt
    response: Response
    behaviour: Behaviour | None = None


@dataclass(frozen=True, kw_only=True)
class Score:
    """A judgement with its parts, or *missing with a reason*. A missing score has no number at all."""

    value: float | None
    missing: str | None = None
    parts: Mapping[str, float] = field(default_factory=dict[str, float])
    confidence: float = 1.0

    def __post_init__(self) -> None:
        if (self.value is None) == (self.missing is None):
            raise ValueError("a score has either a value or a reason why it is missing")
        if self.value is not None and not np.isfinite(self.value):
            raise ValueError(f"a score is a finite number, got {self.value}")


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A cell: (prompt it is *scored* under, response). Indices point into the comparison's tables."""

    prompt: int
    response: int
    role: str  # a name that terms may read; an edge's cells are called as in "w@x"
    score: Score | None = None
    behaviour: Behaviour | None = None
    sampled_under: str | None = (
        None  # digest of the prompt that it was sampled under; None: nobody sampled it
    )


Spans = tuple[tuple[float, ...], tuple[float, ...]]  # one weight per token of the winner, of the loser


@dataclass(frozen=True, kw_only=True)
class Preference:
    """An edge between two candidates of one comparison."""

    name: str  # the term that uses it names it: "text", "media"
    winner: int  # index of a candidate
    loser: int
    key: int = 0  # edges of several names with one key are joined into one linear form
    probability: float = 1.0  # that the winner is better, where the label is soft
    margin: float = 0.0  # nats, subtracted inside the link
    weight: float = 1.0
    spans: Mapping[str, Spans] = field(default_factory=dict[str, Spans])  # name -> token weights


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The unit of learning: tables of prompts and responses, cells and edges. Filled by `compare`."""

    id: str
    stage: int = 0  # of the recipe
    prompts: tuple[Prompt, ...]
    responses: tuple[Response, ...]
    candidates: tuple[Candidate, ...]
    preferences: tuple[Preference, ...]

    def axis(self, edge: Preference) -> Literal["text", "media", "joint"]:
        """What differs between the two sides of an edge; derived, so that it cannot be wrong."""
        winner, loser = self.candidates[edge.winner], self.candidates[edge.loser]
        same_prompt, same_response = winner.prompt == loser.prompt, winner.response == loser.response
        if same_prompt and same_response:
            raise ValueError(f"comparison {self.id}: edge {edge.name!r} compares a candidate with itself")
        return "text" if same_prompt else "media" if same_response else "joint"


@dataclass(frozen=True, kw_only=True)
class Group:
    """All that one prompt produced under one lease. Filled by the scorer, accepted once by the ledger."""

    id: str
    fence: int  # the lease's fencing number
    comparisons: tuple[Comparison, ...]
    use: int = 1  # how often its comparisons have come up, this time included; filled at hand-out
    media: MediaTable  # every media that a comparison's prompt names
    version: int  # oldest weight version among its sampled responses; NEVER_STALE: there are none
    dropped: str | None = None  # named reason when there is nothing to learn from
    facts: Mapping[str, float] = field(
        default_factory=dict[str, float]
    )  # numbers to log: reward, tokens, ...
    seconds: Mapping[str, float] = field(default_factory=dict[str, float])  # stage -> busy seconds


@dataclass(frozen=True, kw_only=True)
class Lease:
    """Permission to work on one group once. Issued by the ledger."""

    group: str  # group id: H(run, prompt, epoch, slot), without the weight version
    fence: int
    cursor: int  # position in the prompt stream
    seed: int
    generator: int  # index of the generator that has a slot for it
    step: int = 1  # learner step that it is issued for; schedules of hyperparameters read it
    stage: int = 0  # of the recipe


@dataclass(frozen=True, kw_only=True)
class Receipt:
    """What became of a lease; with `Fault` all that the driver sees of the data path."""

    group: str
    accepted: bool
    dropped: str | None = None
    facts: Mapping[str, float] = field(default_factory=dict[str, float])


@dataclass(frozen=True, kw_only=True)
class Fault:
    """A failure as data: it travels, is counted, and decides whether the work is issued again."""

    group: str
    reason: str  # short and countable: "generator_died"
    role: str  # "generator", "scorer", "perturber", "data"
    detail: str  # for people: node, cause
    retry: bool


@dataclass(frozen=True, kw_only=True)
class TensorDigest:
    sha256: str
    shape: tuple[int, ...]
    dtype: str  # numpy name, or "bfloat16"


@dataclass(frozen=True, kw_only=True)
class Canary:
    """A fixed prompt and answer whose log-probability tells one weight version from the next."""

    prompt: Prompt
    media: MediaTable
    tokens: tuple[int, ...]  # the answer, teacher-forced


@dataclass(frozen=True, kw_only=True)
class WeightVersion:
    """A published set of weights. Filled by the learner; the number counts publications."""

    attempt: int
    number: int  # 0 is the starting model
    step: int  # learner steps taken
    stream: str  # "policy"
    manifest: Mapping[str, TensorDigest]  # Hugging Face tensor name -> digest
    canary: tuple[float, ...]  # the learner's log-probability of each canary answer, summed, nats
    adapter: bool = False  # the tensors are a LoRA adapter, not the whole model

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the stream and of all that the manifest says, independent of the tensors' order."""
        tensors = {name: [t.sha256, list(t.shape), t.dtype] for name, t in self.manifest.items()}
        return canonical_digest([self.stream, self.adapter, tensors])


Proved = Literal["proved", "not distinguishable", "failed"]


@dataclass(frozen=True, kw_only=True)
class Proof:
    """Whether a generator truly holds a version, in four parts (docs/architecture.md)."""

    version: int
    generator: str
    bytes_received: Proved  # SHA-256 of every tensor
    elements_loaded: Proved  # every element of every module
    canary_change: Proved  # the generator moved as the learner did
    caches_fresh: Proved  # no prefix or encoder cache survived
    detail: Mapping[str, Any] = field(default_factory=dict[str, Any])
    seconds: float = 0.0

    @property
    def holds(self) -> bool:
        parts = (self.bytes_received, self.elements_loaded, self.canary_change, self.caches_fresh)
        return "failed" not in parts


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One rank's part of a sealed step. Filled by the ledger; the split follows from (step, rank, world)."""

    step: int  # 1-based
    stop: bool  # True: there is no such step, training is over
    groups: tuple[Group, ...] = ()  # this rank's groups, in sealed order
    largest: int = 0  # comparisons of the largest shard of the step: every rank pads to it
    drained: bool = False  # the last step before `stop`
