"""A decoder process: reads jobs from its standard input, a socket, until that ends."""

from __future__ import annotations

import base64
import binascii
import json
import os
import resource
import signal
import socket
import sys
from collections.abc import Callable
from typing import Any

from serving.decoding import damages, films, pictures
from serving.decoding.framing import Broken, Rejected, pack, receive, unpack

CLEAN: dict[str, Callable[[bytes, dict[str, Any]], tuple[str, bytes]]] = {
    "image": pictures.clean,
    "audio": films.clean_sound,
    "video": films.clean_video,
}


def main() -> None:
    limits: dict[str, Any] = json.loads(sys.argv[1])
    channel = socket.socket(fileno=os.dup(0))
    memory = limits["decode_mib"] * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    for unused in (resource.RLIMIT_CORE, resource.RLIMIT_FSIZE):
        resource.setrlimit(unused, (0, 0))
    channel.sendall(pack({"ready": True}, 0))
    while True:
        try:
            job, data = unpack(lambda size: receive(channel, size), sys.maxsize)
        except Broken:
            return  # the gateway is gone
        _arm(limits["decode_s"])
        head, payload = _answered(job, data, limits)
        signal.setitimer(signal.ITIMER_REAL, 0)
        del data
        channel.sendall(pack(head, len(payload)))
        channel.sendall(payload)


def _answered(job: dict[str, Any], data: bytes, limits: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
    try:
        if job["base64"]:
            data = _plain(data)
        if not data:
            raise Rejected("no bytes in it; send the whole file")
        wanted = job.get("damage")
        kind, clean = CLEAN[job["kind"]](data, limits) if wanted is None else damages.damaged(data, wanted)
        if len(clean) > job["most"]:
            raise Rejected(
                f"{len(clean) / 2**20:.0f} MiB when decoded and encoded anew, {job['most'] / 2**20:.0f} MiB "
                "are left to this request; send fewer or smaller media"
            )
        return {"ok": True}, f"data:{kind};base64,".encode() + base64.b64encode(clean)
    except Rejected as problem:
        return {"ok": False, "problem": str(problem)}, b""
    except MemoryError:
        return {
            "ok": False,
            "problem": f"needs more than {limits['decode_mib']} MiB; send a smaller one",
        }, b""


def _plain(text: bytes) -> bytes:
    try:
        return base64.b64decode(text.translate(None, b"\r\n"), validate=True)
    except binascii.Error:
        raise Rejected("expected base64 after the comma, got something else; encode the bytes anew") from None


def _arm(seconds: float) -> None:
    """The kernel ends this process when a job takes too long, also when nobody waits for it any more."""
    signal.setitimer(signal.ITIMER_REAL, seconds + 1)
    used = resource.getrusage(resource.RUSAGE_SELF)
    cpu = int(used.ru_utime + used.ru_stime + seconds + 2)
    resource.setrlimit(resource.RLIMIT_CPU, (cpu, resource.RLIM_INFINITY))


if __name__ == "__main__":
    main()
