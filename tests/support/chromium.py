"""A headless Chromium, driven over the pipes of its DevTools protocol: JSON messages that end in NUL."""

import base64
import fcntl
import json
import os
import select
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest

PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PATIENCE = 60
"""Seconds until a page that does not answer fails its test."""
KEYS = {"ArrowDown": 40, "ArrowUp": 38, "PageDown": 34, "Home": 36, "End": 35, "Enter": 13, "Escape": 27, "Tab": 9}


def find_chromium() -> str:
    """Return the program, or skip the test where there is none."""
    found = [path for name in PROGRAMS if (path := shutil.which(name))]
    if not found:
        pytest.skip("no Chromium found: install one (Debian's package is chromium) to test the report in a browser")
    return found[0]


class Chromium:
    """One page of a browser of its own.

    `requests` has the addresses of all that the page asked for, and `messages` what it logged, what failed in it, and its dialogs.
    """

    def __init__(self, folder: Path, width: int = 1280, height: int = 800):
        arguments = [
            find_chromium(), "--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe", "--no-first-run",
            "--disable-background-networking", "--disable-dev-shm-usage", f"--user-data-dir={folder}",
        ]  # fmt: skip
        pipes = [*os.pipe(), *os.pipe()]
        # High numbers, since the browser reads from descriptor 3 and writes to descriptor 4.
        theirs_in, self._out, self._in, theirs_out = (fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 64) for fd in pipes)
        for fd in pipes:
            os.close(fd)
        actions = [(os.POSIX_SPAWN_OPEN, fd, os.devnull, os.O_RDWR, 0) for fd in range(3)]
        actions += [(os.POSIX_SPAWN_DUP2, theirs_in, 3), (os.POSIX_SPAWN_DUP2, theirs_out, 4)]
        self._pid = os.posix_spawn(arguments[0], arguments, os.environ, file_actions=actions, setsid=True)
        os.close(theirs_in)
        os.close(theirs_out)
        self._buffer, self._last = b"", 0
        self.requests: list[str] = []
        self.messages: list[str] = []
        self._session: dict[str, str] = {}
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self._session = {"sessionId": session}
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")
        self.resize(width, height)

    def close(self) -> None:
        """End the browser and all its processes."""
        os.killpg(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)
        os.close(self._in)
        os.close(self._out)

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Call a method of the protocol and return its result."""
        self._last += 1
        message = {"id": self._last, "method": method, "params": params} | self._session
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self._out, data) :]
        while True:
            answer = self._receive()
            if answer.get("id") == self._last:
                assert "error" not in answer, (method, answer)
                return answer["result"]

    def _receive(self) -> dict[str, Any]:
        """Return the next message. Events are noted down."""
        until = time.monotonic() + PATIENCE
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._in], [], [], max(0, until - time.monotonic()))
            data = os.read(self._in, 1 << 20) if ready else b""
            assert data, f"Chromium is silent for {PATIENCE} seconds, or ended"
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\0")
        message = json.loads(line)
        params = message.get("params", {})
        match message.get("method"):
            case "Network.requestWillBeSent":
                self.requests.append(params["request"]["url"])
            case (
                "Runtime.exceptionThrown"
                | "Runtime.consoleAPICalled"
                | "Log.entryAdded"
                | "Page.javascriptDialogOpening"
            ):
                self.messages.append(json.dumps(params))
        return message

    def open(self, address: str) -> None:
        """Open an address and wait until the report in it is ready."""
        self.call("Page.navigate", url=address)
        self.wait("performance.getEntriesByName('ready').length === 1")

    def run(self, code: str) -> Any:
        """Return the value of an expression, awaited."""
        options = {"returnByValue": True, "awaitPromise": True, "allowUnsafeEvalBlockedByCSP": False}
        result = self.call("Runtime.evaluate", expression=code, **options)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def wait(self, condition: str) -> None:
        """Wait until an expression holds."""
        until = time.monotonic() + PATIENCE
        while not self.run(f"Boolean({condition})"):
            assert time.monotonic() < until, f"never became true: {condition}"
            time.sleep(0.02)

    def press(self, *keys: str) -> None:
        """Press keys by name, such as Enter, or characters."""
        for key in keys:
            code = KEYS.get(key, ord(key[0].upper()))
            shared = {"key": key, "windowsVirtualKeyCode": code} | ({} if key in KEYS else {"text": key})
            self.call("Input.dispatchKeyEvent", type="keyDown", **shared)
            self.call("Input.dispatchKeyEvent", type="keyUp", key=key, windowsVirtualKeyCode=code)

    def choose(self, name: str, value: int) -> None:
        """Choose a value of a filter."""
        self.run(f"(() => {{ const s = $('{name}'); s.value = {value}; s.dispatchEvent(new Event('change')); }})()")

    def resize(self, width: int, height: int, dark: bool = False) -> None:
        """Show the page at a size in CSS pixels, like a phone if it is narrow, with the light or the dark colours."""
        phone = width < 600
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=2 if phone else 1,
            mobile=phone,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def screenshot(self, path: Path) -> None:
        """Write what is in view as PNG."""
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))
