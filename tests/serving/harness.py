"""Log-likelihoods as lm-eval asks a server for them and reads them, and the same numbers without a server."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForImageTextToText

Pair = tuple[list[int], list[int]]  # token ids of a context, and of what is to come after it


def asked(model: str, prompts: Sequence[Any]) -> dict[str, Any]:
    """A batch of prompts: texts, or lists of token ids."""
    fields = {"temperature": 0, "max_tokens": 1, "logprobs": 1, "seed": 1234, "echo": True}
    return {"model": model, "prompt": list(prompts), **fields}


def read(answer: dict[str, Any], contexts: Sequence[int]) -> list[tuple[float, bool]]:
    """For each prompt the log-probability of what comes after its context (of so many tokens), and whether
    greedy decoding would write that. The last token is the one that was generated."""
    found: list[tuple[float, bool]] = []
    for choice, length in zip(sorted(answer["choices"], key=lambda one: one["index"]), contexts, strict=True):
        chosen = choice["logprobs"]["token_logprobs"][length:-1]
        best = [max(top.values()) for top in choice["logprobs"]["top_logprobs"][length:-1]]
        found.append((sum(chosen), chosen == best))
    return found


def computed(checkpoint: Path, pairs: Sequence[Pair]) -> list[tuple[float, bool]]:
    """The same by one forward of transformers per pair."""
    model = AutoModelForImageTextToText.from_pretrained(checkpoint, dtype=torch.float32).eval()
    found: list[tuple[float, bool]] = []
    for context, ending in pairs:
        ids = torch.tensor([context + ending])
        with torch.inference_mode():
            logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0]
        # What stands at a position is predicted by the one before it.
        scores = logits[len(context) - 1 : -1].log_softmax(-1)
        wanted = torch.tensor(ending)
        chosen = scores.gather(1, wanted[:, None]).sum()
        found.append((float(chosen), bool((scores.argmax(-1) == wanted).all())))
    return found
