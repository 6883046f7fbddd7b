"""How logits are mixed and tokens are picked; no model."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from actors.token_sampling import Ask, _uniforms, combined, picked
from pipelines.decoding import Contrast, Decoder, FromCheckpoint, FromReference, Grounded, Mixture

START = torch.zeros(3, dtype=torch.long)


def two(seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(3, 7, generator=generator) for _ in range(2)]


def law(logits: torch.Tensor) -> torch.Tensor:
    return logits.softmax(-1)


@given(st.integers(0, 50))
def test_a_mixture_of_nothing_is_the_policy_and_of_everything_the_reference(seed: int):
    logits = two(seed)
    torch.testing.assert_close(combined(Mixture(reference_share=0.0), logits, START), logits[0])
    torch.testing.assert_close(combined(Mixture(reference_share=1.0), logits, START), logits[1])
    torch.testing.assert_close(combined(FromReference(), logits, START), logits[1])
    torch.testing.assert_close(combined(FromCheckpoint(path="other"), logits, START), logits[1])


@given(st.integers(0, 50), st.floats(0, 1))
def test_mixing_logits_is_the_normalised_geometric_mixture(seed: int, share: float):
    policy, reference = two(seed)
    product = law(reference).double() ** share * law(policy).double() ** (1 - share)
    mixed = law(combined(Mixture(reference_share=share), [policy, reference], START))
    torch.testing.assert_close(mixed.double(), product / product.sum(-1, keepdim=True), rtol=1e-5, atol=1e-7)


def test_contrast_by_hand():
    """p = (.5, .45, .05), blind (.6, .3, .1). With alpha = 1: p^2 / blind = (.41667, .675, .025). The cutoff
    .2 keeps tokens with p >= .1, so the third is out: (.41667, .675) / 1.09167 = (.38168, .61832)."""
    policy, blind = torch.tensor([[0.5, 0.45, 0.05]]).log(), torch.tensor([[0.6, 0.3, 0.1]]).log()
    found = law(combined(Contrast(alpha=1.0, cutoff=0.2), [policy, blind], START[:1]))
    torch.testing.assert_close(found, torch.tensor([[0.38168, 0.61832, 0.0]]), atol=1e-5, rtol=0)
    plain = law(combined(Contrast(alpha=0.0, cutoff=0.0), [policy, blind], START[:1]))
    torch.testing.assert_close(plain, policy.exp())


def test_grounding_by_hand():
    """g = exp(-ln 2 * 1) = 1/2 at place 1, so l + (l - blind): p^2 / blind as in the contrast with alpha 1.
    At place 0 g = 1 and nothing changes; neither does it where the likeliest token has p >= alpha."""
    policy, blind = torch.tensor([[0.5, 0.3, 0.2]]).log(), torch.tensor([[0.25, 0.25, 0.5]]).log()
    decoder = Grounded(alpha=0.6, decay=math.log(2))
    product = torch.tensor([[1.0, 0.36, 0.08]])
    later = law(combined(decoder, [policy, blind], torch.tensor([1])))
    torch.testing.assert_close(later, product / product.sum())
    torch.testing.assert_close(law(combined(decoder, [policy, blind], torch.tensor([0]))), policy.exp())
    sure = Grounded(alpha=0.5, decay=math.log(2))
    torch.testing.assert_close(law(combined(sure, [policy, blind], torch.tensor([1]))), policy.exp())


@pytest.mark.parametrize("decoder", [Decoder(), Mixture(), Contrast(), Grounded(), FromReference()])
def test_what_is_drawn_from_is_a_tensor_of_its_own(decoder: Decoder):
    logits = two()
    kept = [each.clone() for each in logits]
    combined(decoder, logits, START).fill_(-math.inf)
    assert all(torch.equal(a, b) for a, b in zip(logits, kept, strict=True))


def test_inversion_picks_the_token_whose_interval_holds_the_number():
    """p = (.25, 0, .5, .25): intervals [0, .25), empty, [.25, .75), [.75, 1)."""
    logits = torch.tensor([[0.25, 0.0, 0.5, 0.25]]).log().expand(5, -1)
    uniform = torch.tensor([0.0, 0.2499, 0.25, 0.7501, 0.9999], dtype=torch.float64)
    assert picked(logits, 1.0, uniform).tolist() == [0, 0, 2, 3, 3]


def test_top_p_keeps_the_smallest_sufficient_set():
    """Ordered (.5, .3, .2): .5 alone reaches .5, two tokens reach .6; what is left is renormalised."""
    logits = torch.tensor([[0.3, 0.5, 0.2]]).log().expand(3, -1)
    uniform = torch.tensor([0.0, 0.5, 0.999], dtype=torch.float64)
    assert picked(logits, 0.49, uniform).tolist() == [1, 1, 1]
    assert picked(logits, 0.6, uniform).tolist() == [0, 1, 1]  # .3 / .8 = .375 of the numbers are token 0


def test_picks_are_distributed_as_they_should_be():
    probabilities = torch.tensor([0.1, 0.6, 0.3])
    uniform = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000  # every thousandth, so counts are exact
    tokens = picked(probabilities.log().expand(1000, -1), 1.0, uniform)
    assert torch.bincount(tokens).tolist() == [100, 600, 300]


@given(st.integers(0, 2**31 - 1), st.integers(1, 5), st.integers(1, 30), st.integers(1, 30))
def test_random_numbers_do_not_depend_on_how_long_others_go_on(seed: int, n: int, short: int, long: int):
    ask = Ask(context=None, n=n, seed=seed, max_tokens=1, decoder=Decoder())  # type: ignore[arg-type]
    few, many = _uniforms(ask, min(short, long)), _uniforms(ask, max(short, long))
    assert torch.equal(many[: len(few)], few)
