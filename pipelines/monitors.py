"""Monitors of a run's health: pure functions of the learner's step metrics, with thresholds.

A monitor compares the mean of the newest `window` steps with a threshold, or with the mean of the first
`window` steps. It raises one alarm when it crosses its threshold, and another only after it came back.

| monitor | value |
|---|---|
| likelihood_displacement | nats per token that chosen answers fell, if rejected ones fell too (2410.08847) |
| length_bias | correlation of reward and length among the answers to one prompt |
| length_gap | (chosen - rejected) / mean length, in tokens |
| reward_drop | fall of the mean reward, in early spreads between best and worst answer |
| reward_spread | spread between best and worst answer over the early one |
| ties | share of delivered groups whose answers all score the same |
| rollout_gap | nats per token between sampler and learner on the same tokens |
| skipped_steps | share of steps skipped because something was not finite |
| dead_letters | dead-lettered groups over those plus the trained ones |
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from pipelines.settings import MonitorSettings

Line = Mapping[str, Any]  # one of metrics.jsonl
Lines = Sequence[Line]


@dataclass(frozen=True, kw_only=True)
class Alarm:
    monitor: str
    value: float
    threshold: float
    step: int
    advice: str

    @property
    def text(self) -> str:
        measured = f"{self.monitor} is {self.value:.3g}, threshold {self.threshold:g}"
        return f"step {self.step}: {measured}: {self.advice}"


@dataclass(frozen=True, kw_only=True)
class Monitor:
    """`value` (first steps, newest steps) -> a number, or None when the metrics do not tell."""

    name: str  # also the key of its threshold in `MonitorSettings`
    value: Callable[[Lines, Lines], float | None]
    advice: str
    drift: bool = False  # compares with the first steps, so it starts when those are not among the newest
    below: bool = False  # alarms under its threshold


class Monitors:
    """Sees the metrics of one step after the other; of a step seen again, after a rollback, the last
    counts."""

    def __init__(self, settings: MonitorSettings) -> None:
        self._settings = settings
        self._first: list[Line] = []
        self._newest: deque[Line] = deque(maxlen=settings.window)
        self._raised: set[str] = set()

    def see(self, metrics: Line) -> list[Alarm]:
        """The alarms that this step raises. `metrics` must hold "step"."""
        step, window = int(metrics["step"]), self._settings.window
        self._roll_back(step)
        if len(self._first) < window:
            self._first.append(metrics)
        self._newest.append(metrics)
        if len(self._newest) < window:
            return []
        apart = int(self._newest[0]["step"]) > int(self._first[-1]["step"])
        return [
            alarm
            for monitor in MONITORS
            if (apart or not monitor.drift) and (alarm := self._judge(monitor, step)) is not None
        ]

    def _roll_back(self, step: int) -> None:
        self._first = [line for line in self._first if line["step"] < step]
        while self._newest and self._newest[-1]["step"] >= step:
            self._newest.pop()

    def _judge(self, monitor: Monitor, step: int) -> Alarm | None:
        threshold: float | None = getattr(self._settings, monitor.name)
        value = monitor.value(self._first, list(self._newest)) if threshold is not None else None
        if threshold is None or value is None:
            return None
        if value >= threshold if monitor.below else value <= threshold:
            self._raised.discard(monitor.name)
            return None
        if monitor.name in self._raised:
            return None
        self._raised.add(monitor.name)
        return Alarm(
            monitor=monitor.name,
            value=round(value, 6),
            threshold=threshold,
            step=step,
            advice=monitor.advice,
        )


def mean(lines: Iterable[Line], key: str) -> float | None:
    """Over the steps that have it; None unless at least half of them do."""
    lines = list(lines)
    values = [float(line[key]) for line in lines if isinstance(line.get(key), int | float)]
    values = [value for value in values if math.isfinite(value)]
    return math.fsum(values) / len(values) if values and 2 * len(values) >= len(lines) else None


def displacement(first: Lines, newest: Lines) -> float | None:
    """Fall of the chosen answers' log-probability, nats per token; 0 where the rejected ones did not fall."""
    falls: list[float] = []
    for side in ("chosen", "rejected"):
        then, now = _per_token(first, side), _per_token(newest, side)
        if then is None or now is None:
            return None
        falls.append(then - now)
    return falls[0] if falls[1] > 0 else 0.0


def _per_token(lines: Lines, side: str) -> float | None:
    logp, length = mean(lines, f"logp_{side}"), mean(lines, f"length_{side}")
    return logp / length if logp is not None and length else None


def length_correlation(first: Lines, newest: Lines) -> float | None:
    """Pooled over groups, within them: mean covariance / sqrt(mean variance x mean variance)."""
    del first
    together = mean(newest, "reward_length_covariance")
    rewards, lengths = mean(newest, "reward_variance"), mean(newest, "length_variance")
    if together is None or not rewards or not lengths:
        return None
    return together / math.sqrt(rewards * lengths)


def length_gap(first: Lines, newest: Lines) -> float | None:
    del first
    chosen, rejected = mean(newest, "length_chosen"), mean(newest, "length_rejected")
    if chosen is None or rejected is None or not chosen + rejected:
        return None
    return 2 * (chosen - rejected) / (chosen + rejected)


def reward_drop(first: Lines, newest: Lines) -> float | None:
    then, now, spread = mean(first, "reward"), mean(newest, "reward"), _spread(first)
    return (then - now) / spread if then is not None and now is not None and spread else None


def reward_spread(first: Lines, newest: Lines) -> float | None:
    then, now = _spread(first), _spread(newest)
    return now / then if then and now is not None else None


def _spread(lines: Lines) -> float | None:
    best, worst = mean(lines, "reward_best"), mean(lines, "reward_worst")
    return best - worst if best is not None and worst is not None else None


def ties(first: Lines, newest: Lines) -> float | None:
    del first
    return mean(newest, "ties")


def rollout_gap(first: Lines, newest: Lines) -> float | None:
    del first
    return mean(newest, "rollout_gap")


def skipped(first: Lines, newest: Lines) -> float | None:
    """Share of the newest steps that were skipped: the metric counts all since the start of the run."""
    del first
    counts = [float(line["skipped_steps"]) for line in newest if "skipped_steps" in line]
    return (counts[-1] - counts[0]) / (len(counts) - 1) if len(counts) > 1 else None


def dead_letters(first: Lines, newest: Lines) -> float | None:
    del first
    dead, trained = mean(newest, "dead_letters"), mean(newest, "groups")
    return dead / (dead + trained) if dead is not None and trained is not None and dead + trained else None


MONITORS: Final = (
    Monitor(
        name="likelihood_displacement",
        value=displacement,
        drift=True,
        advice="chosen and rejected answers both become less likely; lower learner.lr, raise beta, or use a "
        "recipe with a likelihood term on the chosen answer (rpo_sft)",
    ),
    Monitor(
        name="length_bias",
        value=length_correlation,
        advice="the reward follows length; correct the reward, or use a length-normalised recipe (simpo, "
        "ln_dpo, ld_dpo)",
    ),
    Monitor(
        name="length_gap",
        value=length_gap,
        advice="chosen answers are much longer than rejected ones; balance the pairs, or use a "
        "length-normalised recipe (simpo, ln_dpo, ld_dpo)",
    ),
    Monitor(
        name="reward_drop",
        value=reward_drop,
        drift=True,
        advice="the policy's own reward fell; lower learner.lr, raise beta, or go back to an earlier "
        "checkpoint",
    ),
    Monitor(
        name="reward_spread",
        value=reward_spread,
        drift=True,
        below=True,
        advice="answers to a prompt have become alike; raise rollout.temperature or stop here",
    ),
    Monitor(
        name="ties",
        value=ties,
        advice="hardly any group has a preference left; use more samples, a higher temperature or harder "
        "prompts",
    ),
    Monitor(
        name="rollout_gap",
        value=rollout_gap,
        advice="generator and learner disagree about the same tokens; lower sync.max_lag and compare their "
        "dtypes",
    ),
    Monitor(
        name="skipped_steps",
        value=skipped,
        advice="losses or gradients are not finite; lower learner.lr and look at the comparisons that the "
        "learner's log names",
    ),
    Monitor(
        name="dead_letters",
        value=dead_letters,
        advice="prompts are given up after every retry failed; events.jsonl names them and their faults",
    ),
)
