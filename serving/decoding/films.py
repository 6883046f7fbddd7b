"""Sounds and videos, decoded by FFmpeg's libraries with the format fixed by content.

A fixed demuxer never follows a playlist to other files, as a guessed one might.
"""

from __future__ import annotations

import io
import wave
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from typing import Any

import av
from av.error import FFmpegError

from serving.decoding.framing import Rejected
from serving.decoding.pictures import check_size

SOUNDS = "send WAV, FLAC, OGG, MP3, MP4 or WEBM"
VIDEOS = "send MP4 or WEBM"
SOUND_CODECS = ("flac", "opus", "vorbis", "mp3", "mp3float", "aac", "libopus", "libvorbis")
VIDEO_CODECS = ("h264", "hevc", "vp8", "vp9", "libvpx", "libvpx-vp9", "av1", "libdav1d", "mpeg4", "mjpeg")
RATES = (4_000, 192_000)  # Hz
RATE = 16_000  # Hz, of what comes out: audio encoders take it, so that no engine has to resample
CHANNELS = 8
MIN_FRAMES = 2  # engines that sample pairs of frames fail on less
FRAME_RATES = (Fraction(1, 60), Fraction(240))  # frames per second


def clean_sound(data: bytes, limits: dict[str, Any]) -> tuple[str, bytes]:
    """WAV, 16 bits, mono, 16 kHz. Raises Rejected."""
    with _opened(data, _sound_format(data), SOUNDS) as container:
        if not container.streams.audio:
            raise Rejected(f"no sound in it; {SOUNDS}")
        stream = container.streams.audio[0]
        codec, rate, channels = stream.codec_context.name, stream.rate, stream.codec_context.channels
        if not (codec in SOUND_CODECS or codec.startswith("pcm_")):
            raise Rejected(f"codec {codec!r:.30}; {SOUNDS}")
        if not RATES[0] <= rate <= RATES[1]:
            raise Rejected(f"sample rate {rate} Hz, expected {RATES[0]} to {RATES[1]} Hz; resample it")
        if not 1 <= channels <= CHANNELS:
            raise Rejected(f"{channels} channels, expected 1 to {CHANNELS}; mix it down")
        return "audio/wav", _wave(container, stream, rate, limits["audio_seconds"])


def _wave(container: Any, stream: Any, rate: int, most_s: int) -> bytes:
    resampler = av.AudioResampler(format="s16", layout="mono", rate=RATE)
    out, samples = io.BytesIO(), 0
    with wave.open(out, "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(RATE)
        for frame in _frames(container, stream, "sound"):
            samples += frame.samples
            if samples > most_s * rate:
                raise Rejected(f"more than {most_s} s of sound, at most {most_s} s; shorten it")
            frame.pts = None  # what the file says of times does not count
            for piece in resampler.resample(frame):
                sound.writeframes(piece.to_ndarray().tobytes())
        if samples:
            for piece in resampler.resample(None):
                sound.writeframes(piece.to_ndarray().tobytes())
    if not samples:
        raise Rejected("no samples in it, expected at least one; send a sound that is not empty")
    return out.getvalue()


def clean_video(data: bytes, limits: dict[str, Any]) -> tuple[str, bytes]:
    """MP4 with H.264 at a constant frame rate, without sound. Raises Rejected."""
    with _opened(data, _video_format(data), VIDEOS) as container:
        if not container.streams.video:
            raise Rejected(f"no pictures in it; {VIDEOS}")
        stream = container.streams.video[0]
        context = stream.codec_context
        if context.name not in VIDEO_CODECS:
            raise Rejected(f"codec {context.name!r:.30}; send H.264, HEVC, VP8, VP9, AV1, MPEG-4 or MJPEG")
        check_size(context.width, context.height, limits["image_mpx"])
        context.thread_count = 1
        rate = stream.average_rate or stream.guessed_rate
        if not rate or not FRAME_RATES[0] <= rate <= FRAME_RATES[1]:
            got = f"{float(rate):g}" if rate else "none"
            raise Rejected(f"frame rate {got}, expected 1/60 to 240 per second; encode it anew")
        return "video/mp4", _film(container, stream, Fraction(rate).limit_denominator(1001), limits)


def _film(container: Any, stream: Any, rate: Fraction, limits: dict[str, Any]) -> bytes:
    out, count, size = io.BytesIO(), 0, 0
    most, most_bytes = limits["video_frames"], limits["video_mib"] * 2**20
    with av.open(out, "w", format="mp4") as film:
        target: Any = film.add_stream("libx264", rate=rate, options={"crf": "12", "preset": "veryfast"})
        target.pix_fmt = "yuv420p"
        target.codec_context.thread_count = 1
        for frame in _frames(container, stream, "video"):
            count, size = count + 1, size + 3 * frame.width * frame.height
            if count > most:
                raise Rejected(f"more than {most} frames, at most {most}; send fewer frames per second")
            if size > most_bytes:
                raise Rejected(
                    f"more than {limits['video_mib']} MiB when decoded, at most {limits['video_mib']} MiB; "
                    "send fewer or smaller frames"
                )
            if count == 1:  # the encoder takes even sides only
                target.width, target.height = frame.width & ~1, frame.height & ~1
            even = frame.reformat(target.width, target.height, "yuv420p")
            even.pts, even.time_base, even.pict_type = count - 1, 1 / rate, 0
            film.mux(target.encode(even))
        if count < MIN_FRAMES:
            raise Rejected(
                f"frames: {count}, expected at least {MIN_FRAMES}; send a picture, or the whole video"
            )
        film.mux(target.encode(None))
    return out.getvalue()


@contextmanager
def _opened(data: bytes, form: str, expected: str) -> Iterator[Any]:
    try:
        container = av.open(io.BytesIO(data), "r", format=form, options={"protocol_whitelist": "none"})
    except (FFmpegError, ValueError):
        raise Rejected(f"its header is damaged or incomplete; {expected}") from None
    with container:
        yield container


def _frames(container: Any, stream: Any, what: str) -> Iterator[Any]:
    frames = container.decode(stream)
    while True:
        try:
            frame = next(frames)
        except (StopIteration, EOFError):
            return
        except (FFmpegError, ValueError):
            raise Rejected(f"the {what} is damaged or incomplete; send the whole file") from None
        yield frame


def _sound_format(data: bytes) -> str:
    if data[:4] == b"RIFF" and data[8:12] == b"WAVE":
        return "wav"
    if data[:4] in (b"fLaC", b"OggS"):
        return {b"fLaC": "flac", b"OggS": "ogg"}[data[:4]]
    if data[:3] == b"ID3" or (data[:1] == b"\xff" and data[1:2] in (b"\xfb", b"\xfa", b"\xf3", b"\xf2")):
        return "mp3"
    return _container(data, SOUNDS)


def _video_format(data: bytes) -> str:
    return _container(data, VIDEOS)


def _container(data: bytes, expected: str) -> str:
    if data[4:8] == b"ftyp":
        return "mov"
    if data[:4] == b"\x1a\x45\xdf\xa3":
        return "matroska"
    raise Rejected(f"not of a known format; {expected}")
