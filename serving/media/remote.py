"""Media behind addresses: fetched from listed hosts alone, over connections that nobody can turn elsewhere.

A name is looked up once, every address of it must be public, and one of those very addresses is connected to.
"""

from __future__ import annotations

import asyncio
import re
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import httpcore
import httpx

from serving.decoding.framing import Rejected
from serving.gateway import logs
from serving.gateway.admission import MIB, Held
from serving.gateway.errors import ApiError
from serving.media.addresses import is_public
from serving.settings import HOST_NAME, RemoteSettings

AT_ONCE = 32  # media being fetched by one gateway
MAX_URL = 4096  # characters
PORTS = {"https": 443, "http": 80}
NAME = re.compile(HOST_NAME)
REDIRECTS = (301, 302, 303, 307, 308)
HEADERS = [
    (b"Accept", b"*/*"),
    (b"Accept-Encoding", b"identity"),
    (b"Connection", b"close"),
    (b"User-Agent", b"plumbline"),
]
UNREACHABLE = (
    "its host cannot be reached over a connection that can be trusted; check the URL, or send a data URL"
)

Resolve = Callable[[str, int], Awaitable[Sequence[str]]]


class _NotPublic(Exception):
    """A name has an address that is not of the public internet."""


@dataclass(frozen=True)
class _Host:
    """An entry of the allow-list; `name` begins with a dot where it stands for what is below it."""

    scheme: str
    name: str
    port: int

    @classmethod
    def of(cls, entry: str) -> _Host:
        scheme, _, rest = entry.rpartition("://")
        name, _, port = rest.partition(":")
        scheme = scheme or "https"
        return cls(scheme, name.removeprefix("*"), int(port or PORTS[scheme]))

    def admits(self, url: httpx.URL, name: str) -> bool:
        known = name.endswith(self.name) if self.name.startswith(".") else name == self.name
        return known and (url.scheme, url.port or PORTS.get(url.scheme)) == (self.scheme, self.port)


class Fetcher:
    """Of one event loop.

    Args:
        settings: hosts and bounds.
        resolve: (name, port) -> addresses; of the system.
        permits: whether an address may be connected to. Nothing but code can permit more than public ones.
        trust: certificates; those that httpx comes with.
    """

    def __init__(
        self,
        settings: RemoteSettings,
        *,
        resolve: Resolve | None = None,
        permits: Callable[[str], bool] = is_public,
        trust: ssl.SSLContext | None = None,
    ) -> None:
        self._settings = settings
        self._hosts = [_Host.of(entry) for entry in settings.hosts]
        self._network = _Pinned(resolve or _resolved, permits, settings.timeout_s)
        self._trust = trust or httpx.create_ssl_context()
        self._turns = asyncio.Semaphore(AT_ONCE)

    async def fetch(self, url: str, held: Held) -> bytes:
        """The bytes behind a URL, counted in `held` as they come. Raises Rejected, and ApiError (503)."""
        if self._turns.locked():
            raise ApiError(503, "too many media are being fetched; try again", retry_after_s=2)
        seconds = self._settings.timeout_s
        try:
            async with self._turns, asyncio.timeout(seconds):
                return await self._followed(self._admitted(url), held)
        except TimeoutError:
            raise Rejected(f"not complete after {seconds:g} s; send it as a data URL") from None
        except (
            _NotPublic,
            OSError,
            httpcore.NetworkError,
            httpcore.TimeoutException,
            httpcore.ProtocolError,
        ):
            raise Rejected(UNREACHABLE) from None

    def _admitted(self, text: str) -> httpx.URL:
        """A URL of a listed host. One parser says what is checked and what is asked for."""
        try:
            url = httpx.URL(text[: MAX_URL + 1])
        except (httpx.InvalidURL, UnicodeError):
            url = httpx.URL("")
        if len(text) > MAX_URL or not url.host:
            raise Rejected(f"expected a URL of at most {MAX_URL} characters; correct it, or send a data URL")
        if url.userinfo:
            raise Rejected("a URL with a user or a password is not taken; send it as a data URL")
        name = url.raw_host.decode("ascii").lower()
        if not NAME.fullmatch(name) or not any(host.admits(url, name) for host in self._hosts):
            raise Rejected("media are not fetched from its host, port or scheme here; send it as a data URL")
        return url

    async def _followed(self, url: httpx.URL, held: Held) -> bytes:
        for _ in range(self._settings.redirects + 1):
            found = await self._get(url, held)
            if isinstance(found, bytes):
                return found
            try:
                url = self._admitted(str(url.join(found)))
            except (httpx.InvalidURL, UnicodeError):
                break
        raise Rejected("it leads on to another URL; give the one where it ends, or send a data URL")

    async def _get(self, url: httpx.URL, held: Held) -> bytes | str:
        """The body, or where it is instead. A connection serves one request and ends with it."""
        target = httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path)
        pool = httpcore.AsyncConnectionPool(ssl_context=self._trust, network_backend=self._network)
        async with pool, pool.stream("GET", target, headers=HEADERS) as response:
            headers = {name.lower(): value for name, value in response.headers}
            if response.status in REDIRECTS:
                return headers.get(b"location", b"").decode("latin-1")
            if response.status != 200:
                raise Rejected(f"its host answers {response.status}, expected 200; check the URL")
            if headers.get(b"content-encoding", b"identity").lower() != b"identity":
                raise Rejected("its host compresses it unasked; send it as a data URL")
            return await self._body(response, headers, held)

    async def _body(self, response: httpcore.Response, headers: dict[bytes, bytes], held: Held) -> bytes:
        most = self._settings.mib * MIB
        length = headers.get(b"content-length", b"0")
        body = bytearray()
        if int(length) <= most:  # the protocol's own parser takes digits only
            async for part in response.aiter_stream():
                if len(body) + len(part) > most:
                    break
                held.add(len(part))
                body += part
            else:
                return bytes(body)
        raise Rejected(f"more than {self._settings.mib} MiB, at most {self._settings.mib} MiB; scale it down")


class _Pinned(httpcore.AsyncNetworkBackend):
    """Connects to the addresses that a name had when it was checked; nothing looks the name up again."""

    def __init__(self, resolve: Resolve, permits: Callable[[str], bool], timeout_s: float) -> None:
        self._resolve, self._permits, self._timeout_s = resolve, permits, timeout_s
        self._sockets: httpcore.AsyncNetworkBackend = httpcore.AnyIOBackend()  # type: ignore[assignment]

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        addresses = list(dict.fromkeys(await self._resolve(host, port)))
        if not addresses or not all(map(self._permits, addresses)):
            logs.event("an address of a listed host is not public", host=host)
            raise _NotPublic
        share = self._timeout_s / len(addresses)  # one that does not answer leaves time for the others
        for address in addresses[:-1]:
            try:
                return await self._sockets.connect_tcp(address, port, share)
            except (httpcore.ConnectError, httpcore.ConnectTimeout):
                continue
        return await self._sockets.connect_tcp(addresses[-1], port, share)


async def _resolved(name: str, port: int) -> list[str]:
    found = await asyncio.get_running_loop().getaddrinfo(name, port, type=socket.SOCK_STREAM)
    return [str(address[0]) for *_, address in found]
