from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.logprobs import answer_targets, lengths, summed, token_logps

WIDTH, VOCABULARY = 5, 11


def _plain(logits: torch.Tensor, prompt: int, answer: list[int]) -> float:
    """The textbook way: log-softmax over everything, then pick what each answer token was predicted from."""
    table = logits.double().log_softmax(-1)
    return sum(float(table[prompt + offset - 1, token]) for offset, token in enumerate(answer))


row = st.tuples(st.integers(1, 6), st.lists(st.integers(0, VOCABULARY - 1), min_size=0, max_size=6))


@settings(max_examples=60, deadline=None)
@given(rows=st.lists(row, min_size=1, max_size=5), padding=st.integers(0, 3), seed=st.integers(0, 2**16))
def test_equals_the_plain_computation_over_all_positions(
    rows: list[tuple[int, list[int]]], padding: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    longest = max(prompt + len(answer) for prompt, answer in rows) + padding
    hidden = torch.randn(len(rows), longest, WIDTH, generator=generator)
    weight = torch.randn(VOCABULARY, WIDTH, generator=generator)
    targets = answer_targets([prompt for prompt, _ in rows], [answer for _, answer in rows])
    got = summed(token_logps(hidden, lambda x: x @ weight.T, targets), targets)
    expected = [_plain(hidden[i] @ weight.T, prompt, answer) for i, (prompt, answer) in enumerate(rows)]
    assert got.tolist() == pytest.approx(expected, abs=1e-4)
    assert lengths(targets).tolist() == [len(answer) for _, answer in rows]


def test_a_uniform_head_gives_minus_log_of_the_vocabulary_per_token() -> None:
    """With equal logits every token has probability 1/V, so an answer of 3 tokens has -3 log V."""
    targets = answer_targets([2], [[4, 0, 7]])
    tokens = token_logps(torch.randn(1, 6, WIDTH), lambda x: x.new_zeros(len(x), VOCABULARY), targets)
    assert tokens.tolist() == pytest.approx([-math.log(VOCABULARY)] * 3, abs=1e-6)


def test_only_predicting_positions_are_projected() -> None:
    seen: list[torch.Size] = []

    def head(x: torch.Tensor) -> torch.Tensor:
        seen.append(x.shape)
        return x.new_zeros(len(x), VOCABULARY)

    token_logps(torch.randn(2, 40, WIDTH), head, answer_targets([30, 20], [[1, 2], [3]]))
    assert seen == [torch.Size([3, WIDTH])]


def test_half_precision_logits_are_normalised_in_float32() -> None:
    logits = torch.tensor([[8.0, 7.9375, -3.0]], dtype=torch.bfloat16)
    targets = answer_targets([1], [[1]])
    got = token_logps(torch.zeros(1, 1, 1, dtype=torch.bfloat16), lambda _: logits, targets)
    assert got.dtype == torch.float32
    assert float(got) == pytest.approx(float(logits.double().log_softmax(-1)[0, 1]), abs=1e-6)


def test_other_rows_get_no_gradient() -> None:
    hidden = torch.randn(2, 4, WIDTH, requires_grad=True)
    weight = torch.randn(VOCABULARY, WIDTH)
    targets = answer_targets([2, 2], [[1], [2]])
    summed(token_logps(hidden, lambda x: x @ weight.T, targets), targets)[0].backward()
    assert hidden.grad is not None
    touched = hidden.grad.abs().sum(-1) > 0
    assert touched.tolist() == [[False, True, False, False], [False] * 4]


def test_an_empty_prompt_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one prompt token"):
        answer_targets([0], [[1]])
