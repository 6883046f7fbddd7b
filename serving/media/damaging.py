"""Clean pictures, damaged on purpose in a decoder's process."""

from __future__ import annotations

from collections.abc import Sequence

from serving.decoding.framing import Rejected
from serving.limits import Limits
from serving.media.cleaning import BadMedia
from serving.media.pool import MediaPool


async def damage(
    urls: Sequence[str], name: str, amount: float | None, seed: int, *, limits: Limits, pool: MediaPool
) -> list[str]:
    """Data URLs of clean pictures, each damaged under a seed of its own: `seed` and those after it.

    `name`, `amount`: as for `serving.decoding.damages.perturbation`. Raises BadMedia, and ApiError (503) when
    the decoders are busy.
    """
    found: list[str] = []
    left = limits.clean_mib * 2**20
    for index, url in enumerate(urls):
        job = {"name": name, "amount": amount, "seed": seed + index}
        try:
            found.append(await pool.damage(url, job, most=max(0, left)))
        except Rejected as problem:
            raise BadMedia("plumbline.contrast.damage", f"image {index + 1}, damaged: {problem}") from None
        left -= len(found[-1]) * 3 // 4
    return found
