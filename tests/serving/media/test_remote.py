"""Remote media against a real HTTPS server: what is fetched, and what nobody can make it fetch."""

from __future__ import annotations

import asyncio
import gzip
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import httpx
import pytest
import trustme
from pydantic import ValidationError

from benchmarks.serving.corpus import picture
from serving.decoding.framing import Rejected
from serving.gateway.admission import Admission, Held
from serving.gateway.errors import ApiError
from serving.gateway.gateway import build
from serving.gateway.metrics import Metrics
from serving.gateway.stub import StubBackend, StubReplica
from serving.limits import Limits
from serving.media import Fetcher, MediaPool, clean, remote
from serving.media.addresses import is_public
from serving.settings import LoadSettings, RemoteSettings, Settings
from serving.wire import Version

PUBLIC, VICTIM = "127.0.0.2", "127.0.0.1"  # stand for an address of the internet and for one of this machine
HOST = "media.example.org"
BODY = b"a picture"
VERSION = Version(id="v-aaaaaaaaaaaa", path="/models/one", digest="a" * 64)

Page = bytes | Callable[[asyncio.StreamWriter], Awaitable[None]]


def response(body: bytes = BODY, status: str = "200 OK", **headers: str) -> bytes:
    fields = {"content-length": str(len(body)), **{k.replace("_", "-"): v for k, v in headers.items()}}
    head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return f"HTTP/1.1 {status}\r\n{head}\r\n".encode() + body


def moved(to: str) -> bytes:
    return response(b"", "302 Found", location=to)


@dataclass
class Web:
    """The same port at two addresses; `pages` by path, at PUBLIC alone."""

    port: int
    trust: ssl.SSLContext
    pages: dict[str, Page] = field(default_factory=dict)
    asked: list[bytes] = field(default_factory=list)  # heads of requests
    named: list[str | None] = field(default_factory=list)  # server names of TLS
    touched: int = 0  # connections to VICTIM
    looked_up: list[str] = field(default_factory=list)
    answers: list[list[str]] = field(default_factory=list)  # of the resolver, in turn; then always PUBLIC

    def url(self, path: str = "/", host: str = HOST, scheme: str = "https") -> str:
        return f"{scheme}://{host}:{self.port}{path}"

    async def resolve(self, name: str, port: int) -> list[str]:
        self.looked_up.append(name)
        return self.answers.pop(0) if self.answers else [PUBLIC]

    def fetcher(self, hosts: list[str] | None = None, **settings: Any) -> Fetcher:
        return Fetcher(
            RemoteSettings(hosts=hosts or [f"{HOST}:{self.port}"], **settings),
            resolve=self.resolve,
            permits=lambda address: address == PUBLIC or is_public(address),
            trust=self.trust,
        )

    async def get(self, path: str = "/", **settings: Any) -> bytes:
        return await self.fetcher(**settings).fetch(self.url(path), room())

    async def refused(self, path: str = "/", **settings: Any) -> str:
        with pytest.raises(Rejected) as problem:
            await self.get(path, **settings)
        assert not any(inside in str(problem.value) for inside in ("127.", "169.", str(self.port), "Error"))
        return str(problem.value)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            self.asked.append(head)
            page = self.pages.get(head.split()[1].decode(), response())
            if isinstance(page, bytes):
                writer.write(page)
                await writer.drain()
            else:
                await page(writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def touch(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.touched += 1
        writer.close()


@asynccontextmanager
async def web(certified: str = HOST, tls: bool = True, trusted: bool = True) -> AsyncIterator[Web]:
    authority = trustme.CA()
    trust = ssl.create_default_context()
    (authority if trusted else trustme.CA()).configure_trust(trust)
    with socket.socket() as probe:
        probe.bind((PUBLIC, 0))
        port = probe.getsockname()[1]
    site = Web(port, trust)
    context = None
    if tls:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert(certified).configure_cert(context)
        context.sni_callback = lambda _, name, __: site.named.append(name)
    servers = [
        await asyncio.start_server(site.serve, PUBLIC, port, ssl=context),
        await asyncio.start_server(site.touch, VICTIM, port),
    ]
    try:
        yield site
    finally:
        for server in servers:
            server.close()


def room(mib: int = 1024) -> Held:
    return Held(Admission(LoadSettings(bodies_mib=mib), Metrics()))


def run(story: Callable[[], Awaitable[None]]) -> None:
    async def soon() -> None:
        async with asyncio.timeout(60):
            await story()

    asyncio.run(soon())


def test_a_medium_is_fetched_by_a_plain_request(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")

    async def story() -> None:
        async with web() as site:
            assert await site.get("/a%20b?c=d") == BODY
            [head] = site.asked
            first, *fields = head.decode().lower().strip().split("\r\n")
            assert first == "get /a%20b?c=d http/1.1"
            assert sorted(fields) == [
                "accept-encoding: identity",
                "accept: */*",
                "connection: close",
                f"host: {HOST}:{site.port}",
                "user-agent: plumbline",
            ]
            assert (site.named, site.looked_up) == ([HOST], [HOST])

    run(story)


def test_a_name_is_looked_up_once_so_that_it_cannot_be_rebound() -> None:
    async def story() -> None:
        async with web() as site:
            site.answers = [[PUBLIC], [VICTIM]]
            assert await site.get() == BODY
            assert site.answers == [[VICTIM]]  # nobody asked again
            assert await site.refused() == remote.UNREACHABLE
            assert (len(site.asked), site.touched) == (1, 0)

    run(story)


@pytest.mark.parametrize(
    "addresses",
    [
        [],
        [VICTIM],
        [PUBLIC, VICTIM],
        ["::ffff:127.0.0.1"],
        ["169.254.169.254"],
        ["10.0.0.1", PUBLIC],
        ["nonsense"],
    ],
)
def test_a_name_with_an_address_that_is_not_public_is_refused(addresses: list[str]) -> None:
    async def story() -> None:
        async with web() as site:
            site.answers = [addresses]
            assert await site.refused() == remote.UNREACHABLE
            assert (site.asked, site.touched) == ([], 0)

    run(story)


def test_without_the_test_s_own_check_loopback_is_refused() -> None:
    async def story() -> None:
        async with web() as site:
            # As a server makes it: with the system's resolver, for public addresses alone.
            fetcher = Fetcher(RemoteSettings(hosts=[f"localhost:{site.port}"]), trust=site.trust)
            with pytest.raises(Rejected, match="cannot be reached"):
                await fetcher.fetch(site.url(host="localhost"), room())
            assert (site.asked, site.touched) == ([], 0)

    run(story)


@pytest.mark.parametrize(
    ("to", "says"),
    [
        ("http://169.254.169.254/latest/meta-data/", "not fetched from its host"),
        ("https://169.254.169.254/", "not fetched from its host"),
        ("https://elsewhere.example.org/", "not fetched from its host"),
        ("file:///etc/passwd", "expected a URL"),
        ("http://media.example.org/", "not fetched from its host"),
        ("https://user:pw@media.example.org/", "a user or a password"),
        ("/again", "leads on to another URL"),
        ("", "leads on to another URL"),
    ],
)
def test_redirects_lead_nowhere_else(to: str, says: str) -> None:
    async def story() -> None:
        async with web() as site:
            site.pages = {"/": moved(to), "/again": moved("/again")}
            assert says in await site.refused(redirects=3)
            assert site.touched == 0

    run(story)


def test_redirects_are_followed_as_often_as_the_settings_say() -> None:
    async def story() -> None:
        async with web() as site:
            site.pages = {"/": moved("/b"), "/b": moved(site.url("/c")), "/c": response()}
            assert await site.get(redirects=2) == BODY
            assert site.looked_up == [HOST] * 3  # each with a check of its own
            assert "leads on" in await site.refused(redirects=1)
            assert "leads on" in await site.refused()
            site.answers = [[PUBLIC], [VICTIM]]
            assert await site.refused(redirects=2) == remote.UNREACHABLE
            assert site.touched == 0

    run(story)


async def _endless(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
    while True:
        writer.write(b"10000\r\n" + bytes(0x10000) + b"\r\n")
        await writer.drain()


async def _slow(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n")
    while True:
        writer.write(b"x")
        await writer.drain()
        await asyncio.sleep(0.02)


async def _slow_head(writer: asyncio.StreamWriter) -> None:
    while True:
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        await writer.drain()
        await asyncio.sleep(0.02)


@pytest.mark.parametrize(
    "page", [_endless, response(bytes(2**20 + 1)), response(b"", content_length="9" * 18)]
)
def test_what_is_too_large_is_cut_off(page: Page) -> None:
    async def story() -> None:
        async with web() as site:
            site.pages = {"/": page}
            assert "more than 1 MiB" in await site.refused(mib=1)
            site.pages = {"/": response(bytes(2**20))}
            assert len(await site.get(mib=1)) == 2**20

    run(story)


@pytest.mark.parametrize("page", [_slow, _slow_head])
def test_who_answers_slowly_is_not_waited_for(page: Page) -> None:
    async def story() -> None:
        async with web() as site:
            site.pages = {"/": page}
            assert "not complete after 0.5 s" in await site.refused(timeout_s=0.5)

    run(story)


def test_nothing_is_decompressed() -> None:
    async def story() -> None:
        async with web() as site:
            bomb = gzip.compress(bytes(10 * 2**20))
            site.pages = {"/": response(bomb, content_encoding="gzip"), "/unsaid": response(bomb)}
            assert "compresses it unasked" in await site.refused(mib=1)
            assert await site.get("/unsaid", mib=1) == bomb  # which no decoder takes

    run(story)


@pytest.mark.parametrize(
    ("page", "says"),
    [
        (response(status="404 Not Found"), "answers 404, expected 200"),
        (response(status="206 Partial Content"), "answers 206, expected 200"),
        (b"SSH-2.0-OpenSSH\r\n\r\n", "cannot be reached"),
        (b"", "cannot be reached"),
        (response(content_length="10"), "cannot be reached"),  # one byte less comes
        (response(content_length="-1"), "cannot be reached"),
        (b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 100_000, "cannot be reached"),
    ],
)
def test_answers_that_are_none_are_refused_in_words(page: bytes, says: str) -> None:
    async def story() -> None:
        async with web() as site:
            site.pages = {"/": page}
            assert says in await site.refused()

    run(story)


@pytest.mark.parametrize("site", [{"certified": "other.example.org"}, {"trusted": False}])
def test_a_host_that_cannot_prove_its_name_is_refused(site: dict[str, Any]) -> None:
    async def story() -> None:
        async with web(**site) as found:
            assert await found.refused() == remote.UNREACHABLE
            assert found.asked == []

    run(story)


def test_a_host_is_reached_without_tls_only_if_it_is_listed_so() -> None:
    async def story() -> None:
        async with web(tls=False) as site:
            fetcher = site.fetcher([f"http://{HOST}:{site.port}"])
            assert await fetcher.fetch(site.url(scheme="http"), room()) == BODY
            with pytest.raises(Rejected, match="not fetched from its host"):
                await fetcher.fetch(site.url(), room())

    run(story)


@pytest.mark.parametrize(
    ("entry", "taken", "refused"),
    [
        (
            HOST,
            [f"https://{HOST}/a", "HTTPS://MEDIA.Example.ORG:443/a"],
            [
                f"http://{HOST}/",
                f"https://{HOST}:8443/",
                f"https://{HOST}./",
                f"https://evil{HOST}/",
                f"https://a.{HOST}/",
                f"https://{HOST}.evil.org/",
                f"https://{HOST}@evil.org/",
                f"https://{HOST}\\@evil.org/",
                f"https://evil.org/?{HOST}",
                f"https://evil.org#{HOST}",
                f"https://{HOST}%00.evil.org/",
                f"https://user@{HOST}/",
                f"https:/{HOST}/",
                f"https://{HOST}/\r\nx: y",
                f"https://{HOST}/" + "a" * 5000,
                "https://[::1]/",
                "https://2130706433/",
                "https:///",
                "https://ⓔxample/",
            ],
        ),
        (
            "*.example.org",
            ["https://a.example.org/", "https://b.a.example.org/", "https://xn--bcher-kva.example.org/"],
            [
                "https://example.org/",
                "https://evilexample.org/",
                "https://.example.org/",
                "https://a..example.org/",
            ],
        ),
    ],
)
def test_urls_are_taken_of_listed_hosts_alone(entry: str, taken: list[str], refused: list[str]) -> None:
    fetcher = Fetcher(RemoteSettings(hosts=[entry]))
    for url in taken:
        assert fetcher._admitted(url).host.endswith("example.org")
    for url in refused:
        with pytest.raises(Rejected):
            fetcher._admitted(url)


def test_a_remote_picture_reaches_the_replica_as_a_clean_data_url(pool: MediaPool) -> None:
    async def story() -> None:
        async with web() as site:
            site.pages = {"/": response(picture(), content_type="text/html"), "/bad": response()}
            body = asking(site.url())

            off = StubReplica("stable", "a", VERSION)
            answer = await posted(off, body, partial(clean, limits=Limits(), pool=pool))
            assert answer.status_code == 400 and off.asked == site.asked == []
            message = answer.json()["error"]["message"]
            assert message.startswith("image 1: remote URLs are not taken here; send it as a data URL")

            on = StubReplica("stable", "a", VERSION)
            cleaner = partial(clean, limits=Limits(), pool=pool, fetcher=site.fetcher())
            assert (await posted(on, body, cleaner)).status_code == 200
            [(_, seen, _)] = on.asked
            url = seen["messages"][0]["content"][0]["image_url"]["url"]
            assert url.startswith("data:image/png;base64,iVBOR")
            answer = await posted(on, asking(site.url("/bad")), cleaner)
            assert answer.status_code == 400 and len(on.asked) == 1
            error = answer.json()["error"]
            assert error["message"].startswith("image 1: not a picture of a known format")
            assert error["param"] == "messages[0].content[0].image_url.url"

    run(story)


def asking(url: str) -> dict[str, Any]:
    content = [{"type": "image_url", "image_url": {"url": url}}]
    return {"model": "stub", "messages": [{"role": "user", "content": content}]}


async def posted(replica: StubReplica, body: dict[str, Any], cleaner: Any) -> httpx.Response:
    app = build(Settings(), StubBackend(replica), clean=cleaner)
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as connection:
        return await connection.post("/v1/chat/completions", json=body, timeout=60)


def test_bytes_count_as_they_come_and_a_full_server_says_so() -> None:
    async def story() -> None:
        async with web() as site:
            site.pages = {"/": response(bytes(3 * 2**20))}
            held = room(mib=2)
            with pytest.raises(ApiError) as full:
                await site.fetcher().fetch(site.url(), held)
            assert full.value.status == 503 and held.size <= 2 * 2**20
            counted = room()
            await site.fetcher().fetch(site.url(), counted)
            assert counted.size == 3 * 2**20

    run(story)


def test_only_so_many_are_fetched_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "AT_ONCE", 2)

    async def story() -> None:
        async with web() as site:
            arrived, go = asyncio.Semaphore(0), asyncio.Event()

            async def held_back(writer: asyncio.StreamWriter) -> None:
                arrived.release()
                await go.wait()
                writer.write(response())

            site.pages = {"/": held_back}
            fetcher = site.fetcher()
            first = [asyncio.create_task(fetcher.fetch(site.url(), room())) for _ in range(2)]
            for _ in first:
                await arrived.acquire()
            with pytest.raises(ApiError) as busy:
                await fetcher.fetch(site.url(), room())
            assert busy.value.status == 503 and busy.value.retry_after_s
            go.set()
            assert await asyncio.gather(*first) == [BODY] * 2
            assert await fetcher.fetch(site.url(), room()) == BODY

    run(story)


@pytest.mark.parametrize(
    "entry",
    [
        "",
        "*",
        "*.org",
        "*.*.org",
        "a.*.org",
        "Media.org",
        "media.org/a",
        "me@media.org",
        "ftp://media.org",
        "[::1]",
    ],
)
def test_what_is_no_host_is_refused_in_the_settings(entry: str) -> None:
    with pytest.raises(ValidationError):
        RemoteSettings(hosts=[entry])


def test_nothing_is_fetched_without_a_list() -> None:
    assert Settings().media.remote is None
    with pytest.raises(ValidationError):
        RemoteSettings(hosts=[])
