"""Later uses: comparisons that are trained on again, in later steps of their stage.

A *ticket* is (group, index of the comparison, use). The first use of a comparison settles with its group;
the tickets here are those of later uses:

- `uses` = n: uses 2 to n are minted when the group is first trained, and one of them is due in each of the
  following steps;
- `replay` = r: uses above n are minted by a seeded draw from what the stage has trained before, so that they
  make up r of a step.

    minted = open + trained + dropped(reason) + released

No comparison comes up twice in one step. What is due is a function of what was trained and of the bodies in
the pool, so that a resumed run draws as the first one would have.
"""

from __future__ import annotations

import io
import json
import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import numpy as np
from pydantic import TypeAdapter

from pipelines.admission import Stretch
from pipelines.rollout import derived_seed
from pipelines.types import Comparison, Group, Media, Op

Key = tuple[str, int]  # group id, index of the comparison
Ticket = tuple[str, int, int]  # and the use, from 2 on
BODIES = "replay.npz"  # the pool in a checkpoint, and its key in a snapshot of the ledger


@dataclass
class Tickets:
    """`seed`: of the run; draws depend on it and on the step."""

    seed: int
    open: set[Ticket] = field(default_factory=set[Ticket])
    sealed: list[Ticket] = field(default_factory=list[Ticket])  # of the step under training, in order
    trained: dict[Ticket, int] = field(default_factory=dict[Ticket, int])  # step
    dropped: Counter[str] = field(default_factory=Counter[str])
    pool: dict[str, Group] = field(default_factory=dict[str, Group])  # bodies, oldest first
    used: dict[Key, int] = field(default_factory=dict[Key, int])  # of the pool's comparisons: uses trained
    minted: int = 0
    released: int = 0

    def seal(self, step: int, first: int, stretch: Stretch) -> None:
        """Fix the later uses of `step`, beside `first` comparisons that come up for the first time."""
        due = [key for key, used in self.used.items() if used < stretch.uses]
        idle = [key for key, used in self.used.items() if used >= stretch.uses]
        wanted = round(stretch.replay / (1 - stretch.replay) * (first + len(due)))
        chance = random.Random(derived_seed(self.seed, "replay", step))
        drawn = sorted(chance.sample(idle, min(wanted, len(idle))))
        self._mint((*key, self.used[key] + 1) for key in drawn)
        self.sealed = [(*key, self.used[key] + 1) for key in (*due, *drawn)]

    def groups(self) -> list[Group]:
        """The sealed tickets' comparisons, as parts of their groups."""
        parts: dict[tuple[str, int], list[int]] = {}
        for name, index, use in self.sealed:
            parts.setdefault((name, use), []).append(index)
        made: list[Group] = []
        for (name, use), indices in parts.items():
            whole = self.pool[name]
            made.append(
                replace(whole, comparisons=tuple(whole.comparisons[i] for i in sorted(indices)), use=use)
            )
        return made

    def train(
        self, step: int, groups: Iterable[Group], stretch: Stretch, kept: int, over: str | None
    ) -> None:
        """Step `step` is in the weights, with `groups` for the first time. At most `kept` groups stay in the
        pool for replay. `over`: the reason to drop what is left when the step ends a stage, else None."""
        for name, index, use in self.sealed:
            self.open.remove((name, index, use))
            self.trained[name, index, use] = step
            self.used[name, index] = use
        self.sealed.clear()
        if stretch.reuses:
            for group in groups:
                self._keep(group, stretch.uses)
            done = [name for name in self.pool if not self._busy(name, stretch.uses)]
            self._forget(done[: max(0, len(self.pool) - kept)] if stretch.replay else done)
        if over is not None:
            self.dropped.update({over: len(self.open)} if self.open else {})
            self.open.clear()
            self._forget(list(self.pool))

    def release(self) -> None:
        self.released += len(self.open)
        self.open.clear()
        self.sealed.clear()

    def counts(self) -> dict[str, Any]:
        return {
            "minted": self.minted,
            "open": len(self.open),
            "trained": len(self.trained),
            "dropped": dict(self.dropped),
            "released": self.released,
        }

    def check(self) -> None:
        """Assert conservation, that nothing is trained twice, and that no step holds a comparison twice."""
        settled = len(self.trained) + self.dropped.total() + self.released
        assert self.minted == len(self.open) + settled, self.counts()
        assert not self.open & self.trained.keys(), "a ticket is open and trained"
        assert self.open >= set(self.sealed), "a sealed ticket is not open"
        places = Counter((step, name, index) for (name, index, _), step in self.trained.items())
        assert max(places.values(), default=1) == 1, "a comparison was trained twice in one step"

    def logical(self, step: int) -> dict[str, list[int]]:
        """Ticket -> (step, position among the later uses of it), up to `step`."""
        place: Counter[int] = Counter()
        found: dict[str, list[int]] = {}
        for (
            name,
            index,
            use,
        ), at in self.trained.items():  # of each step in the order in which it was sealed
            if at <= step:
                found[f"{name}/{index}/{use}"] = [at, place[at]]
                place[at] += 1
        return found

    def snapshot(self, step: int) -> dict[str, Any]:
        """What a resume must know beside the bodies; JSON-able. Draws of a sealed step are made again."""
        return {
            "trained": [[*ticket, at] for ticket, at in self.trained.items() if at <= step],
            "dropped": dict(self.dropped),
            "pool": list(self.pool),
        }

    def restore(self, snapshot: Mapping[str, Any], bodies: bytes, uses: int) -> None:
        """`uses`: of the stage that goes on. Raises ValueError when the bodies are not those of the pool."""
        self.trained = {(name, index, use): at for name, index, use, at in snapshot["trained"]}
        self.dropped = Counter(snapshot["dropped"])
        self.pool = {group.id: group for group in decode(bodies)} if bodies else {}
        if list(self.pool) != snapshot["pool"]:
            raise ValueError(
                f"the checkpoint's {BODIES} holds {len(self.pool)} groups, its manifest names "
                f"{len(snapshot['pool'])}; resume from another checkpoint"
            )
        later = Counter((name, index) for name, index, _ in self.trained)
        self.used = {key: 1 + later[key] for group in self.pool.values() for key in _keys(group)}
        self.open = {(*key, use) for key, used in self.used.items() for use in range(used + 1, uses + 1)}
        self.minted = len(self.open) + len(self.trained) + self.dropped.total()

    def bodies(self) -> bytes:
        """The pool as one .npz; nothing when it is empty."""
        return encode(tuple(self.pool.values())) if self.pool else b""

    # --- inside ------------------------------------------------------------------------------------------

    def _keep(self, group: Group, uses: int) -> None:
        self.pool[group.id] = group
        self.used.update(dict.fromkeys(_keys(group), 1))
        self._mint((*key, use) for key in _keys(group) for use in range(2, uses + 1))

    def _busy(self, name: str, uses: int) -> bool:
        return any(self.used[key] < uses for key in _keys(self.pool[name]))

    def _forget(self, names: Iterable[str]) -> None:
        for name in names:
            for key in _keys(self.pool.pop(name)):
                del self.used[key]

    def _mint(self, tickets: Iterable[Ticket]) -> None:
        new = set(tickets)
        self.open |= new
        self.minted += len(new)


def _keys(group: Group) -> list[Key]:
    return [(group.id, index) for index in range(len(group.comparisons))]


# --- bodies in a checkpoint ------------------------------------------------------------------------------


@cache
def _codec(kind: Any) -> Any:
    return TypeAdapter(kind)


def encode(groups: Sequence[Group]) -> bytes:
    """Groups as one .npz without pickle: their JSON, and every media array once, by digest.

    Rows may hold anything, so what JSON cannot say in a prompt's `gold` becomes text; no objective reads it.
    """
    media = {digest: item for group in groups for digest, item in group.media.items()}
    records = [
        {
            "id": group.id,
            "fence": group.fence,
            "version": group.version,
            "comparisons": _plain(tuple[Comparison, ...], group.comparisons),
            "media": list(group.media),
        }
        for group in groups
    ]
    text = json.dumps(
        {"groups": records, "media": {digest: _about(item) for digest, item in media.items()}}
    ).encode()
    arrays: dict[str, Any] = {digest: item.payload for digest, item in media.items()}
    file = io.BytesIO()
    np.savez(file, json=np.frombuffer(text, np.uint8), **arrays)
    return file.getvalue()


def _about(media: Media) -> dict[str, Any]:
    op = _plain(Op | None, media.op)
    return {"kind": media.kind, "space": media.space, "parent": media.parent, "op": op}


def decode(content: bytes) -> list[Group]:
    """What `encode` wrote."""
    with np.load(io.BytesIO(content), allow_pickle=False) as stored:
        written: dict[str, Any] = json.loads(stored["json"].tobytes())
        media = {
            digest: Media(
                kind=about["kind"],
                space=about["space"],
                payload=stored[digest],
                parent=about["parent"],
                op=_codec(Op | None).validate_python(about["op"]),
            )
            for digest, about in written["media"].items()
        }
    return [
        Group(
            id=record["id"],
            fence=record["fence"],
            version=record["version"],
            comparisons=_codec(tuple[Comparison, ...]).validate_python(record["comparisons"]),
            media={digest: media[digest] for digest in record["media"]},
        )
        for record in written["groups"]
    ]


def _plain(kind: Any, value: Any) -> Any:
    return _codec(kind).dump_python(value, mode="json", fallback=str)
