"""What learners, generators and servers share about LoRA adapters."""

from __future__ import annotations

BASE = "base.json"  # beside an adapter: the digest of the weights that it was trained on
RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # what vLLM accepts as max_lora_rank


def room_for(rank: int) -> int:
    """The smallest `max_lora_rank` that holds an adapter of this rank, at most the largest of `RANKS`."""
    return next(room for room in RANKS if room >= rank)
