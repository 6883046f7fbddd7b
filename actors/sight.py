"""Whether the learner sees what the generator saw: digests, forbidden tokens and reliance on media."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from actors.processing import Encoded, Processing
from pipelines.types import Comparison, Media, MediaTable, Prompt, Response

NOISE = {"float32": 1e-5, "bfloat16": 1e-4}  # nats; a reliance on media below this is none


class BlindLearner(RuntimeError):
    """Media do not influence the learner's log-probabilities."""


class SightMismatch(RuntimeError):
    """What entered the learner's processor is not what the comparison says."""


def require_seen(prompt: Prompt, encoded: Encoded) -> None:
    """Raises `BlindLearner` when images were lost on the way, `SightMismatch` when they are others."""
    if prompt.media and encoded.pixel_values is None:
        raise BlindLearner(
            f"prompt {prompt.id!r} shows {len(prompt.media)} images but no pixel_values reach the model: the "
            "processor dropped them; the learner would train on text alone"
        )
    if encoded.digest != prompt.digest:
        raise SightMismatch(
            f"prompt {prompt.id!r} ({prompt.origin}): its digest is {prompt.digest[:12]}, but what entered "
            f"the image processor has {encoded.digest[:12]}; the media table or the processing changed the "
            "pictures"
        )


def require_answer(response: Response, processing: Processing, where: str) -> None:
    """Raises ValueError for an answer that is empty or holds special tokens beside EOS."""
    if not response.tokens:
        raise ValueError(f"{where}: an answer without tokens cannot be scored")
    found = sorted(set(response.tokens) & set(processing.forbidden))
    if found:
        names = [token for token, index in processing.special.items() if index in found]
        raise ValueError(
            f"{where}: the answer holds special tokens {names}; they are forbidden at sampling, and a "
            "placeholder among them would shift the images"
        )


def require_reliance(reliances: Sequence[float], dtype: str) -> None:
    """Raises `BlindLearner` when damaged media change no log-probability at all.

    `reliances`: log p(y|x, m) - log p(y|x, damaged m) of every pair whose media differ, over all ranks, nats.
    """
    if reliances and max(abs(value) for value in reliances) <= NOISE[dtype]:
        raise BlindLearner(
            f"the learner is blind: exchanging the media of {len(reliances)} prompts changed no "
            f"log-probability by more than {NOISE[dtype]} nats. pixel_values are dropped or ignored "
            "between the processor and the model, or the checkpoint's vision tower is not connected"
        )


def media_edges(comparison: Comparison) -> list[int]:
    """Positions of the edges whose two sides differ in the prompt's media alone."""

    def differs(winner: int, loser: int) -> bool:
        sides = [comparison.prompts[comparison.candidates[side].prompt].media for side in (winner, loser)]
        return sides[0] != sides[1]

    return [
        position
        for position, edge in enumerate(comparison.preferences)
        if comparison.axis(edge) == "media" and differs(edge.winner, edge.loser)
    ]


def blanked(prompt: Prompt, media: MediaTable) -> tuple[Prompt, dict[str, Media]]:
    """The prompt with every image replaced by a gray one of the same size, and the table that holds them."""
    table: dict[str, Media] = {}
    swap: dict[str, str] = {}
    for digest in dict.fromkeys(prompt.media):
        gray = Media(
            kind="image", space="rgb8", payload=np.full_like(media[digest].payload, 128), parent=digest
        )
        table[gray.digest] = gray
        swap[digest] = gray.digest
    return prompt.with_media(swap, origin="blank"), table
