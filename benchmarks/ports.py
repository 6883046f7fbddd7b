"""Ports for servers that are started to be measured or tested."""

from __future__ import annotations

import socket


def free_port() -> int:
    """One of loopback that nobody listens on at this moment."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]
