"""Media from clients: cleaned in another process, or refused in words; whatever they are, nothing breaks."""

from __future__ import annotations

import asyncio
import base64
import io
import os
import signal
import wave
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from benchmarks.serving import corpus
from pipelines.data import images
from serving.gateway.errors import ApiError
from serving.gateway.schema import MediaPart
from serving.limits import Limits
from serving.media import BadMedia, MediaPool, clean
from serving.settings import MediaSettings

ITEMS = {item.name: item for item in corpus.items()}


def cleaned(pool: MediaPool, *items: corpus.Item, limits: Limits | None = None) -> list[bytes]:
    parts = [MediaPart(kind=item.kind, url=item.url, param="here") for item in items]
    urls = asyncio.run(clean(parts, limits or Limits(), pool))
    return [base64.b64decode(url.partition(",")[2]) for url in urls]


def sent(item: corpus.Item) -> bytes:
    return base64.b64decode(item.url.partition(",")[2])


@pytest.mark.parametrize("name", list(ITEMS))
def test_each_medium_of_the_corpus_is_cleaned_or_refused_in_words(pool: MediaPool, name: str) -> None:
    item = ITEMS[name]
    if item.says is None:
        (data,) = cleaned(pool, item)
        assert data[:4] in (b"\x89PNG", b"RIFF", b"\0\0\0 ")  # PNG, WAV, MP4
        return
    with pytest.raises(BadMedia) as refused:
        cleaned(pool, item)
    message = refused.value.message
    assert item.says in message and message.startswith(f"{item.kind} 1: ")
    assert refused.value.status == 400 and refused.value.param == "here"
    assert not any(word in message for word in ("/home", "/tmp", "PIL", "av.", "Error", "Traceback", "0x"))


@pytest.mark.parametrize("name", [n for n, i in ITEMS.items() if i.kind == "image" and i.says is None])
def test_pictures_look_as_in_alignment(pool: MediaPool, name: str) -> None:
    (data,) = cleaned(pool, ITEMS[name])
    served = Image.open(io.BytesIO(data))
    assert served.format == "PNG" and served.mode == "RGB"
    assert np.array_equal(np.asarray(served), images.load(sent(ITEMS[name])).payload)


def test_the_number_of_a_medium_is_said_per_kind(pool: MediaPool) -> None:
    with pytest.raises(BadMedia, match=r"^image 2: 400 Mpx"):
        cleaned(pool, ITEMS["png"], ITEMS["wav"], ITEMS["png bomb"])


def test_videos_keep_their_frames_and_sounds_their_length(pool: MediaPool) -> None:
    film, lying, sound = cleaned(pool, ITEMS["mp4"], ITEMS["lying duration"], ITEMS["stereo wav"])
    for data in (film, lying):
        with av.open(io.BytesIO(data)) as container:
            assert len(list(container.decode(video=0))) == 5
            assert container.duration == pytest.approx(200_000, rel=0.05)  # microseconds: 5 frames of 25/s
    with wave.open(io.BytesIO(sound)) as heard:
        assert (heard.getnchannels(), heard.getsampwidth(), heard.getframerate()) == (1, 2, 44_100)
        assert heard.getnframes() == 4410


def test_all_media_of_a_request_together_are_bounded(pool: MediaPool) -> None:
    noise = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (500, 500, 3), np.uint8)
    Image.fromarray(pixels).save(noise, "PNG")
    item = corpus._item("noise", "image", noise.getvalue(), None)
    with pytest.raises(BadMedia, match=r"image 2: .* are left to this request"):
        cleaned(pool, item, item, limits=Limits(clean_mib=1))


def test_a_decoder_that_dies_is_replaced(pool: MediaPool) -> None:
    cleaned(pool, ITEMS["png"])
    before = pool.decoders[0].pid
    assert before is not None
    os.kill(before, signal.SIGSTOP)

    async def killed() -> None:
        part = MediaPart(kind="image", url=ITEMS["png"].url, param="here")
        work = asyncio.create_task(clean([part], Limits(), pool))
        await asyncio.sleep(0.1)
        os.kill(before, signal.SIGKILL)
        await work

    with pytest.raises(BadMedia, match="could not stand it"):
        asyncio.run(killed())
    cleaned(pool, ITEMS["png"])
    assert pool.decoders[0].pid != before


def test_a_decoder_that_hangs_is_replaced_and_a_full_queue_is_refused() -> None:
    pool = MediaPool(MediaSettings(decoders=1), Limits(decode_s=0.5))
    try:
        cleaned(pool, ITEMS["png"])
        before = pool.decoders[0].pid
        assert before is not None
        os.kill(before, signal.SIGSTOP)
        part = MediaPart(kind="image", url=ITEMS["png"].url, param="here")

        async def many() -> list[list[str] | BaseException]:
            asked = [clean([part], Limits(), pool) for _ in range(20)]
            return await asyncio.gather(*asked, return_exceptions=True)

        first, *others = asyncio.run(many())
        assert isinstance(first, BadMedia) and "not decoded after 0.5 s" in first.message
        refused = [one for one in others if isinstance(one, ApiError)]
        assert [one.status for one in refused] == [503] * 3 and refused[0].retry_after_s
        assert all(isinstance(one, list) for one in others[:16])
        assert pool.decoders[0].pid != before
    finally:
        pool.close()


def test_memory_is_the_decoders_and_bounded(pool: MediaPool) -> None:
    """A decoder may map `decode_mib` and no more, by its own kernel limit; the largest picture fits."""
    white = corpus._item("large", "image", corpus.picture(8000, 5000), None)
    cleaned(pool, white)
    pid = pool.decoders[0].pid
    status = Path(f"/proc/{pid}/status").read_text()
    peak_kib = int(status.partition("VmPeak:")[2].split()[0])
    limits = Path(f"/proc/{pid}/limits").read_text()
    assert str(Limits().decode_mib * 2**20) in limits.partition("Max address space")[2].splitlines()[0]
    assert peak_kib <= Limits().decode_mib * 1024
    with pytest.raises(BadMedia, match=r"needs more than|could not stand"):
        tight = MediaPool(MediaSettings(decoders=1), Limits(decode_mib=450))
        try:
            cleaned(tight, white)
        finally:
            tight.close()


def test_a_decoder_has_nothing_of_the_gateways_environment(
    pool: MediaPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "hidden")
    pool.decoders[0].stop()
    cleaned(pool, ITEMS["png"])
    assert b"SECRET" not in Path(f"/proc/{pool.decoders[0].pid}/environ").read_bytes()
