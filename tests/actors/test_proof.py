"""The comparisons behind a proof, without an engine."""

from __future__ import annotations

import hashlib
import math
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.proof import (
    CacheReading,
    Canaries,
    LoadReport,
    judge_bytes,
    judge_caches,
    judge_change,
    judge_elements,
    judge_first,
    largest_gap,
    noise_floor,
    tensor_digest,
)
from pipelines.types import TensorDigest, WeightVersion


def version(manifest: dict[str, TensorDigest]) -> WeightVersion:
    return WeightVersion(attempt=1, number=1, step=1, stream="policy", manifest=manifest, canary=(0.0,))


ARRAYS = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(2, np.float32)}
MANIFEST = {name: tensor_digest(array) for name, array in ARRAYS.items()}


def test_a_digest_is_sha256_of_the_bytes_in_row_major_order():
    array = np.asarray([[1.0, 2.0], [3.0, 4.0]], np.float32)
    expected = hashlib.sha256(struct.pack("<4f", 1.0, 2.0, 3.0, 4.0)).hexdigest()
    assert tensor_digest(array) == TensorDigest(sha256=expected, shape=(2, 2), dtype="float32")
    transposed = np.asfortranarray(array)
    assert tensor_digest(transposed).sha256 == expected


def test_a_digest_works_for_scalars_and_empty_tensors():
    assert tensor_digest(np.float32(1.0).reshape(())).shape == ()
    assert tensor_digest(np.zeros((0, 3), np.float32)).sha256 == hashlib.sha256(b"").hexdigest()


def test_bytes_as_published_are_proved():
    assert judge_bytes(version(MANIFEST), ARRAYS).result == "proved"


@pytest.mark.parametrize(
    ("tensors", "name", "message"),
    [
        ({"a": ARRAYS["a"]}, "b", "missing"),
        ({**ARRAYS, "c": ARRAYS["b"]}, "c", "not in the manifest"),
        ({**ARRAYS, "a": ARRAYS["a"].T.copy()}, "a", "shape (3, 2), expected (2, 3)"),
        ({**ARRAYS, "a": ARRAYS["a"].astype(np.float64)}, "a", "dtype float64, expected float32"),
        ({**ARRAYS, "b": np.asarray([1.0, 1.0000001], np.float32)}, "b", "SHA-256"),
    ],
)
def test_anything_else_fails_and_names_the_tensor(tensors: dict, name: str, message: str):
    verdict = judge_bytes(version(MANIFEST), tensors)
    assert verdict.result == "failed"
    assert message in verdict.detail["problems"][name]


def test_bfloat16_travels_as_its_16_bits():
    bits = np.asarray([0x3F80, 0x4000], np.uint16)  # 1.0 and 2.0
    manifest = {"a": tensor_digest(bits, "bfloat16")}
    assert judge_bytes(version(manifest), {"a": bits}).result == "proved"
    assert judge_bytes(version(manifest), {"a": bits + np.uint16(1)}).result == "failed"


@pytest.mark.parametrize(
    ("report", "result"),
    [
        (LoadReport(elements=4, written=4), "proved"),
        (LoadReport(elements=4, written=4, unread=("w",)), "proved"),
        (LoadReport(elements=4, written=3, missing={"w": 1}), "failed"),
        (LoadReport(elements=4, written=4, stale=("w",)), "failed"),
        (LoadReport(elements=0, written=0), "failed"),  # a worker that saw nothing proves nothing
    ],
)
def test_elements(report: LoadReport, result: str):
    assert judge_elements(report).result == result


def test_the_change_is_compared_not_the_value():
    """An offset of 1 nat between both sides, as half precision may have, cancels in the change."""
    before = Canaries(own=(-10.0,), learner=(-11.0,))
    assert judge_change(before, Canaries(own=(-9.5,), learner=(-10.5,)), floor=0.01).result == "proved"
    assert judge_change(before, Canaries(own=(-10.0,), learner=(-10.5,)), floor=0.01).result == "failed"


def test_a_change_below_the_floor_is_never_called_proved():
    before = Canaries(own=(-10.0, -5.0), learner=(-10.0, -5.0))
    verdict = judge_change(before, Canaries(own=(-10.0, -5.0), learner=(-10.005, -5.0)), floor=0.01)
    assert verdict.result == "not distinguishable"


def test_one_canary_out_of_step_fails_the_whole():
    before = Canaries(own=(-10.0, -5.0), learner=(-10.0, -5.0))
    verdict = judge_change(before, Canaries(own=(-9.0, -5.0), learner=(-9.0, -4.0)), floor=1e-4)
    assert verdict.result == "failed"
    assert verdict.detail["canaries"] == {"1": [0.0, 1.0]}


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
def test_a_canary_that_is_no_number_fails(broken: float):
    before = Canaries(own=(-10.0,), learner=(-10.0,))
    assert judge_change(before, Canaries(own=(broken,), learner=(-9.0,)), floor=1e-4).result == "failed"
    assert judge_first(Canaries(own=(broken,), learner=(-9.0,)), [4]).result == "failed"


@pytest.mark.parametrize(
    ("gap", "result"),
    [
        (0.0003, "proved"),  # 4 tokens at 1e-4 nats each
        (0.0010, "not distinguishable"),
        (0.2100, "failed"),  # more than 0.05 nats per token: not the same model
    ],
)
def test_a_first_version_is_compared_with_the_learner_itself(gap: float, result: str):
    now = Canaries(own=(-8.0 + gap,), learner=(-8.0,))
    assert judge_first(now, [4]).result == result


def test_the_floor_is_what_was_measured_and_never_below_the_smallest():
    same = Canaries(own=(-8.0,), learner=(-8.0,))
    assert noise_floor(same, 0.0, "float32") == 1e-4
    apart = Canaries(own=(-8.0, -3.0), learner=(-8.25, -3.0))
    assert noise_floor(apart, 0.5, "float32") == 0.75


@given(
    st.lists(st.floats(-100, 0), min_size=1, max_size=5),
    st.floats(0.001, 1),
    st.floats(-1, 1),
)
def test_noise_within_the_floor_never_fails_and_a_missing_change_beyond_it_always_does(values, floor, noise):
    """Both sides differ by at most one floor at each end, hence by at most two in the change."""
    before = Canaries(own=tuple(values), learner=tuple(values))
    shifted = tuple(v + noise * floor for v in values)
    assert judge_change(before, Canaries(own=shifted, learner=tuple(values)), floor).result != "failed"
    far = tuple(v - 2.5 * floor - 0.01 for v in values)
    assert judge_change(before, Canaries(own=tuple(values), learner=far), floor).result == "failed"


@pytest.mark.parametrize(
    ("reading", "result"),
    [
        (CacheReading(cached_tokens=0, media=1, encoded=1, media_hits=0), "proved"),
        (CacheReading(cached_tokens=0, media=0, encoded=0, media_hits=0), "proved"),
        (CacheReading(cached_tokens=16, media=1, encoded=1, media_hits=0), "failed"),
        (CacheReading(cached_tokens=0, media=1, encoded=0, media_hits=0), "failed"),
        (CacheReading(cached_tokens=0, media=1, encoded=1, media_hits=1), "failed"),
    ],
)
def test_caches(reading: CacheReading, result: str):
    assert judge_caches(reading).result == result


def test_gaps_of_what_is_no_number_are_infinite():
    assert largest_gap((1.0, math.nan), (1.0, 2.0)) == math.inf
    assert largest_gap((1.0, 3.0), (1.5, 2.0)) == 1.0
