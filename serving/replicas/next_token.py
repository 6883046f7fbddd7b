"""The next token of a contrast, from log-probabilities; no engine here."""

from __future__ import annotations

import math

import torch

from actors.token_sampling import combined, picked
from pipelines.decoding import Contrast

GREEDY = 1e-5  # temperatures below are 0, as for vLLM

Logps = dict[int, float]  # token -> log-probability, most likely first


def plausible(found: Logps, cutoff: float) -> Logps:
    """The tokens with p >= cutoff * max p, in the order given."""
    best = max(found.values())
    return {token: logp for token, logp in found.items() if math.exp(logp - best) >= cutoff}


def chosen(
    own: Logps, other: Logps, law: Contrast, *, temperature: float, top_p: float, uniform: float
) -> int:
    """The next token: of the plausible tokens `own`, by their log-probabilities under both prompts.

    `other`: log-probabilities of at least these tokens; `uniform`: drawn from [0, 1). At temperature 0 the
    first one among equals.
    """
    tokens = list(own)
    sides = [torch.tensor([[side[token] for token in tokens]], dtype=torch.float64) for side in (own, other)]
    mixed = combined(law, sides, torch.zeros(1, dtype=torch.long))
    if temperature < GREEDY:
        return tokens[int(mixed.argmax())]
    return tokens[int(picked(mixed / temperature, top_p, torch.tensor([uniform], dtype=torch.float64)))]
