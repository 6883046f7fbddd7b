"""Ratios and differences of servers with intervals: blocks are resampled, since what disturbs one request
disturbs its neighbours as well."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.serving.overhead.load import Block, Cell
from benchmarks.serving.overhead.servers import BACKGROUND, BARE, OURS, ROLES, SERVE, SERVERS
from pipelines.evaluation.bootstrap import Interval, interval

RESAMPLES = 1000


@dataclass(kw_only=True)
class Arm:
    """All blocks of one server under one load."""

    blocks: list[Block] = field(default_factory=list[Block])
    cpu: Counter[str] = field(default_factory=Counter[str])  # microseconds by role, over all blocks
    inside: float = 0.0  # seconds that the requests spent inside our gateway

    @property
    def answers(self) -> int:
        return sum(len(block.latencies) for block in self.blocks)


@dataclass(frozen=True, kw_only=True)
class Compared:
    """An estimate and its 95% interval."""

    value: float
    interval: Interval | None


def shown(one: Compared | None, scale: float = 1.0, digits: int = 2) -> str:
    if one is None:
        return ""
    text = f"{one.value * scale:.{digits}f}"
    if one.interval is None:
        return text
    low, high = (f"{end * scale:.{digits}f}" for end in one.interval)
    return f"{text} [{low}, {high}]"


def per_second(blocks: Sequence[Block]) -> float:
    """Answers per second of load."""
    return sum(len(block.latencies) for block in blocks) / sum(block.seconds for block in blocks)


def throughput_ratio(base: Arm, arm: Arm) -> Compared:
    """Answers per second of `arm` over those of `base`."""
    return _compare(base, arm, lambda a, b: per_second(b) / per_second(a))


def added(base: Arm, arm: Arm, quantile: float, field_name: str = "latencies") -> Compared:
    """The arm's minus the base's, at a quantile of the requests' seconds."""

    def at(blocks: Sequence[Block]) -> float:
        return float(np.quantile([s for block in blocks for s in getattr(block, field_name)], quantile))

    return _compare(base, arm, lambda a, b: at(b) - at(a))


def _compare(base: Arm, arm: Arm, measure: Callable[[list[Block], list[Block]], float]) -> Compared:
    """Block i of one server is drawn together with block i of the other: they were neighbours in time."""
    count = len(base.blocks)
    drawn: NDArray[np.int64] = np.random.default_rng(0).integers(count, size=(RESAMPLES, count))
    values = [measure([base.blocks[i] for i in row], [arm.blocks[i] for i in row]) for row in drawn]
    value = measure(base.blocks, arm.blocks)
    return Compared(value=value, interval=interval(value, np.array(values)) if count > 1 else None)


def rows(measured: dict[Cell, dict[str, Arm]]) -> list[dict[str, Any]]:
    """What the table shows: a row per kind of load and server, each beside vLLM's own."""
    return [_row(cell, name, arms) for cell, arms in measured.items() for name in SERVERS]


def _row(cell: Cell, name: str, arms: dict[str, Arm]) -> dict[str, Any]:
    arm, bare, serve = arms[name], arms[BARE], arms[SERVE]
    closed, beside = cell.at_once is not None, name != BARE
    return {
        "load": cell.load,
        "asked": cell.asked,
        "server": name,
        "answers": arm.answers,
        "per_second": per_second(arm.blocks),
        "ratio": throughput_ratio(bare, arm) if closed and beside else None,
        "ratio_to_serve": throughput_ratio(serve, arm) if closed and name == OURS else None,
        "p50_s": added(bare, arm, 0.5) if beside else None,
        "p99_s": added(bare, arm, 0.99) if beside else None,
        "first_p50_s": added(bare, arm, 0.5, "firsts") if beside and cell.stream else None,
    }


def table(found: list[dict[str, Any]]) -> str:
    """Markdown; the milliseconds are those that a server adds to vLLM's own."""
    heads = ["load", "asked", "server", "answers/s", f"to {BARE}", f"to {SERVE}"]
    heads += ["p50, ms", "p99, ms", "first byte, ms", "answers"]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for row in found:
        ratios = [shown(row[name]) for name in ("ratio", "ratio_to_serve")]
        seconds = [shown(row[name], 1000, 1) for name in ("p50_s", "p99_s", "first_p50_s")]
        named = [row["load"], row["asked"], row["server"], f"{row['per_second']:.1f}"]
        lines.append("| " + " | ".join([*named, *ratios, *seconds, str(row["answers"])]) + " |")
    return "\n".join(lines)


def spent(measured: dict[Cell, dict[str, Arm]]) -> dict[str, dict[str, float]]:
    """Where the time goes: kind of request and server -> milliseconds of CPU per answer by role, and, for one
    request at a time, those of the clock inside and outside our gateway."""
    found: dict[str, dict[str, float]] = {}
    for alone, name in product((cell for cell in measured if cell.at_once == 1), SERVERS):
        some = [
            arms[name] for cell, arms in measured.items() if replace(cell, at_once=alone.at_once) == alone
        ]
        answers, cpu = sum(arm.answers for arm in some), sum((arm.cpu for arm in some), Counter[str]())
        column = {role: cpu[role] / 1000 / answers for role in (*ROLES, BACKGROUND) if cpu[role]}
        found[f"{alone.asked}, {name}"] = column | _clock(measured[alone][name])
    return found


def _clock(arm: Arm) -> dict[str, float]:
    whole = 1000 * sum(sum(block.latencies) for block in arm.blocks) / arm.answers
    inside = 1000 * arm.inside / arm.answers
    if not inside:
        return {"clock": whole}
    return {"clock": whole, "... inside the gateway": inside, "... before and after it": whole - inside}


def spent_table(found: dict[str, dict[str, float]]) -> str:
    """Markdown; milliseconds per answer."""
    names = dict.fromkeys(name for column in found.values() for name in column)
    lines = ["| ms per answer | " + " | ".join(found) + " |", "|---|" + "---|" * len(found)]
    for name in names:
        values = [f"{column[name]:.2f}" if name in column else "" for column in found.values()]
        lines.append(f"| {name} | " + " | ".join(values) + " |")
    return "\n".join(lines)
