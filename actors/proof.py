"""The four parts that prove which weights a generator holds: pure comparisons, no engine.

1. `judge_bytes`: SHA-256, shape and dtype of every tensor received.
2. `judge_elements`: every element of every parameter was written, and what computes is what was sent.
3. `judge_first` and `judge_change`: canary log-probabilities against the learner's.
4. `judge_caches`: nothing computed with older weights was read.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.types import Proved, TensorDigest, WeightVersion

SMALLEST_FLOOR = {"float32": 1e-4}  # nats; what two correct implementations may differ by
HALF_PRECISION_FLOOR = 5e-2  # nats; 16-bit types, to be raised by what is measured at start
GROWTH = 1e-5  # rounding grows with the size of a summed log-probability
SHARP = 1e-4  # nats per token; closer than this, values agree as two float32 implementations do
AGREEMENT = 0.05  # nats per token; further apart, learner and generator do not compute the same model
NAMED = 8  # names listed in a message


@dataclass(frozen=True, kw_only=True)
class LoadReport:
    """What the engine's worker saw while weights entered. Filled by `actors.witness`."""

    elements: int  # of all parameters (full weights) or of the adapter
    written: int
    missing: Mapping[str, int] = field(default_factory=dict[str, int])  # parameter -> elements not written
    stale: tuple[str, ...] = ()  # parameters that compute something else than what was sent
    unread: tuple[str, ...] = ()  # parameters whose storage vLLM transformed beyond comparison


@dataclass(frozen=True, kw_only=True)
class CacheReading:
    """A greedy canary run again after a sync, beside what the engine reported about it."""

    cached_tokens: int  # prompt tokens taken from the prefix cache
    media: int  # images in the canary
    encoded: int  # images that went through the vision tower
    media_hits: int  # images whose pixels came from the multimodal cache


@dataclass(frozen=True, kw_only=True)
class Canaries:
    """Summed log-probability of each canary answer under one version, nats."""

    own: tuple[float, ...]  # the generator's
    learner: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Verdict:
    result: Proved
    detail: Mapping[str, Any] = field(default_factory=dict[str, Any])


def tensor_digest(array: NDArray[Any], dtype: str | None = None) -> TensorDigest:
    """Digest of a tensor's bytes in row-major order; `dtype` names what the bytes mean where numpy cannot."""
    sha256 = hashlib.sha256(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data).hexdigest()
    return TensorDigest(sha256=sha256, shape=tuple(array.shape), dtype=dtype or str(array.dtype))


def judge_bytes(version: WeightVersion, tensors: Mapping[str, NDArray[Any]]) -> Verdict:
    """Part 1. Names, shapes, dtypes and SHA-256 of what was received against the manifest."""
    problems: dict[str, str] = {}
    for name in sorted(set(version.manifest) ^ set(tensors)):
        problems[name] = "missing" if name in version.manifest else "not in the manifest"
    for name, expected in version.manifest.items():
        array = tensors.get(name)
        if array is None:
            continue
        carried = expected.dtype == "bfloat16" and array.dtype.itemsize == 2
        got = tensor_digest(array, "bfloat16" if carried else None)
        if tuple(got.shape) != tuple(expected.shape):
            problems[name] = f"shape {got.shape}, expected {tuple(expected.shape)}"
        elif got.dtype != expected.dtype:
            problems[name] = f"dtype {got.dtype}, expected {expected.dtype}"
        elif got.sha256 != expected.sha256:
            problems[name] = f"SHA-256 {got.sha256[:12]}, expected {expected.sha256[:12]}"
    detail: dict[str, Any] = {"tensors": len(tensors)}
    if problems:
        detail["problems"] = dict(list(problems.items())[:NAMED])
        return Verdict(result="failed", detail=detail)
    return Verdict(result="proved", detail=detail)


def judge_elements(report: LoadReport) -> Verdict:
    """Part 2. Every element written, and every readable parameter computes what was sent."""
    detail: dict[str, Any] = {"elements": report.elements, "written": report.written}
    if report.unread:
        detail["unread"] = list(report.unread[:NAMED])
    if report.missing:
        detail["missing"] = dict(list(report.missing.items())[:NAMED])
    if report.stale:
        detail["stale"] = list(report.stale[:NAMED])
    complete = report.written == report.elements and not report.missing and not report.stale
    return Verdict(result="proved" if complete and report.elements else "failed", detail=detail)


def smallest_floor(dtype: str) -> float:
    """Nats below which a canary cannot tell two versions apart, whatever was measured."""
    return SMALLEST_FLOOR.get(dtype, HALF_PRECISION_FLOOR)


def noise_floor(first: Canaries, repeat_noise: float, dtype: str) -> float:
    """Nats: largest difference of both sides on the same weights, plus what a repetition differs by."""
    return max(smallest_floor(dtype), largest_gap(first.own, first.learner) + repeat_noise)


def judge_first(now: Canaries, tokens: Sequence[int]) -> Verdict:
    """Part 3 for a generator's first version: there is no change yet, so the values themselves are compared.

    `tokens`: answer length of each canary. In 16 bits both sides' values differ by more than a learner step
    moves them, so such a version is usually "not distinguishable".
    """
    gaps = [abs(own - learner) for own, learner in zip(now.own, now.learner, strict=True)]
    detail: dict[str, Any] = {"largest_gap": largest_gap(now.own, now.learner)}
    bad = [i for i, (gap, n) in enumerate(zip(gaps, tokens, strict=True)) if not gap <= AGREEMENT * n]
    if bad:
        detail["canaries"] = {str(i): [now.own[i], now.learner[i]] for i in bad[:NAMED]}
        return Verdict(result="failed", detail=detail)
    sharp = all(gap <= SHARP * n for gap, n in zip(gaps, tokens, strict=True))
    return Verdict(result="proved" if sharp else "not distinguishable", detail=detail)


def judge_change(before: Canaries, now: Canaries, floor: float) -> Verdict:
    """Part 3. The generator moved as the learner did, from the last proved version to this one.

    A change has the noise of both its ends. "not distinguishable" where the learner itself moved by less.
    """
    bad: dict[str, list[float]] = {}
    moved = False
    differences: list[float] = []
    for i, (own0, own1, theirs0, theirs1) in enumerate(
        zip(before.own, now.own, before.learner, now.learner, strict=True)
    ):
        tolerance = 2 * floor + GROWTH * max(abs(own0), abs(own1))
        own, theirs = own1 - own0, theirs1 - theirs0
        differences.append(abs(own - theirs))
        if not (math.isfinite(own) and math.isfinite(theirs) and abs(own - theirs) <= tolerance):
            bad[str(i)] = [own, theirs]
        moved = moved or abs(theirs) > tolerance
    detail: dict[str, Any] = {
        "floor": floor,
        "largest_difference": largest_gap(differences, [0.0] * len(differences)),
        "largest_change": max(abs(b - a) for a, b in zip(before.learner, now.learner, strict=True)),
    }
    if bad:
        detail["canaries"] = dict(list(bad.items())[:NAMED])  # [generator's change, learner's change]
        return Verdict(result="failed", detail=detail)
    return Verdict(result="proved" if moved else "not distinguishable", detail=detail)


def judge_caches(reading: CacheReading) -> Verdict:
    """Part 4. The repeated canary was computed anew: no cached token, every image encoded again."""
    detail: dict[str, Any] = {
        "cached_tokens": reading.cached_tokens,
        "media": reading.media,
        "encoded": reading.encoded,
        "media_hits": reading.media_hits,
    }
    fresh = reading.cached_tokens == 0 and reading.encoded >= reading.media and reading.media_hits == 0
    return Verdict(result="proved" if fresh else "failed", detail=detail)


def largest_gap(a: Sequence[float], b: Sequence[float]) -> float:
    """Largest difference of two readings, nats; infinite where one is not a number."""
    gaps = [abs(x - y) for x, y in zip(a, b, strict=True)]
    return max(gaps) if all(map(math.isfinite, gaps)) else math.inf
