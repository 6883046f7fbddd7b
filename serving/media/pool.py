"""Processes that decode what clients send. One that hangs, breaks or runs out of memory is replaced."""

from __future__ import annotations

import asyncio
import json
import queue
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from serving.decoding.framing import Broken, Rejected, pack, receive, unpack
from serving.gateway import logs
from serving.gateway.errors import ApiError
from serving.limits import Limits
from serving.settings import MediaSettings

START_S = 60.0  # on a busy machine
WAIT_S = 30.0  # a medium waits no longer for a decoder
ROOT = Path(__file__).parents[2]


class Decoder:
    """One process, used by one thread at a time; it starts with its first job."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: socket.socket | None = None

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    def answer(self, job: Mapping[str, Any], data: bytes) -> str:
        """A data URL of at most `job["most"]` bytes before base64. Raises Rejected, and ApiError (503)."""
        if self._process is None or self._process.poll() is not None:
            self.stop()
            self._start()
        deadline = time.monotonic() + self._limits.decode_s
        try:
            self._send(pack(dict(job), len(data)), deadline)
            self._send(data, deadline)
            head, payload = unpack(lambda size: self._read(size, deadline), job["most"] * 4 // 3 + 64)
        except TimeoutError:
            self.stop()
            raise Rejected(f"not decoded after {self._limits.decode_s:g} s; send a smaller one") from None
        except (Broken, OSError):
            self.stop()
            raise Rejected("the decoder could not stand it; encode it anew, or send a smaller one") from None
        if not head.get("ok"):
            raise Rejected(str(head.get("problem"))[:300])
        return payload.decode("ascii")

    def stop(self) -> None:
        """Kill the process; the next job gets a new one."""
        if self._channel is not None:
            self._channel.close()
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        self._process = self._channel = None

    def _start(self) -> None:
        ours, theirs = socket.socketpair()
        wanted = ("decode_mib", "decode_s", "image_mpx", "video_frames", "video_mib", "audio_seconds")
        limits = {name: getattr(self._limits, name) for name in wanted}
        # Nothing of this process's environment: it may hold credentials.
        environment = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "serving.decoding", json.dumps(limits)],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd="/",
                env=environment,
            )
        self._channel = ours
        try:
            unpack(lambda size: self._read(size, time.monotonic() + START_S), 0)
        except (Broken, OSError) as error:
            self.stop()
            logs.failure("a decoder process does not start", error)
            raise ApiError(503, "media cannot be decoded right now; try again", retry_after_s=5) from None

    def _send(self, data: bytes, deadline: float) -> None:
        assert self._channel is not None
        self._channel.settimeout(max(0.001, deadline - time.monotonic()))
        self._channel.sendall(data)

    def _read(self, size: int, deadline: float) -> bytes:
        channel = self._channel
        assert channel is not None
        return receive(channel, size, lambda: channel.settimeout(max(0.001, deadline - time.monotonic())))


class MediaPool:
    """Decoders and the queue before them, as long as the requests that are let in.

    Args:
        settings: how many processes.
        limits: of one request; each process keeps to them by itself as well.
        wait_s: bound on the time in the queue.
    """

    def __init__(self, settings: MediaSettings, limits: Limits, wait_s: float = WAIT_S) -> None:
        self.decoders = [Decoder(limits) for _ in range(settings.decoders)]
        self._free: queue.SimpleQueue[Decoder] = queue.SimpleQueue()
        for decoder in self.decoders:
            self._free.put(decoder)
        self._threads = ThreadPoolExecutor(settings.decoders, "decoder")
        self._patience_s = wait_s + limits.decode_s

    async def decode(self, kind: str, data: bytes | str, *, base64: bool, most: int) -> str:
        """A clean data URL. Raises Rejected, and ApiError (503) after too long a wait."""
        return await self._done({"kind": kind, "base64": base64, "most": most}, data)

    async def damage(self, url: str, damage: Mapping[str, Any], *, most: int) -> str:
        """A clean picture's data URL, damaged as `serving.decoding.damages` says; raises as `decode`."""
        job = {"damage": dict(damage), "base64": True, "most": most}
        return await self._done(job, url.partition(",")[2])

    async def _done(self, job: Mapping[str, Any], data: bytes | str) -> str:
        work = self._threads.submit(self._decode, job, data)
        try:
            async with asyncio.timeout(self._patience_s):
                return await asyncio.wrap_future(work)  # one that is cancelled leaves the queue
        except TimeoutError:
            raise ApiError(503, "too many media wait to be decoded; try again", retry_after_s=2) from None

    def _decode(self, job: Mapping[str, Any], data: bytes | str) -> str:
        decoder = self._free.get()
        try:
            plain = data.encode("ascii", "replace") if isinstance(data, str) else data
            return decoder.answer(job, plain)
        finally:
            self._free.put(decoder)

    def close(self) -> None:
        """End the processes, after the jobs that run."""
        self._threads.shutdown(cancel_futures=True)
        for decoder in self.decoders:
            decoder.stop()
