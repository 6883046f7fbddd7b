from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from pipelines.logprobs import Targets, answer_targets, spread, token_reads
from pipelines.types import NOT_SCORED

WIDTH, VOCABULARY = 5, 11
FEATURES = ("kl_forward", "kl_reverse", "collision", "entropy")


def _plain(logits: Tensor, prompt: int, answer: list[int]) -> list[float]:
    """The textbook way: log-softmax over everything, then pick what each answer token was predicted from."""
    table = logits.double().log_softmax(-1)
    return [
        float(table[prompt + offset - 1, token]) if token != NOT_SCORED else 0.0
        for offset, token in enumerate(answer)
    ]


def _selected(hidden: Tensor, targets: Targets) -> Tensor:
    return hidden[targets.row, targets.position]


row = st.tuples(st.integers(1, 6), st.lists(st.integers(-1, VOCABULARY - 1), min_size=0, max_size=6))


@given(
    rows=st.lists(row, min_size=1, max_size=5),
    padding=st.integers(0, 3),
    pieces=st.integers(1, 4),
    seed=st.integers(0, 2**16),
)
def test_equals_the_plain_computation_over_all_positions(
    rows: list[tuple[int, list[int]]], padding: int, pieces: int, seed: int
) -> None:
    """Whatever the padding and the pieces; positions that are not scored give 0."""
    generator = torch.Generator().manual_seed(seed)
    longest = max(prompt + len(answer) for prompt, answer in rows) + padding
    hidden = torch.randn(len(rows), longest, WIDTH, generator=generator)
    weight = torch.randn(VOCABULARY, WIDTH, generator=generator)
    targets = answer_targets([prompt for prompt, _ in rows], [answer for _, answer in rows])
    read = token_reads(_selected(hidden, targets), lambda x: x @ weight.T, targets.token, pieces=pieces)
    got = spread(read["logps"], targets)
    assert got.shape == (len(rows), max(len(answer) for _, answer in rows))
    for index, (prompt, answer) in enumerate(rows):
        expected = _plain(hidden[index] @ weight.T, prompt, answer)
        assert got[index, : len(answer)].tolist() == pytest.approx(expected, abs=1e-4)
        assert not got[index, len(answer) :].any()


def test_a_uniform_head_gives_minus_log_of_the_vocabulary_per_token() -> None:
    """With equal logits every token has probability 1/V: log-probability -log V, entropy log V, and
    log sum_v V^-2 = -log V. Against itself a distribution has no divergence."""

    def head(x: Tensor) -> Tensor:
        return x.new_zeros(len(x), VOCABULARY)

    hidden = torch.randn(3, WIDTH)
    read = token_reads(hidden, head, torch.tensor([4, 0, 7]), FEATURES, (hidden, head))
    log = math.log(VOCABULARY)
    for name, value in {
        "logps": -log,
        "entropy": log,
        "collision": -log,
        "kl_forward": 0,
        "kl_reverse": 0,
    }.items():
        assert read[name].tolist() == pytest.approx([value] * 3, abs=1e-6), name


def test_features_of_two_tokens_by_hand() -> None:
    """pi = (3/4, 1/4), ref = (1/2, 1/2).

    KL(ref || pi) = 1/2 log(2/3) + 1/2 log 2 = 1/2 log(4/3); KL(pi || ref) = 3/4 log(3/2) + 1/4 log(1/2);
    log sum pi^2 = log(10/16); entropy = -3/4 log(3/4) - 1/4 log(1/4).
    """
    hidden = torch.tensor([[math.log(3.0), 0.0]])
    read = token_reads(hidden, lambda x: x, torch.tensor([1]), FEATURES, (torch.zeros(1, 2), lambda x: x))
    expected = {
        "logps": math.log(1 / 4),
        "kl_forward": 0.5 * math.log(4 / 3),
        "kl_reverse": 0.75 * math.log(1.5) + 0.25 * math.log(0.5),
        "collision": math.log(10 / 16),
        "entropy": -0.75 * math.log(0.75) - 0.25 * math.log(0.25),
    }
    assert {name: float(value) for name, value in read.items()} == pytest.approx(expected, abs=1e-6)


@given(tokens=st.integers(1, 7), pieces=st.integers(2, 5), seed=st.integers(0, 2**16))
def test_pieces_change_neither_values_nor_gradients(tokens: int, pieces: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    start, other = torch.randn(2, tokens, WIDTH, generator=generator).unbind(0)
    matrix = torch.randn(VOCABULARY, WIDTH, generator=generator)
    targets = torch.randint(0, VOCABULARY, (tokens,), generator=generator)

    def run(count: int) -> tuple[Tensor, Tensor, Tensor]:
        hidden, weight = start.clone().requires_grad_(), matrix.clone().requires_grad_()
        read = token_reads(
            hidden, lambda x: x @ weight.T, targets, FEATURES, (other, lambda x: x @ matrix.T), count
        )
        whole = torch.stack([read[name] * factor for factor, name in enumerate(read, start=1)])
        whole.sum().backward()
        assert hidden.grad is not None and weight.grad is not None
        return whole.detach(), hidden.grad, weight.grad

    for one, many in zip(run(1), run(pieces), strict=True):
        assert torch.allclose(one, many, atol=1e-5)


def test_no_gradient_reaches_the_reference() -> None:
    hidden, reference = torch.randn(2, 3, WIDTH).unbind(0)
    hidden.requires_grad_(), reference.requires_grad_()
    read = token_reads(hidden, lambda x: x, torch.tensor([1, 2, 0]), ["kl_forward"], (reference, lambda x: x))
    read["kl_forward"].sum().backward()
    assert hidden.grad is not None and hidden.grad.any() and reference.grad is None


def test_a_divergence_without_a_reference_is_refused() -> None:
    with pytest.raises(ValueError, match="'kl_reverse' compares with a reference, but there is none"):
        token_reads(torch.randn(1, 2), lambda x: x, torch.tensor([1]), ["kl_reverse"])


def test_only_predicting_positions_are_projected_and_never_all_at_once() -> None:
    seen: list[torch.Size] = []

    def head(x: Tensor) -> Tensor:
        seen.append(x.shape)
        return x.new_zeros(len(x), VOCABULARY)

    targets = answer_targets([30, 20], [[1, 2, NOT_SCORED], [3]])
    hidden = _selected(torch.randn(2, 40, WIDTH), targets)
    token_reads(hidden, head, targets.token)
    token_reads(hidden, head, targets.token, pieces=3)
    assert seen == [torch.Size([3, WIDTH]), *[torch.Size([1, WIDTH])] * 3]


def test_half_precision_logits_are_normalised_in_float32() -> None:
    logits = torch.tensor([[8.0, 7.9375, -3.0]], dtype=torch.bfloat16)
    got = token_reads(torch.zeros(1, 1, dtype=torch.bfloat16), lambda _: logits, torch.tensor([1]))["logps"]
    assert got.dtype == torch.float32
    assert float(got) == pytest.approx(float(logits.double().log_softmax(-1)[0, 1]), abs=1e-6)


def test_other_rows_get_no_gradient() -> None:
    hidden = torch.randn(2, 4, WIDTH, requires_grad=True)
    weight = torch.randn(VOCABULARY, WIDTH)
    targets = answer_targets([2, 2], [[1], [2]])
    read = token_reads(_selected(hidden, targets), lambda x: x @ weight.T, targets.token)
    spread(read["logps"], targets)[0].sum().backward()
    assert hidden.grad is not None
    touched = hidden.grad.abs().sum(-1) > 0
    assert touched.tolist() == [[False, True, False, False], [False] * 4]


def test_an_empty_prompt_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one prompt token"):
        answer_targets([0], [[1]])
