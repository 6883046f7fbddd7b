"""Light workers: the protocol of the real ones, with numpy weights and answers that can be recomputed.

They start in half a second (no torch), take emulated service times and say through a beacon what they do.
An answer is a function of the bytes that the generator really holds, so the recount can tell from the tokens
alone whether a rollout's version and digest are true.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from actors.gate import Gate
from actors.partners import Partners
from actors.prompts import PromptStream, opened
from actors.proof import judge_bytes, tensor_digest
from actors.remote import named
from actors.transfer import Shipment, receive
from benchmarks.chaos.beacon import Beacon
from pipelines.loop import PromptItem
from pipelines.types import (
    Behaviour,
    Candidate,
    Comparison,
    Fault,
    Group,
    Lease,
    Media,
    Message,
    Part,
    Preference,
    Prompt,
    Proof,
    Receipt,
    Response,
    Rollout,
    Score,
    WeightVersion,
)

Arrays = Mapping[str, np.ndarray]
ENOUGH = "enough"  # file of a run's folder: the data ends with so many prompts


@dataclass(frozen=True, kw_only=True)
class World:
    """What a protocol run is about: emulated service times (seconds), and inputs that misbehave."""

    run_dir: Path
    prompts: int
    tokens: int = 6
    token_s: float = 0.01  # emulated decoding
    damage_s: float = 0.005
    score_s: float = 0.01
    backward_s: float = 0.05
    save_s: float = 0.02  # between two files of a checkpoint
    load_s: float = 0.01  # between two buckets of a weight version
    restore_s: float = 0.05  # before and after the ledger takes a snapshot over
    pull_s: float = 5.0  # deadline of one bucket
    slots: int = 64  # requests that a generator decodes at a time
    collective_s: float = 5.0  # deadline of an all-reduce or a barrier
    image: int = 8  # side of a picture, pixels
    poison: frozenset[int] = frozenset()  # prompts that kill the generator which samples them
    crash: frozenset[int] = frozenset()  # prompts that kill the scorer which judges them
    garbage: frozenset[int] = frozenset()  # prompts whose reward is no number
    skew_s: tuple[float, ...] = ()  # shift of each rank's wall clock


def weights_hash(arrays: Arrays) -> str:
    """SHA-256 over names and bytes: what a generator truly holds."""
    parts = [f"{name}:{tensor_digest(arrays[name]).sha256}" for name in sorted(arrays)]
    return hashlib.sha256("|".join(parts).encode()).hexdigest()


def answer(held: str, seed: int, sample: int, tokens: int) -> tuple[int, ...]:
    """The tokens that weights of hash `held` sample."""
    digest = hashlib.sha256(f"{held}|{seed}|{sample}".encode()).digest()
    return tuple(digest[:tokens])


class LightGenerator:
    """Adopts with digests, bucket by bucket; samples token by token behind the real gate."""

    abilities: frozenset[str] = frozenset()

    def __init__(self, index: int, world: World) -> None:
        self.name, self.world = f"generator-{index}", world
        self._beacon = Beacon(world.run_dir, "generator", index)
        self._gate = Gate(self.name)
        self._slots = asyncio.Semaphore(world.slots)
        self._held: tuple[WeightVersion, str] | None = None
        self._steps = 0

    async def start(self, canaries: Sequence[Any] = ()) -> dict[str, Any]:
        return {"build_s": 0.0, "warm_up_s": 0.0, "canary": ()}

    async def stop(self) -> None:
        """Nothing outlives the process."""

    async def health(self) -> dict[str, Any]:
        import ray

        return {
            "name": self.name,
            "alive": True,
            "version": self._held[0].number if self._held else -1,
            "quarantined": self._gate.quarantine,
            "open": self._gate.open,
            "in_flight": self._gate.inside,
            "engine_steps": self._steps,
            "busy_s": 0.0,
            "sampled_tokens": self._steps,
            "pid": os.getpid(),
            "node": ray.get_runtime_context().get_node_id(),
        }

    async def adopt(self, version: WeightVersion, shipment: Shipment) -> Proof:
        """All of a version or nothing of it: the buckets are checked before the gate closes."""
        with self._beacon.at("adopting"):
            arrays: dict[str, np.ndarray] = {}
            for bucket, part in enumerate(shipment.buckets, start=1):
                what = f"weight version {version.number}"
                arrays |= await receive(what, Shipment(buckets=(part,)), self.world.pull_s)
                self._beacon.set("buckets", bucket)
                await asyncio.sleep(self.world.load_s)
            if self._beacon.order("corrupt"):  # a flipped bit on the way
                name = sorted(arrays)[-1]
                arrays[name] = arrays[name] ^ 1
                self._beacon.done("corrupt")
            async with self._gate.closed(30.0):
                began = time.monotonic()
                self._beacon.set("shut", 1)
                verdict = judge_bytes(version, arrays)
                holds = verdict.result == "proved"
                await asyncio.sleep(self.world.load_s)
                if holds:
                    self._held = (version, weights_hash(arrays))
                self._gate.quarantine = None if holds else f"version {version.number} is not proved"
            self._beacon.set("shut", 0)
            self._beacon.set("buckets", 0)
        return Proof(
            version=version.number,
            generator=self.name,
            bytes_received=verdict.result,
            elements_loaded="proved" if holds else "failed",
            canary_change="not distinguishable",
            caches_fresh="proved",
            detail=dict(verdict.detail),
            seconds=time.monotonic() - began,
        )

    async def sample(self, prompt: Prompt, media: Any, n: int, seed: int) -> tuple[Rollout, ...]:
        async with self._gate.pass_through(20.0):
            return await self._decode(prompt, n, seed)

    async def _decode(self, prompt: Prompt, n: int, seed: int) -> tuple[Rollout, ...]:
        assert self._held is not None
        version, held = self._held
        position = int(prompt.gold["position"])
        async with self._slots:
            with self._beacon.at("sampling"):
                for token in range(self.world.tokens):
                    self._beacon.set("token", token)
                    while self._beacon.order("wedge"):  # alive, answers health calls, decodes nothing
                        self._beacon.done("wedge-seen")
                        await asyncio.sleep(0.05)
                    await asyncio.sleep(self.world.token_s)
                    self._steps += 1
                    if token == 1 and position in self.world.poison:
                        os._exit(41)
                return tuple(self._rollout(prompt, version, held, seed, i) for i in range(n))

    def _rollout(self, prompt: Prompt, version: WeightVersion, held: str, seed: int, sample: int) -> Rollout:
        tokens = answer(held, seed, sample, self.world.tokens)
        behaviour = Behaviour(
            stream="policy",
            decoder={"temperature": 1.0},
            oldest=version.number,
            newest=version.number,
            logps=(-1.0,) * len(tokens),
            digest=version.digest,
        )
        text = " ".join(map(str, tokens))
        return Rollout(prompt=prompt, response=Response(tokens=tokens, text=text), behaviour=behaviour)


class LightPerturber:
    """Inverts pictures."""

    def __init__(self, index: int, world: World) -> None:
        self.world = world
        self._beacon = Beacon(world.run_dir, "perturber", index)
        self._done = 0

    async def health(self) -> dict[str, Any]:
        return _alive(self._beacon, self._done)

    async def damage(self, media: Media, request: Any) -> Media:
        with self._beacon.at("busy"):
            await asyncio.sleep(self.world.damage_s)
            self._done += 1
            return replace(media, payload=255 - media.payload, parent=media.digest)


class LightScorer:
    """Samples, judges, damages and delivers, as the real one does."""

    def __init__(self, index: int, world: World) -> None:
        self.world = world
        self._beacon = Beacon(world.run_dir, "scorer", index)
        self._done = 0

    async def health(self) -> dict[str, Any]:
        return _alive(self._beacon, self._done)

    async def produce(self, lease: Lease, parcel: Sequence[Any], partners: Partners) -> Receipt | Fault:
        try:
            with self._beacon.at("busy"):
                reached = partners.within(10.0)
                position, _ = await opened(parcel)
                prompt, media = shown(position, self.world.image)
                drawn = await reached.generator.sample(prompt, media, 2, lease.seed)
                with self._beacon.at("judging"):
                    scores = await self._judged(position, drawn)
                self._done += 1
                [picture] = media.values()
                turn = lease.fence % len(reached.perturbers)
                damaged = await reached.perturbers[turn].damage(picture, None)
                group = built(lease, prompt, picture, damaged, drawn, scores)
                with self._beacon.at("delivering"):
                    return await reached.ledger.accept(group, group.dropped or "")
        except Exception as error:
            return named(error, "scorer").fault(lease.group)

    async def _judged(self, position: int, drawn: Sequence[Rollout]) -> list[Score]:
        await asyncio.sleep(self.world.score_s * (100 if self._beacon.order("slow") else 1))
        if position in self.world.crash:
            os._exit(42)
        if position in self.world.garbage:
            return [Score(value=None, missing="reward_garbage: got 'nan'") for _ in drawn]
        return [Score(value=float(sum(rollout.response.tokens))) for rollout in drawn]


def _alive(beacon: Beacon, done: int) -> dict[str, Any]:
    import ray

    node = ray.get_runtime_context().get_node_id()
    return {
        "alive": True,
        "in_flight": beacon.count("busy"),
        "progress": done,
        "pid": os.getpid(),
        "node": node,
    }


def shown(position: int, side: int) -> tuple[Prompt, dict[str, Media]]:
    """The prompt of a row, with a picture of its own."""
    shades = np.arange(side * side * 3, dtype=np.int64).reshape(side, side, 3)
    picture = Media(kind="image", space="rgb8", payload=((shades + position) % 256).astype(np.uint8))
    parts = (Part(kind="image", digest=picture.digest), Part(kind="text", text=f"picture {position}"))
    message = Message(role="user", parts=parts)
    prompt = Prompt(id=str(position), messages=(message,), gold={"position": position})
    return prompt, {picture.digest: picture}


def built(
    lease: Lease,
    prompt: Prompt,
    picture: Media,
    damaged: Media,
    drawn: Sequence[Rollout],
    scores: Sequence[Score],
) -> Group:
    """One comparison: better against worse, and better against itself under the damaged picture."""
    version = min(rollout.behaviour.oldest for rollout in drawn if rollout.behaviour)
    if any(score.value is None for score in scores):
        return Group(
            id=lease.group,
            fence=lease.fence,
            comparisons=(),
            media={},
            version=version,
            dropped="missing_score",
        )
    best, worst = sorted(range(2), key=lambda i: -(scores[i].value or 0.0))
    other = prompt.with_media({picture.digest: damaged.digest}, "inverted")
    cells = tuple(
        Candidate(
            prompt=shown_under,
            response=side,
            role=role,
            score=scores[(best, worst)[side]],
            behaviour=drawn[(best, worst)[side]].behaviour,
            sampled_under=prompt.digest,
        )
        for shown_under, side, role in ((0, 0, "w@x"), (0, 1, "l@x"), (1, 0, "w@m"))
    )
    comparison = Comparison(
        id=f"{lease.group}-0",
        prompts=(prompt, other),
        responses=(drawn[best].response, drawn[worst].response),
        candidates=cells,
        preferences=(
            Preference(name="text", winner=0, loser=1),
            Preference(name="media", winner=0, loser=2),
        ),
    )
    table = {picture.digest: picture, damaged.digest: damaged}
    return Group(
        id=lease.group,
        fence=lease.fence,
        comparisons=(comparison,),
        media=table,
        version=version,
        facts={"reward": float(scores[best].value or 0.0)},
    )


class LightPrompts(PromptStream):
    """The real cursor over rows that are their own position; no Ray Data."""

    def __init__(self, world: World) -> None:
        super().__init__(source=None, usable=range(world.prompts), epochs=1)  # type: ignore[arg-type]
        self._beacon = Beacon(world.run_dir, "prompts", 0)
        self._end = world.run_dir / ENOUGH

    async def next(self, limit: int) -> list[PromptItem]:
        if self._end.exists():
            limit = min(limit, int(self._end.read_text()) - self._cursor)
        return await super().next(limit) if limit > 0 else []

    def _stream(self, rank: int) -> Any:
        return ((position, {"position": position}) for position in range(rank, len(self._usable)))
