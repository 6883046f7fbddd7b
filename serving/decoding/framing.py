"""Messages between the gateway and a decoder: a JSON object and bytes; never pickle, always bounded."""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import Callable
from typing import Any

_SIZES = struct.Struct("!IQ")
MAX_HEAD = 16 * 1024


class Broken(Exception):
    """The other side ended, or said what it must not say."""


class Rejected(Exception):
    """A medium that is not taken. The message says what, got, expected and how to fix it."""


def pack(head: dict[str, Any], size: int) -> bytes:
    """What goes before `size` bytes of payload."""
    text = json.dumps(head).encode()
    return _SIZES.pack(len(text), size) + text


def receive(channel: socket.socket, size: int, before: Callable[[], None] = lambda: None) -> bytes:
    """Exactly `size` bytes; `before` is called before each part. Raises Broken when the other side ends."""
    data = bytearray(size)
    view, got = memoryview(data), 0
    while got < size:
        before()
        count = channel.recv_into(view[got:])
        if not count:
            raise Broken("the other side ended")
        got += count
    return bytes(data)


def unpack(read: Callable[[int], bytes], most: int) -> tuple[dict[str, Any], bytes]:
    """`read(n)` returns exactly n bytes. Raises Broken for a payload of more than `most` bytes."""
    length, size = _SIZES.unpack(read(_SIZES.size))
    if length > MAX_HEAD or size > most:
        raise Broken(f"a message of {length} + {size} bytes")
    try:
        head = json.loads(read(length))
    except ValueError as error:
        raise Broken(str(error)) from None
    return head, read(size)
