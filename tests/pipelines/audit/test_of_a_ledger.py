"""The log that a real ledger writes, whatever happens to it, holds; and what is taken out of it is missed."""

from __future__ import annotations

import random
from typing import Any

import pytest

from actors.ledger import Ledger
from pipelines.audit import audit
from tests.actors.ledger_calls import Clock, fault, group, now, sizes, waits

GROUPS, STEPS = 3, 8


class Play:
    """Attempts of a ledger under random deliveries, failures and deaths, with what each role would log."""

    def __init__(self, folder: Any, made: dict[str, Any], seed: int) -> None:
        self.folder, self.made, self.chance = folder, made, random.Random(seed)
        self.clock, self.cursor, self.attempt = Clock(), 0, 0
        self.events: list[dict[str, Any]] = []
        self.metrics: list[dict[str, Any]] = []
        self.saved: dict[str, Any] | None = None
        self.begin()

    def begin(self) -> None:
        self.attempt += 1
        self.ledger = Ledger("run", self.attempt, sizes(GROUPS, 1, 2, STEPS), max_tries=2, clock=self.clock)
        self.noted, self.step, self.leases = -1, 0, list[Any]()
        if self.saved is not None:
            now(self.ledger.restore(self.saved))
            self.step, self.cursor = self.saved["step"], self.saved["next_cursor"]
        if self.attempt > 1:
            self.cursor = self.saved["next_cursor"] if self.saved else 0
            dropped = {name: why for name, why, _ in self.saved["dropped"]} if self.saved else {}
            self.events.append(
                {"event": "resumed", "attempt": self.attempt, "step": self.step, "dropped": dropped}
            )

    def record(self) -> None:
        """The driver reads the ledger's events."""
        for event in now(self.ledger.events(self.noted)):
            self.noted = event["number"]
            self.events.append({**event, "at": float(len(self.events))})

    def run(self, deaths: int) -> None:
        while self.step < STEPS:
            self.act()
            if self.chance.random() < 0.3:
                self.record()
            if deaths and self.step and self.chance.random() < 0.05:
                deaths -= 1
                if self.chance.random() < 0.5:
                    self.record()  # else what was not read is lost with the ledger
                self.begin()
        now(self.ledger.release())
        self.record()
        self.folder.write_lines("events.jsonl", self.events)
        self.folder.write_lines("metrics.jsonl", self.metrics)
        self.folder.summary(status="finished", comparisons=now(self.ledger.counts()))
        trained = [(name, step) for name, step, _ in self.saved["trained"]] if self.saved else []
        self.folder.commit(self.step, trained, [])

    def act(self) -> None:
        choice = self.chance.random()
        if choice < 0.5 or not self.leases:
            lease = now(self.ledger.issue(f"p{self.cursor}", 0, self.cursor, 0))
            self.cursor += 1
            self.leases += [lease] if lease else []
        elif choice < 0.65:
            lease = self.leases.pop(self.chance.randrange(len(self.leases)))
            if now(self.ledger.fail(fault(lease), lease)) != "drop":
                self.leases.append(now(self.ledger.issue(f"p{lease.cursor}", 0, lease.cursor, 1)))
        else:
            lease = self.leases.pop(self.chance.randrange(len(self.leases)))
            tie = "tie" if self.chance.random() < 0.2 else None
            now(self.ledger.accept(group(lease, self.step, dropped=tie)))
        if not waits(self.ledger.pull(self.attempt, self.step + 1, 0, 2)):
            self.train()

    def train(self) -> None:
        step = self.step = self.step + 1
        for rank in (0, 1):
            shard = now(self.ledger.pull(self.attempt, step, rank, 2))
            rows = [
                self.made["row"](step, rank, 0, self.attempt)
                | {"group": g.id, "comparison": g.comparisons[0].id, "version_newest": None}
                for g in shard.groups
            ]
            self.folder.write_rows(rows, step, rank)
        now(self.ledger.trained(self.attempt, step, {}))
        line = self.made["metrics_of"](step, self.attempt) | {"comparisons": GROUPS}
        self.metrics.append(line)
        now(self.ledger.published(step))
        if step % 2 == 0:
            self.saved = now(self.ledger.snapshot(step))


@pytest.fixture
def empty(folder: Any) -> Any:
    for file in (folder.path / "comparisons").iterdir():
        file.unlink()
    return folder


@pytest.mark.parametrize("seed", range(12))
def test_whatever_happens_to_a_ledger_its_log_agrees(empty: Any, made: dict[str, Any], seed: int) -> None:
    play = Play(empty, made, seed)
    play.run(deaths=seed % 4)
    found = audit(empty.path)
    assert [f.line for f in found.findings if f.code in ("I1", "I2", "I4") and f.status != "holds"] == []
    assert found.counted["trained"] == GROUPS * STEPS


@pytest.mark.parametrize("kind", ["issue", "drop", "seal", "row"])
def test_what_is_taken_out_of_the_log_is_missed(empty: Any, made: dict[str, Any], kind: str) -> None:
    play = Play(empty, made, 5)
    play.run(deaths=0)
    assert not {f.code for f in audit(empty.path).violated} & {"I1", "I2"}
    if kind == "row":
        empty.write_rows(empty.rows(4)[1:], 4)
    else:
        events = empty.lines("events.jsonl")
        retried = {e["group"] for e in events if e["event"] == "fault"}
        taken = [e for e in events if e["event"] == kind and e.get("group") not in retried]
        events.remove(play.chance.choice(taken))
        empty.write_lines("events.jsonl", events)
    assert {f.code for f in audit(empty.path).violated} & {"I1", "I2"}
