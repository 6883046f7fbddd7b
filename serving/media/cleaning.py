"""From the media of a request to clean data URLs: the engine never sees a client's bytes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from serving.decoding.framing import Rejected
from serving.gateway.admission import Held
from serving.gateway.errors import ApiError
from serving.gateway.schema import MediaPart
from serving.limits import Limits
from serving.media.pool import MediaPool
from serving.media.remote import Fetcher


class BadMedia(ApiError):
    """A medium that is not taken, such as "image 2: 400 Mpx, at most 40 Mpx; scale it down"."""

    def __init__(self, param: str, message: str) -> None:
        super().__init__(400, message, param=param, code="bad_media")


async def clean(
    parts: Sequence[MediaPart],
    held: Held,
    *,
    limits: Limits,
    pool: MediaPool,
    fetcher: Fetcher | None = None,
) -> list[str]:
    """A data URL per medium, in order. One after the other, so that a request takes one decoder at a time.

    `held` counts what the request holds from then on; `fetcher`: None where nothing is fetched. Raises
    BadMedia, and ApiError (503) when the server is busy.
    """
    urls: list[str] = []
    seen: Counter[str] = Counter()
    left = limits.clean_mib * 2**20
    for part in parts:
        seen[part.kind] += 1
        try:
            url = await _one(part, held, pool, fetcher, max(0, left))
        except Rejected as problem:
            raise BadMedia(part.param, f"{part.kind} {seen[part.kind]}: {problem}") from None
        held.add(len(url))
        left -= len(url) * 3 // 4
        urls.append(url)
    return urls


async def _one(part: MediaPart, held: Held, pool: MediaPool, fetcher: Fetcher | None, most: int) -> str:
    if part.url[:5].lower() != "data:":
        if fetcher is None:
            raise Rejected(
                "remote URLs are not taken here; send it as a data URL (data:image/png;base64,...)"
            )
        with held.passing() as fetched:
            return await pool.decode(
                part.kind, await fetcher.fetch(part.url, fetched), base64=False, most=most
            )
    head, comma, data = part.url.partition(",")
    if not comma or not head.lower().endswith(";base64"):
        raise Rejected(f"expected a base64 data URL (data:{part.kind}/...;base64,...); encode the bytes")
    if head.lower().startswith("data:video/jpeg"):
        raise Rejected("video/jpeg, a list of pictures, is not taken; send MP4 or WEBM")
    return await pool.decode(part.kind, data, base64=True, most=most)
