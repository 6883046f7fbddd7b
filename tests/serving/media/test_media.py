"""Media from clients: cleaned in another process, or refused in words; whatever they are, nothing breaks."""

from __future__ import annotations

import asyncio
import base64
import io
import os
import signal
import threading
import wave
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from benchmarks.serving import corpus
from pipelines.data import images
from serving.gateway.admission import Admission, Held
from serving.gateway.errors import ApiError
from serving.gateway.gateway import build
from serving.gateway.metrics import Metrics
from serving.gateway.schema import MediaPart
from serving.gateway.stub import StubBackend
from serving.limits import Limits
from serving.media import BadMedia, MediaPool, clean
from serving.media.pool import Decoder
from serving.settings import LoadSettings, MediaSettings, Settings

ITEMS = {item.name: item for item in corpus.items()}


def room(load: LoadSettings | None = None) -> Held:
    return Held(Admission(load or LoadSettings(), Metrics()))


def cleaned(pool: MediaPool, *items: corpus.Item, limits: Limits | None = None) -> list[bytes]:
    parts = [MediaPart(kind=item.kind, url=item.url, param="here") for item in items]
    held = room()
    urls = asyncio.run(clean(parts, held, limits=limits or Limits(), pool=pool))
    assert held.size == sum(map(len, urls))
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
        assert (heard.getnchannels(), heard.getsampwidth(), heard.getframerate()) == (1, 2, 16_000)
        assert heard.getnframes() == 1600


def test_all_media_of_a_request_together_are_bounded(pool: MediaPool) -> None:
    noise = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (500, 500, 3), np.uint8)
    Image.fromarray(pixels).save(noise, "PNG")
    item = corpus._item("noise", "image", noise.getvalue(), None)
    with pytest.raises(BadMedia, match=r"image 2: .* are left to this request"):
        cleaned(pool, item, item, limits=Limits(clean_mib=1))


def test_clean_media_count_in_what_the_server_holds(pool: MediaPool) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (700, 700, 3), np.uint8)  # 1.5 MB as PNG
    data = io.BytesIO()
    Image.fromarray(noise).save(data, "JPEG", quality=30)
    part = MediaPart(
        kind="image", url=corpus._item("noise", "image", data.getvalue(), None).url, param="here"
    )
    held = room(LoadSettings(bodies_mib=2))
    with pytest.raises(ApiError) as full:
        asyncio.run(clean([part, part], held, limits=Limits(), pool=pool))
    assert full.value.status == 503 and full.value.retry_after_s
    assert 2**20 < held.size <= 2 * 2**20


def test_a_decoder_that_dies_is_replaced(pool: MediaPool) -> None:
    cleaned(pool, ITEMS["png"])
    before = pool.decoders[0].pid
    assert before is not None
    os.kill(before, signal.SIGSTOP)

    async def killed() -> None:
        part = MediaPart(kind="image", url=ITEMS["png"].url, param="here")
        work = asyncio.create_task(clean([part], room(), limits=Limits(), pool=pool))
        await asyncio.sleep(0.1)
        os.kill(before, signal.SIGKILL)
        await work

    with pytest.raises(BadMedia, match="could not stand it"):
        asyncio.run(killed())
    cleaned(pool, ITEMS["png"])
    assert pool.decoders[0].pid != before


def test_a_decoder_that_hangs_is_replaced_and_the_others_wait_for_it() -> None:
    pool = MediaPool(MediaSettings(decoders=1), Limits(decode_s=0.5))
    try:
        cleaned(pool, ITEMS["png"])
        before = pool.decoders[0].pid
        assert before is not None
        os.kill(before, signal.SIGSTOP)
        part = MediaPart(kind="image", url=ITEMS["png"].url, param="here")

        async def many() -> list[list[str] | BaseException]:
            asked = [clean([part], room(), limits=Limits(), pool=pool) for _ in range(40)]
            return await asyncio.gather(*asked, return_exceptions=True)

        first, *others = asyncio.run(many())
        assert isinstance(first, BadMedia) and "not decoded after 0.5 s" in first.message
        assert all(isinstance(one, list) for one in others)
        assert pool.decoders[0].pid != before
    finally:
        pool.close()


def test_a_medium_that_waits_too_long_is_refused_and_leaves_the_queue(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    free, begun = threading.Event(), []

    def busy(self: Decoder, job: object, data: bytes) -> str:
        begun.append(job)
        free.wait(30)
        return "data:image/png;base64,"

    monkeypatch.setattr(Decoder, "answer", busy)
    pool = MediaPool(MediaSettings(decoders=1), Limits(decode_s=0.1), wait_s=0.1)

    async def story() -> None:
        asked = [pool.decode("image", b"x", base64=False, most=1) for _ in range(3)]
        for refused in await asyncio.gather(*asked, return_exceptions=True):
            assert isinstance(refused, ApiError)
            assert refused.status == 503 and refused.retry_after_s
        free.set()
        assert await pool.decode("image", b"x", base64=False, most=1)

    try:
        asyncio.run(story())
    finally:
        free.set()
        pool.close()
    assert len(begun) == 2, "only the first of the three was ever begun"


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


def test_a_gateway_that_ends_ends_its_decoders() -> None:
    """By ASGI's lifespan events, as a server sends them."""
    pool = MediaPool(MediaSettings(decoders=2), Limits())
    app = build(Settings(), StubBackend(), close=pool.close)

    async def lived() -> None:
        async with app.router.lifespan_context(app):
            await asyncio.gather(
                *(pool.decode("image", corpus.picture(), base64=False, most=9999) for _ in "ab")
            )
            assert all(decoder.pid for decoder in pool.decoders)

    asyncio.run(lived())
    assert [decoder.pid for decoder in pool.decoders] == [None, None]
    with pytest.raises(RuntimeError, match="after shutdown"):
        asyncio.run(pool.decode("image", b"", base64=False, most=9999))
