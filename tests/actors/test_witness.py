"""Counting what a loader writes, on small modules without vLLM."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from actors.proof import LoadReport
from actors.witness import Recorder, Write, covered, report


def region(view: torch.Tensor) -> Write:
    return Write(tuple(view.shape), tuple(view.stride()), view.storage_offset(), None)


@given(
    st.lists(
        st.tuples(*(st.tuples(st.integers(0, 4), st.integers(0, 4)) for _ in range(2)), st.booleans()),
        max_size=5,
    )
)
def test_overlapping_regions_are_counted_once(boxes):
    """Against a mask: rectangles of a 4x4 matrix, some of them transposed."""
    matrix, mask, writes = torch.zeros(4, 4, device="meta"), torch.zeros(4, 4, dtype=torch.bool), []
    for (row0, row1), (column0, column1), transposed in boxes:
        view = matrix[row0:row1, column0:column1]
        writes.append(region(view.T if transposed else view))
        mask[row0:row1, column0:column1] = True
    assert covered(writes) == int(mask.sum())


class Fused(torch.nn.Module):
    """Two shards of 2 rows in one matrix, and a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.full((4, 3), -1.0), requires_grad=False)
        self.bias = torch.nn.Parameter(torch.full((4,), -1.0), requires_grad=False)


VERIFIED = {
    "a": torch.arange(6.0).reshape(2, 3),
    "b": torch.arange(6.0, 12.0).reshape(2, 3),
    "bias": torch.ones(4),
}


ROWS = {"a": slice(0, 2), "b": slice(2, 4)}


def recorded(handed: dict[str, torch.Tensor], rows: dict[str, slice] = ROWS) -> tuple[Fused, Recorder]:
    """Loads as vLLM's loaders do: narrow the parameter, copy into the view."""
    model, recorder = Fused(), Recorder(VERIFIED)
    with recorder:
        for name, tensor in recorder.items(model, list(handed.items())):
            target = model.bias.data if name == "bias" else model.weight.data[rows[name]]
            target.copy_(tensor)
    return model, recorder


def loaded(handed: dict[str, torch.Tensor], rows: dict[str, slice] = ROWS) -> LoadReport:
    model, recorder = recorded(handed, rows)
    return report(model, recorder.targets)


def test_a_complete_load_is_reported_complete():
    found = loaded(VERIFIED)
    assert (found.elements, found.written) == (16, 16)
    assert not found.missing and not found.stale and not found.unread


def test_a_missing_shard_and_a_missing_bias_are_named_with_their_elements():
    found = loaded({"a": VERIFIED["a"]})
    assert found.missing == {"weight": 6, "bias": 4}
    assert found.written == 6


def test_a_shard_loaded_twice_does_not_stand_in_for_another():
    """As many elements are copied as there are, but not to every place."""
    found = loaded(VERIFIED, rows={"a": slice(0, 2), "b": slice(0, 2)})
    assert found.missing == {"weight": 6}


def test_a_parameter_copied_onto_itself_was_not_loaded():
    model, recorder = Fused(), Recorder(VERIFIED)
    with recorder:
        for _ in recorder.items(model, []):
            pass
        model.bias.data.copy_(model.bias)
    assert report(model, recorder.targets).missing["bias"] == 4


def test_an_older_tensor_in_place_of_the_verified_one_is_stale():
    found = loaded({**VERIFIED, "b": VERIFIED["b"] - 1})
    assert found.stale == ("weight",) and not found.missing


def test_a_value_changed_after_loading_is_stale():
    model, recorder = recorded(VERIFIED)
    model.weight.data[3, 2] += 1
    assert report(model, recorder.targets).stale == ("weight",)


def test_a_packed_matrix_is_read_back_through_what_computes():
    """As on CPU: the parameter is emptied and a closure holds the matrix; one of older values is stale."""
    for packed, stale in ((torch.cat([VERIFIED["a"], VERIFIED["b"]]), ()), (torch.zeros(4, 3), ("weight",))):
        model, recorder = recorded(VERIFIED)
        model.weight = torch.nn.Parameter(torch.empty(0), requires_grad=False)
        model.cpu_linear = lambda x, weight, bias, matrix=packed: x @ matrix.T
        assert report(model, recorder.targets).stale == stale


def test_a_parameter_that_cannot_be_read_back_is_named():
    model, recorder = recorded(VERIFIED)
    model.weight = torch.nn.Parameter(torch.empty(0), requires_grad=False)
    found = report(model, recorder.targets)
    assert found.unread == ("weight",) and not found.missing
