"""Bad media, built and never stored: what a server must refuse in words, or take without harm."""

from __future__ import annotations

import base64
import io
import struct
import wave
import zlib
from dataclasses import dataclass
from typing import Literal

import av
import numpy as np
from PIL import Image

Kind = Literal["image", "video", "audio"]


@dataclass(frozen=True, kw_only=True)
class Item:
    """A medium of a request. `says`: what the refusal must contain; None: it is taken."""

    name: str
    kind: Kind
    url: str
    says: str | None

    @property
    def expect(self) -> Literal["ok", "refused"]:
        return "ok" if self.says is None else "refused"


def items() -> list[Item]:
    """Every medium of the corpus; all together are less than 2 MiB."""
    return [*_pictures(), *_videos(), *_sounds(), *_urls()]


def _item(name: str, kind: Kind, data: bytes, says: str | None, label: str | None = None) -> Item:
    url = f"data:{label or kind + '/x'};base64,{base64.b64encode(data).decode()}"
    return Item(name=name, kind=kind, url=url, says=says)


def picture(width: int = 32, height: int = 32, form: str = "PNG", mode: str = "RGB", **save: object) -> bytes:
    """A picture of one colour."""
    out = io.BytesIO()
    Image.new(mode, (width, height), 77).save(out, form, **save)
    return out.getvalue()


def _chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack("!I", len(body)) + name + body + struct.pack("!I", zlib.crc32(name + body))


def png_bomb(width: int, height: int) -> bytes:
    """A header that promises more than the data has."""
    header = struct.pack("!IIBBBBB", width, height, 8, 2, 0, 0, 0)
    rows = zlib.compress(bytes(1000))
    start = b"\x89PNG\r\n\x1a\n"
    return start + _chunk(b"IHDR", header) + _chunk(b"IDAT", rows) + _chunk(b"IEND", b"")


def _animated(form: str) -> bytes:
    out = io.BytesIO()
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue", "green")]
    frames[0].save(out, form, save_all=True, append_images=frames[1:], duration=50)
    return out.getvalue()


def _rotated() -> bytes:
    exif = Image.Exif()
    exif[274] = 6  # a quarter turn
    return picture(40, 20, "JPEG", exif=exif)


def _pictures() -> list[Item]:
    png, jpeg = picture(), picture(256, 256, "JPEG")
    webp = b"RIFF\x1e\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0" + b"\xfe\x3f\0\xfe\x3f\0"
    grey = io.BytesIO()
    Image.fromarray(np.full((8, 8), 40_000, np.uint16)).save(grey, "PNG")
    svg = b"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>"
    damaged = "damaged"
    return [
        _item("png", "image", png, None),
        _item("wrong extension", "image", png, None, "image/jpeg"),
        _item("wrong kind of type", "image", png, None, "text/html"),
        _item("png bomb", "image", png_bomb(20_000, 20_000), "400 Mpx (20000 x 20000), at most 40 Mpx"),
        _item("png bomb, 4 billion wide", "image", png_bomb(2**31 - 1, 2**31 - 1), "at most 40 Mpx"),
        _item("png that ends early", "image", png_bomb(6000, 6000), damaged),
        _item("webp bomb", "image", webp, "268 Mpx"),
        _item("1 x 1", "image", picture(1, 1), "at least 4 pixels"),
        _item("1 x 30000", "image", picture(1, 30_000), "at least 4 pixels"),
        _item("4 x 30000", "image", picture(4, 30_000), "at most 1:200"),
        _item("truncated jpeg", "image", jpeg[: len(jpeg) // 2], damaged),
        _item("truncated png", "image", png[:40], damaged),
        _item("header only", "image", png[:8], damaged),
        _item("no bytes", "image", b"", "no bytes"),
        _item("NUL bytes", "image", bytes(100), "not a picture"),
        _item("animated gif", "image", _animated("GIF"), None),
        _item("animated webp", "image", _animated("WEBP"), None),
        _item("cmyk jpeg", "image", picture(form="JPEG", mode="CMYK"), None),
        _item("16 bit png", "image", grey.getvalue(), None),
        _item("transparent png", "image", picture(mode="RGBA"), None),
        _item("palette gif", "image", picture(form="GIF", mode="P"), None),
        _item("rotated jpeg", "image", _rotated(), None),
        _item("svg", "image", svg, "not a picture", "image/svg+xml"),
        _item("tiff", "image", picture(form="TIFF"), "not a picture"),
        _item("bmp", "image", picture(form="BMP"), "not a picture"),
        _item("fits", "image", b"SIMPLE  =                    T".ljust(2880), "not a picture"),
        _item("pdf", "image", b"%PDF-1.7\n", "not a picture"),
        _item("a video", "image", video(2), "not a picture"),
    ]


def video(frames: int, width: int = 32, height: int = 32, form: str = "mp4") -> bytes:
    """Black frames, 25 per second."""
    out = io.BytesIO()
    with av.open(out, "w", format=form) as film:
        stream = film.add_stream("libx264", rate=25, options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        picture = np.zeros((height, width, 3), np.uint8)
        for _ in range(frames):
            film.mux(stream.encode(av.VideoFrame.from_ndarray(picture)))
        film.mux(stream.encode(None))
    return out.getvalue()


def _lying(data: bytes) -> bytes:
    """The same film with a header (mvhd) that says it lasts for days."""
    at = data.index(b"mvhd") + 20
    return data[:at] + b"\x7f\xff\xff\xff" + data[at + 4 :]


def _videos() -> list[Item]:
    film = video(5)
    playlist = b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n"
    jpegs = ",".join([base64.b64encode(picture(form="JPEG")).decode()] * 5)
    frames = Item(
        name="list of jpegs", kind="video", url=f"data:video/jpeg;base64,{jpegs}", says="a list of pictures"
    )
    return [
        _item("mp4", "video", film, None),
        _item("mkv", "video", video(5, form="matroska"), None),
        _item("lying duration", "video", _lying(film), None),
        _item("many frames", "video", video(400), "more than 256 frames"),
        _item("many pixels", "video", video(100, 1920, 1080), "more than 256 MiB"),
        _item("1 x 1 frames", "video", video(2, 2, 2), "at least 4 pixels"),
        _item("zero frames", "video", video(0), ""),
        _item("one frame", "video", video(1), "frames: 1, expected at least 2"),
        _item("truncated mp4", "video", film[: len(film) // 2], ""),
        _item("playlist", "video", playlist, "not of a known format"),
        _item("NUL bytes in a video", "video", bytes(100), "not of a known format"),
        _item("no bytes in a video", "video", b"", "no bytes"),
        frames,
    ]


def sound(seconds: float = 0.1, rate: int = 16_000, channels: int = 1) -> bytes:
    """WAV of silence."""
    out = io.BytesIO()
    with wave.open(out, "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(bytes(2 * channels * int(seconds * rate)))
    return out.getvalue()


def silence(seconds: int, codec: str, form: str, rate: int = 48_000) -> bytes:
    """Compressed: hours of it are small."""
    out = io.BytesIO()
    with av.open(out, "w", format=form) as film:
        stream = film.add_stream(codec, rate=rate, layout="mono")
        for _ in range(seconds):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, rate), np.int16), "s16", "mono")
            frame.sample_rate = rate
            film.mux(stream.encode(frame))
        film.mux(stream.encode(None))
    return out.getvalue()


def _sounds() -> list[Item]:
    rated = bytearray(sound())
    rated[24:28] = struct.pack("<I", 1)
    fast = bytearray(sound())
    fast[24:28] = struct.pack("<I", 2**31 - 1)
    return [
        _item("wav", "audio", sound(), None),
        _item("stereo wav", "audio", sound(channels=2, rate=44_100), None),
        _item("flac", "audio", silence(1, "flac", "flac"), None),
        _item("opus", "audio", silence(1, "libopus", "ogg"), None),
        _item("mp3", "audio", silence(1, "libmp3lame", "mp3"), None),
        _item("long flac", "audio", silence(700, "flac", "flac", 8_000), "more than 600 s"),
        _item("long opus", "audio", silence(700, "libopus", "ogg", 8_000), "more than 600 s"),
        _item("zero samples", "audio", sound(0), "no samples"),
        _item("1 Hz", "audio", bytes(rated), "sample rate 1 Hz"),
        _item("2 GHz", "audio", bytes(fast), "sample rate 2147483647 Hz"),
        _item("truncated wav header", "audio", sound()[:20], ""),
        _item("NUL bytes in a sound", "audio", bytes(100), "not of a known format"),
        _item("video without sound", "audio", video(2), "no sound"),
    ]


def _urls() -> list[Item]:
    addresses = (
        "file:///etc/passwd",
        "http://169.254.169.254/latest/meta-data/",
        "http://localhost/x.png",
        "http://[::1]/x.png",
        "http://2130706433/x.png",
        "http://0x7f000001/x.png",
        "https://example.com@127.0.0.1/x.png",
    )
    data = ("data:image/png,abc", "data:image/png;base64,ab\0c", "data:image/png;base64,%%%", "data:;base64")
    return [Item(name=f"url {url!r}", kind="image", url=url, says="") for url in (*addresses, *data)]
