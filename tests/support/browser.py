"""Headless Chromium over its DevTools protocol: shows a file in a viewport and says what happened."""

from __future__ import annotations

import base64
import contextlib
import itertools
import json
import shutil
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from websockets.sync.client import connect

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def executable() -> str | None:
    """The browser on this machine, if there is one."""
    return next(filter(None, map(shutil.which, NAMES)), None)


class Browser:
    """`with Browser(profile) as browser: browser.show(file, 400, 800)`; `requests` and `problems` gather."""

    def __init__(self, profile: Path) -> None:
        binary = executable()
        assert binary is not None
        flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0"]
        flags += [f"--user-data-dir={profile}", "--no-first-run", "--hide-scrollbars", "about:blank"]
        self._process = subprocess.Popen(
            [binary, *flags], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        self._opened = contextlib.ExitStack()  # the socket, until the browser is left
        self._ids = itertools.count(1)
        self.requests: list[str] = []
        self.problems: list[str] = []
        try:
            address = _address(profile / "DevToolsActivePort")
            self._socket = self._opened.enter_context(connect(address, max_size=None))
            target = self._browser("Target.createTarget", url="about:blank")["targetId"]
            self._session = self._browser("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
            for domain in ("Page", "Runtime", "Network", "Log"):
                self.call(f"{domain}.enable")
        except BaseException:
            self._process.kill()
            raise

    def __enter__(self) -> Browser:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self._opened.close()
        self._process.kill()
        self._process.wait()

    def show(self, file: Path, width: int, height: int, scheme: str = "light") -> None:
        """Load the file in a viewport of width × height CSS pixels; returns when it is drawn."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=1, mobile=width < 600,
        )  # fmt: skip
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.call("Page.navigate", url=file.as_uri())
        self._until("Page.loadEventFired")
        self.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")

    def evaluate(self, script: str) -> Any:
        """The value of a JavaScript expression, awaited if it is a promise."""
        answer = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def screenshot(self, file: Path) -> Path:
        """A PNG of the whole page, below the viewport too."""
        image = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        file.write_bytes(base64.b64decode(image["data"]))
        return file

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One command to the page."""
        return self._send({"method": method, "params": parameters, "sessionId": self._session})

    def _browser(self, method: str, **parameters: Any) -> dict[str, Any]:
        return self._send({"method": method, "params": parameters})

    def _send(self, message: dict[str, Any]) -> dict[str, Any]:
        number = next(self._ids)
        self._socket.send(json.dumps(message | {"id": number}))
        while True:
            received = self._receive()
            if received.get("id") == number:
                assert "error" not in received, received["error"]
                return received["result"]

    def _until(self, event: str) -> None:
        while self._receive().get("method") != event:
            pass

    def _receive(self) -> dict[str, Any]:
        message = json.loads(self._socket.recv(timeout=120))
        found = message.get("params", {})
        match message.get("method"):
            case "Network.requestWillBeSent":
                self.requests.append(found["request"]["url"])
            case "Runtime.exceptionThrown" | "Runtime.consoleAPICalled" | "Log.entryAdded":
                self.problems.append(json.dumps(found))
        return message


def _address(file: Path) -> str:
    """Where the browser listens, which it writes into its profile."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        lines = file.read_text().split() if file.is_file() else []
        if len(lines) == 2:
            return f"ws://127.0.0.1:{lines[0]}{lines[1]}"
        time.sleep(0.1)
    raise TimeoutError("the browser did not start within 120 s")
