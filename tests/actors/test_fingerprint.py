"""What a fingerprint tells apart, and what it does not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from actors.fingerprint import digest, logical


def test_the_order_of_a_mapping_does_not_count_and_that_of_a_sequence_does():
    assert digest({"a": 1, "b": 2.0}) == digest({"b": 2.0, "a": 1})
    assert digest([1, 2]) != digest([2, 1])


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (torch.zeros(4), torch.zeros(2, 2)),
        (torch.zeros(2), torch.zeros(2, dtype=torch.float64)),
        (torch.zeros(2), -torch.zeros(2)),  # equal, and not the same bits
        (torch.tensor([1.0]), torch.tensor([1.0 + 2**-23])),  # the next float32
        (np.zeros(2, np.int8), np.zeros(1, np.int16)),
        ({"a": {"b": 1}}, {"a": {"c": 1}}),
        ([[1], [2]], [[1, 2], []]),
        (1, 1.0),
        (True, 1),
        ("1", 1),
        (None, 0),
    ],
)
def test_what_is_not_the_same_has_another_digest(one: Any, other: Any):
    assert digest(one) != digest(other)


def test_a_view_has_the_digest_of_its_values():
    whole = torch.arange(6.0).reshape(2, 3)
    assert digest(whole.t()) == digest(whole.t().contiguous())
    assert digest(torch.ones(2, dtype=torch.bfloat16)) == digest(torch.ones(2, dtype=torch.bfloat16))
    assert digest(torch.zeros(0)) != digest(torch.zeros(0, 1))


def test_the_logical_ledger_says_where_each_group_went():
    """Two steps in their sealed order, a drop, and a second use; cursors and attempts leave no trace."""
    snapshot: dict[str, Any] = {
        "run": "any",
        "step": 2,
        "next_cursor": 9,
        "trained": [["a", 1, 0], ["c", 1, 2], ["b", 2, 1]],
        "dropped": [["d", "tie", 3]],
        "later": {"trained": [["a", 0, 2, 2]], "dropped": {}, "pool": ["a"]},
    }
    assert logical(snapshot) == {"a": [1, 0], "c": [1, 1], "b": [2, 0], "d": ["tie"], "a/0/2": [2]}
