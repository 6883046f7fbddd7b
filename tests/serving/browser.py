"""A headless Chromium, driven through its DevTools protocol."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pytest
from websockets.sync.client import ClientConnection, connect

PATIENCE_S = 20


@contextmanager
def running(profile: Path) -> Iterator[str]:
    """Address of a running browser's DevTools. Skips the test where there is no Chromium."""
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if found is None:
        if os.environ.get("CI") == "true":
            pytest.fail("CI needs chromium on PATH")
        pytest.skip("chromium is not on PATH")
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


@contextmanager
def opened(chromium: str) -> Iterator[Tab]:
    """A new tab of the browser."""
    with urlopen(Request(f"{chromium}/json/new?about:blank", method="PUT")) as answer:
        target = json.load(answer)
    with connect(target["webSocketDebuggerUrl"], max_size=None) as socket:
        made = Tab(socket)
        for domain in ("Page", "Runtime", "Log"):
            made.send(f"{domain}.enable")
        yield made
    urlopen(f"{chromium}/json/close/{target['id']}").close()
