"""A headless Chromium, driven through its DevTools protocol, before the page of a real gateway."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pytest
import uvicorn
from websockets.sync.client import ClientConnection, connect

from serving import page
from serving.gateway.gateway import build
from serving.gateway.stub import StubBackend, StubReplica
from serving.settings import Settings
from serving.wire import Answer, Kind, Refusal, Version

PATIENCE_S = 20
VERSIONS = {slot: f"v-{slot[0] * 12}" for slot in ("stable", "canary")}


class Saying(StubReplica):
    """A stub that says what a test wants said: three chunks of a word, then the rest."""

    says = "a red square"

    async def answer(
        self, kind: Kind, body: dict[str, Any], request_id: str
    ) -> AsyncGenerator[Answer | Refusal, None]:
        words = self.says.split(" ")
        async for item in super().answer(kind, body, request_id):
            if isinstance(item, Refusal) or not item.body["choices"]:
                yield item
                continue
            [choice] = item.body["choices"]
            last = choice["finish_reason"] is not None
            piece = " ".join(words) if last or not words else words.pop(0) + " "
            delta = choice["delta"] | {"content": piece}
            yield replace(item, body=item.body | {"choices": [choice | {"delta": delta}]})


class Told(StubBackend):
    """A stub with a history."""

    def __init__(self, *replicas: StubReplica, **given: Any) -> None:
        super().__init__(*replicas, **given)
        self.told: list[dict[str, Any]] = []

    async def history(self) -> list[dict[str, Any]]:
        return self.told


@dataclass
class Kept:
    """A feedback store that keeps what it gets in a list."""

    rated: list[dict[str, Any]] = field(default_factory=list)
    answers: dict[str, str] = field(default_factory=dict)  # answer id -> version
    consents: list[bool] = field(default_factory=list)
    refuse: Refusal | None = None

    async def remember(self, *, answer_id: str, version: str, header: bool, **_: Any) -> None:
        self.answers[answer_id] = version
        self.consents.append(header)

    async def rate(self, *, client: str, feedback: dict[str, Any]) -> Refusal | None:
        if self.refuse is None:
            self.rated.append(feedback)
        return self.refuse


@dataclass(frozen=True)
class OneKey:
    """The only key there is."""

    key: str
    id: str = "tester"

    def check(self, authorization: str | None) -> OneKey | None:
        return self if authorization == f"Bearer {self.key}" else None


@dataclass
class Site:
    """A served gateway and what stands behind it."""

    url: str
    backend: Told
    stable: Saying
    canary: Saying | None
    kept: Kept

    @property
    def asked(self) -> list[dict[str, Any]]:
        """Bodies that replicas got."""
        both = [self.stable, *([self.canary] if self.canary else [])]
        return [body for replica in both for _, body, _ in replica.asked]


async def clean(parts: list[Any]) -> list[str]:
    """Media as they came: decoding them is tested elsewhere."""
    return [part.url for part in parts]


@pytest.fixture
def listen() -> Iterator[Callable[[Any], str]]:
    """listen(app) -> address of the application; ends with the test."""
    running: list[tuple[uvicorn.Server, threading.Thread]] = []

    def start(app: Any) -> str:
        listener = socket.create_server(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        running.append((server, thread))
        return f"http://127.0.0.1:{listener.getsockname()[1]}/"

    yield start
    for server, thread in running:
        server.should_exit = True
        thread.join(timeout=PATIENCE_S)


@pytest.fixture
def serve(listen: Callable[[Any], str]) -> Callable[..., Site]:
    """serve(canary=False, key=None, feedback=True) -> Site."""

    def start(*, canary: bool = False, key: str | None = None, feedback: bool = True) -> Site:
        made = [
            Saying(slot, f"{slot}-1", Version(id=VERSIONS[slot], path="", digest=""))
            for slot in ("stable", "canary")[: 1 + canary]
        ]
        backend, kept = Told(*made, model="glyphs", canary=0.25 if canary else 0.0), Kept()
        app = build(
            Settings(),
            backend,
            keys=OneKey(key) if key else None,
            clean=clean,
            feedback=kept if feedback else None,
            page=page.mount,
        )
        return Site(listen(app), backend, made[0], made[1] if canary else None, kept)

    return start


@pytest.fixture(scope="session")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a running browser's DevTools."""
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if found is None:
        if os.environ.get("CI") == "true":
            pytest.fail("CI needs chromium on PATH")
        pytest.skip("chromium is not on PATH")
    profile = tmp_path_factory.mktemp("profile")
    quiet = (
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
    )
    command = [found, "--headless", "--no-sandbox", "--disable-gpu", *quiet, f"--user-data-dir={profile}"]
    process = subprocess.Popen(
        [*command, "--remote-debugging-port=0", "about:blank"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        yield f"http://127.0.0.1:{_devtools_port(profile / 'DevToolsActivePort', process)}"
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _devtools_port(file: Path, process: subprocess.Popen[bytes]) -> str:
    until = time.monotonic() + 2 * PATIENCE_S
    while time.monotonic() < until and process.poll() is None:
        if file.exists() and (lines := file.read_text().splitlines()):
            return lines[0]
        time.sleep(0.05)
    pytest.fail(f"chromium did not open its DevTools port (exit code {process.poll()})")


class Tab:
    """One page of the browser."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket
        self._numbers = itertools.count(1)
        self.console: list[str] = []  # errors and messages, policy violations among them

    def send(self, method: str, **params: Any) -> dict[str, Any]:
        number = next(self._numbers)
        self._socket.send(json.dumps({"id": number, "method": method, "params": params}))
        while True:
            message = json.loads(self._socket.recv(timeout=PATIENCE_S))
            self._note(message)
            if message.get("id") == number:
                assert "error" not in message, message
                return message["result"]

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression; promises are awaited."""
        result = self.send("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def wait(self, script: str) -> Any:
        """The first truthy value of an expression."""
        until = time.monotonic() + PATIENCE_S
        while time.monotonic() < until:
            value = self.run(script)
            if value not in (None, False, 0, ""):  # an element comes as an empty object
                return value
            time.sleep(0.03)
        pytest.fail(f"never true: {script}\n{self.text()}\n{self.console}")

    def open(self, url: str) -> None:
        self.send("Page.navigate", url=url)
        self.wait(
            "document.readyState === 'complete' && !document.querySelector('option[value=\"\"]')?.selected "
            "|| !!document.querySelector('#notice .problem')"
        )

    def text(self, selector: str = "body") -> str:
        return self.run(f"document.querySelector({json.dumps(selector)})?.innerText ?? ''")

    def attach(self, selector: str, file: Path) -> None:
        """Choose a file in an input."""
        script = f"document.querySelector({json.dumps(selector)})"
        self.wait(script)
        found = self.send("Runtime.evaluate", expression=script)["result"]["objectId"]
        self.send("DOM.setFileInputFiles", files=[str(file)], objectId=found)

    def click(self, selector: str) -> None:
        """A real click of the mouse in the middle of the element."""
        at = self.wait(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)});"
            "if (!e || e.matches(':disabled')) return;"
            "e.scrollIntoView({block: 'center'}); const b = e.getBoundingClientRect();"
            "return b.width && [b.x + b.width / 2, b.y + b.height / 2]; })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.send("Input.dispatchMouseEvent", type=kind, x=at[0], y=at[1], button="left", clickCount=1)

    def type(self, selector: str, text: str) -> None:
        self.click(selector)
        self.send("Input.insertText", text=text)

    def ask(self, view: str, text: str) -> None:
        self.type(f"{view} .composer textarea", text)
        self.click(f"{view} .send")

    def answered(self) -> None:
        """Wait for the end of the last answer of the chat."""
        self.wait("document.querySelector('#chat-log .answer:last-child footer:not([hidden])')")

    def key(self, name: str, code: int, text: str = "") -> None:
        common = {"key": name, "code": name, "windowsVirtualKeyCode": code}
        self.send("Input.dispatchKeyEvent", type="keyDown", text=text, **common)
        self.send("Input.dispatchKeyEvent", type="keyUp", **common)

    def _note(self, message: dict[str, Any]) -> None:
        match message.get("method"):
            case "Runtime.exceptionThrown":
                self.console.append(json.dumps(message["params"]["exceptionDetails"]))
            case "Log.entryAdded":
                self.console.append(message["params"]["entry"]["text"])
            case _:
                pass


@pytest.fixture
def tab(chromium: str) -> Iterator[Tab]:
    with urlopen(Request(f"{chromium}/json/new?about:blank", method="PUT")) as answer:
        target = json.load(answer)
    with connect(target["webSocketDebuggerUrl"], max_size=None) as socket:
        made = Tab(socket)
        for domain in ("Page", "Runtime", "Log"):
            made.send(f"{domain}.enable")
        yield made
    urlopen(f"{chromium}/json/close/{target['id']}").close()
