"""I5 no invented values and I8 finite: what is missing is said to be missing, and all else is a number."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np

from pipelines.audit.evidence import Evidence, Outcome

_SIDES: Final = ("chosen", "rejected")
_COLUMNS: Final = (
    *("comparison", "margin_text", "margin_media", "margins"),
    *(f"{what}_{side}" for what in ("score", "missing", "parts") for side in _SIDES),
)
_CHUNK: Final = 1 << 24  # elements looked at together
_FLOATS: Final = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}  # safetensors name -> numpy
_BF16_EXPONENT: Final = np.uint16(0x7F80)  # all its bits set: infinite, or not a number


def no_invented_values(evidence: Evidence) -> Outcome:
    """I5. A score is a finite number, or missing with a reason and then without any number."""
    outcome, missing = Outcome(), 0
    for row in evidence.read(_COLUMNS):
        missing += sum(bool(row.get(f"missing_{side}")) for side in _SIDES)
        where = f"comparison {row['comparison']} of step {row['step']}"
        outcome.problems += (f"{where}: {what}" for what in _row(row))
    outcome.counted = f"scores of {len(evidence.rows)} comparisons, {missing} missing with a reason"
    if evidence.rows and "missing_chosen" not in evidence.columns:
        outcome.unknown = "the log does not say why scores are missing"
    return outcome


def _row(row: Mapping[str, Any]) -> Iterator[str]:
    for side in _SIDES:
        score, why = row.get(f"score_{side}"), row.get(f"missing_{side}")
        if score is not None and why:
            yield f"the {side} answer has the score {score}, but its reward was missing: {why}"
        if score is not None and not math.isfinite(score):
            yield f"the {side} answer has the score {score}"
        # parts are there exactly where somebody judged: neither a score nor a reason is a gap
        if score is None and not why and "missing_chosen" in row and row.get(f"parts_{side}") is not None:
            yield f"the {side} answer was judged and has neither a score nor a reason"
    for name in ("margin_text", "margin_media"):
        if (value := row.get(name)) is not None and not math.isfinite(value):
            yield f"{name} is {value}"
    for name in ("margins", "parts_chosen", "parts_rejected"):
        for key, value in json.loads(row.get(name) or "{}").items():
            if isinstance(value, float) and not math.isfinite(value):
                yield f"{name}: {key} is {value}"


def finite(evidence: Evidence) -> Outcome:
    """I8. Every metric and every tensor of the newest checkpoint is finite; every skipped step was counted.

    Optimizer states lie in a format that only its own library reads; they are not looked into.
    """
    skipped = int(max((line.get("skipped_steps", 0) for line in evidence.steps), default=0))
    outcome = Outcome(f"metrics of {len(evidence.metrics)} steps, {skipped} skipped")
    for line in evidence.metrics:
        odd = [key for key, value in line.items() if isinstance(value, float) and not math.isfinite(value)]
        outcome.problems += [f"step {line['step']}: {key} is {line[key]}" for key in odd]
    outcome.problems += _uncounted(evidence.steps)
    if not evidence.checkpoints:
        outcome.unknown = "there is no checkpoint whose tensors could be looked at"
        return outcome
    files = sorted(evidence.checkpoints[0].rglob("*.safetensors"))
    tensors = 0
    for file in files:
        try:
            for name, values in _tensors(file):
                tensors += 1
                if bad := _not_finite(values):
                    where = file.relative_to(evidence.run_dir)
                    outcome.problems.append(f"{where}: {bad} elements of {name} are not finite")
        except (OSError, ValueError, KeyError, struct.error):
            continue  # a file that is damaged is named by the invariant of checkpoints
    outcome.counted += f"; {tensors} tensors of {evidence.checkpoints[0].name}"
    return outcome


def _uncounted(steps: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """Steps whose loss or gradient was not finite (such numbers are left out of the metrics) and that the
    count of skipped steps does not show."""
    before = 0.0
    for line in steps:
        now = float(line.get("skipped_steps", before))
        broken = "lr" in line and ("grad_norm" not in line or "loss" not in line)
        if (broken or line.get("bad_numbers")) and now <= before:
            yield f"step {line['step']} was not finite and is not among the skipped steps"
        before = now


def _tensors(file: Path) -> Iterator[tuple[str, np.ndarray[Any, Any]]]:
    """Floating-point tensors of a safetensors file, flat and mapped from disk; bfloat16 as its bits."""
    with file.open("rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        header: dict[str, Any] = json.loads(stream.read(length))
    for name, entry in header.items():
        kind = _FLOATS.get(entry.get("dtype", ""))
        if name == "__metadata__" or kind is None:
            continue
        begin, end = entry["data_offsets"]
        count = (end - begin) // np.dtype(kind).itemsize
        if count:
            yield name, np.memmap(file, kind, "r", offset=8 + length + begin, shape=(count,))


def _not_finite(values: np.ndarray[Any, Any]) -> int:
    found = 0
    for start in range(0, len(values), _CHUNK):
        part = values[start : start + _CHUNK]
        bad = (part & _BF16_EXPONENT) == _BF16_EXPONENT if part.dtype == np.uint16 else ~np.isfinite(part)
        found += int(bad.sum())
    return found
