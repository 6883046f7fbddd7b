"""The bytes of a bucket of tensors in one buffer. What is where follows from the manifest at both ends."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from actors.transfer import Arrays
from pipelines.types import WeightVersion

ALIGNED = 64  # bytes; so that each tensor can be viewed in its own dtype


def layout(version: WeightVersion, names: Sequence[str]) -> tuple[list[tuple[str, int, int]], int]:
    """(name, first byte, bytes) of each tensor of a bucket, and the bucket's size; the same at both ends."""
    places, end = list[tuple[str, int, int]](), 0
    for name in names:
        digest = version.manifest[name]
        size = math.prod(digest.shape) * _numpy(digest.dtype).itemsize
        places.append((name, end, size))
        end += math.ceil(size / ALIGNED) * ALIGNED
    return places, max(end, 1)


def size_of(version: WeightVersion, names: Sequence[str]) -> int:
    return layout(version, names)[1]


def pack(version: WeightVersion, names: Sequence[str], arrays: Arrays) -> NDArray[np.uint8]:
    """One buffer with the bytes of a bucket's tensors. Raises ValueError for a tensor of another size."""
    places, size = layout(version, names)
    packed = np.zeros(size, np.uint8)
    for name, start, count in places:
        packed[start : start + count] = np.ascontiguousarray(arrays[name]).reshape(-1).view(np.uint8)
    return packed


def unpack(
    version: WeightVersion, names: Sequence[str], packed: NDArray[np.uint8]
) -> dict[str, NDArray[Any]]:
    """The tensors of a bucket, as views of it; bfloat16 is carried as uint16."""
    places, _ = layout(version, names)
    return {
        name: packed[start : start + count]
        .view(_numpy(version.manifest[name].dtype))
        .reshape(version.manifest[name].shape)
        for name, start, count in places
    }


def _numpy(dtype: str) -> np.dtype[Any]:
    return np.dtype(np.uint16 if dtype == "bfloat16" else dtype)
