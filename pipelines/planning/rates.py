"""What the parts of a run take: measured in a run's folder, or given by hand."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

from pipelines.journal import read_lines
from pipelines.settings_errors import SettingsError

WARM_STEPS = 2  # first steps of a run, in which kernels are compiled and caches fill
UNFINISHED = ("end_of_run", "stage_over", "dead_letter")  # reasons of drops of groups that were under way
OF_THE_FLOW = ("stale", *UNFINISHED)  # the same that say nothing about the data
GENERATING = ("rollout/sample", "rollout/probe", "rollout/encode")  # stages that wait for a generator
DISTINCT = 0.05  # relative spread of the crowd from which on a line through it means something
Sums = Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Rates:
    """Means in seconds, for the sizes (model, prompts, answers, groups of a step) of the measured run.

    A generator with n groups inside takes latency_s + (n - 1) sample_s for each of them: one decodes in
    latency_s, and each further one makes all of them so much slower.
    """

    sample_s: float  # what one more group on a generator costs each group there
    latency_s: float  # of a group that has a generator for itself
    score_s: float = 0.0  # work of a scorer on a group, during which it does nothing else
    delay_s: float = 0.0  # of a group that occupies nobody: prompt, rewards that wait, damage, messages
    step_fixed_s: float = 0.0  # of a learner step, whatever the ranks
    step_work_s: float = 0.0  # of a learner step on one rank; ranks share it
    publish_s: float = 0.0  # of the learner, for each published version
    transfer_s: float = 0.0  # from publishing until the version has arrived; generators go on meanwhile
    adopt_s: float = 0.0  # during which a generator is closed for a new version, drained as it is
    kept: float = 1.0  # share of finished groups that have something to learn from
    spread: float = 0.5  # standard deviation of a group's sampling time over its mean
    group_mib: float = 0.0  # of a finished group in the buffer; 0: not known

    def __post_init__(self) -> None:
        for field in fields(self):
            value: Any = getattr(self, field.name)
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if not number or not 0 <= value < math.inf:
                raise ValueError(f"{field.name} is a number of at least 0, got {value!r}")
        if self.latency_s <= 0:
            raise ValueError(f"latency_s is above 0, got {self.latency_s:g}")
        if not 0 < self.kept <= 1:
            raise ValueError(f"kept is a share above 0, got {self.kept:g}")

    def step_s(self, ranks: int) -> float:
        """Of a learner step, without publishing."""
        return self.step_fixed_s + self.step_work_s / ranks

    def groups_per_s(self, inside: int) -> float:
        """Of a generator that always has so many groups inside."""
        return inside / (self.latency_s + (inside - 1) * self.sample_s)

    def to_json(self) -> dict[str, float]:
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Rates of a run, and what to know about them."""

    rates: Rates
    notes: tuple[str, ...] = ()


def amended(known: Rates | None, entries: Mapping[str, Any], where: str) -> Rates:
    """Rates with some entries given by hand. Raises SettingsError naming what is wrong."""
    names = [field.name for field in fields(Rates)]
    if unknown := [name for name in entries if name not in names]:
        raise SettingsError(f"{where}: unknown rate {unknown[0]!r}; known: {', '.join(names)}")
    try:
        return replace(known, **entries) if known else Rates(**entries)
    except TypeError:
        got = ", ".join(entries) or "none"
        raise SettingsError(f"{where}: expected at least sample_s and latency_s, got {got}") from None
    except ValueError as error:
        raise SettingsError(f"{where}: {error}") from None


def from_file(path: Path) -> Rates:
    """Rates from a JSON file: an object of them, or what `plumbline plan --json` wrote."""
    try:
        value: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SettingsError(f"{path}: expected a JSON file of rates: {error}") from None
    if not isinstance(value, dict):
        raise SettingsError(f"{path}: expected a JSON object with sample_s, latency_s and other rates")
    entries = cast("dict[str, Any]", value)
    return amended(None, entries.get("rates", entries), str(path))


def finished(report: Mapping[str, Any]) -> int:
    """Groups that generators are done with, by a ledger's report."""
    counts: Mapping[str, Any] = report.get("counts", {})
    dropped = sum(count for reason, count in counts.get("dropped", {}).items() if reason not in UNFINISHED)
    return dropped + sum(counts.get(place, 0) for place in ("trained", "sealed", "buffered"))


def measured(run_dir: Path) -> Measured:
    """The rates of a run, of its last attempt. Raises SettingsError where it is too short to tell."""
    events = list(read_lines(run_dir / "events.jsonl"))
    records = list(read_lines(run_dir / "metrics.jsonl"))
    attempt = max((line.get("attempt", 1) for line in records), default=1)
    starts = [place for place, event in enumerate(events) if event["event"] == "learner"]
    ranks = int(events[starts[-1]]["ranks"]) if starts else 1
    events = events[starts[-1] if starts else 0 :]
    steps = sorted(
        (line for line in records if line.get("attempt", 1) == attempt), key=lambda line: line["step"]
    )
    busy = [event for event in events if event["event"] == "busy"]
    done = _grown(event["finished"] for event in busy)
    if len(steps) < WARM_STEPS + 2 or not done:
        raise SettingsError(
            f"{run_dir}: rates are measured over at least {WARM_STEPS + 2} steps of an attempt that came to "
            f"an end, got {len(steps)} steps and {int(done)} groups; give rates by hand (--rate, --rates)"
        )
    notes: list[str] = []
    generator = _generator(_total(busy, "generators"), done, notes)
    score_s = _total(busy, "scorers").get("cpu_s", 0.0) / done
    return Measured(
        rates=Rates(
            **generator,
            score_s=score_s,
            delay_s=max(_other_s(events, steps[WARM_STEPS - 1]["step"]) - score_s, 0.0),
            **_learner(steps[WARM_STEPS - 1 :], ranks),
            **_syncs(events),
            kept=_kept(events, len(steps), notes),
        ),
        notes=tuple(notes),
    )


def _grown(values: Iterable[float]) -> float:
    """Growth of a count over pairs of (begin, end)."""
    given = list(values)
    return float(sum(end - begin for begin, end in zip(given[::2], given[1::2], strict=False)))


def _total(busy: Sequence[Mapping[str, Any]], role: str) -> dict[str, float]:
    """Growth of each sum over all members of a role; one that came in between began at nothing."""
    total: dict[str, float] = {}
    for begin, end in zip(busy[::2], busy[1::2], strict=False):
        for member, sums in end[role].items():
            before: Sums = begin[role].get(member, {})
            for name, value in sums.items():
                total[name] = total.get(name, 0.0) + value - before.get(name, 0.0)
    return total


def _generator(sums: Sums, done: float, notes: list[str]) -> dict[str, float]:
    """A line through (crowd, seconds) of all requests: what a lone one takes, and what one more costs."""
    count = sums.get("requests", 0.0)
    if not count:
        raise SettingsError("rates: no generator answered a request in this run; give rates by hand")
    crowd, seconds = sums["crowd"] / count, sums["seconds"] / count
    variance = max(sums["crowd_crowd"] / count - crowd**2, 0.0)
    slope = (sums["crowd_seconds"] / count - crowd * seconds) / variance if variance else 0.0
    if variance**0.5 < DISTINCT * crowd:  # one load tells one point of the line: assume that it is full
        slope = seconds / crowd
        notes.append(
            f"generators always held about {crowd:.1f} groups: what a lone group takes is a guess; "
            "measure a run with another load as well"
        )
    slope = min(max(slope, 0.0), seconds / crowd)  # a lone request takes some time, and company none away
    lone = seconds - slope * (crowd - 1)
    left = sums["seconds_seconds"] / count - seconds**2 - slope**2 * variance
    each = count / done  # requests of a group, one after the other
    return {
        "sample_s": slope * each,
        "latency_s": lone * each,
        "spread": min(max(left, 0.0) ** 0.5 / seconds / each**0.5, 2.0),
    }


def _other_s(events: Sequence[Mapping[str, Any]], warm: int) -> float:
    """Seconds of a group outside of generators, after the steps up to `warm`."""
    told = [
        e for e in events if e["event"] == "stage_seconds" and e.get("step", 0) > warm and "delivered" in e
    ]
    other = sum(
        seconds for event in told for name, seconds in event["seconds"].items() if name not in GENERATING
    )
    return other / max(sum(event["delivered"] for event in told), 1)


def _learner(steps: Sequence[Mapping[str, Any]], ranks: int) -> dict[str, float]:
    """Of the steps after the first one given, which only begins the clock."""
    work = statistics.fmean(step.get("seconds/forward_backward", 0.0) for step in steps[1:])
    published = [step["seconds/publish"] for step in steps[1:] if "seconds/publish" in step]
    whole = [
        after["time_s"] - before["time_s"] - after.get("seconds/wait", 0.0)
        for before, after in pairwise(steps)
    ]
    fixed = statistics.fmean(whole) - work - sum(published) / len(whole)
    return {
        "step_fixed_s": max(fixed, 0.0),
        "step_work_s": work * ranks,
        "publish_s": statistics.fmean(published) if published else 0.0,
    }


def _syncs(events: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Times of a version on its way and of a closed gate; the first version meets idle generators."""
    told = [event for event in events if "time_s" in event]
    offset = min((event["at"] - event["time_s"] for event in told), default=0.0)
    out = {e["version"]: offset + e["time_s"] for e in events if e["event"] == "published"}
    proofs = [
        e for e in events if e["event"] == "proof" and e["holds"] and e["version"] > min(out, default=0)
    ]
    ways = [
        proof["at"] - out[proof["version"]] - proof["seconds"] for proof in proofs if proof["version"] in out
    ]
    return {
        "adopt_s": statistics.median(proof["seconds"] for proof in proofs) if proofs else 0.0,
        # Those that came late waited until the generator had drained.
        "transfer_s": max(min(ways, default=0.0), 0.0),
    }


def _kept(events: Sequence[Mapping[str, Any]], steps: int, notes: list[str]) -> float:
    trained = sum(len(event["groups"]) for event in events if event["event"] == "seal")
    dropped = sum(event["event"] == "drop" and event["reason"] not in OF_THE_FLOW for event in events)
    if trained < 20:
        notes.append(f"only {trained} groups in {steps} steps: take the rates with caution")
    return trained / (trained + dropped) if trained else 1.0
