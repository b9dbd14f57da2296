"""Headless Chromium, driven through Debian's chromedriver: a page at any width, in any theme, and what it looks like.

The driver is asked over HTTP (https://www.w3.org/TR/webdriver2/), and Chromium through it by the DevTools protocol.
"""

from __future__ import annotations

import base64
import contextlib
import json
import re
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_SECONDS = 120
_SWITCHES = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
)


class Browser:
    """A browser with one tab."""

    def __init__(self, port: int, profile: Path) -> None:
        self._root = f"http://127.0.0.1:{port}"
        chrome = {"binary": "/usr/bin/chromium", "args": [*_SWITCHES, f"--user-data-dir={profile}"]}
        wanted = {"browserName": "chrome", "goog:chromeOptions": chrome, "goog:loggingPrefs": {"browser": "ALL"}}
        made = self._ask("POST", "/session", {"capabilities": {"alwaysMatch": wanted}})
        self._session = f"/session/{made['sessionId']}"

    def show(self, address: str, width: int = 1000, *, theme: str = "light", media: str = "screen") -> None:
        """Load a page, as wide as this, in a theme ("light", "dark") and for a medium ("screen", "print")."""
        metrics = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": False}
        self.devtools("Emulation.setDeviceMetricsOverride", **metrics)
        features = [{"name": "prefers-color-scheme", "value": theme}]
        self.devtools("Emulation.setEmulatedMedia", media=media, features=features)
        self._ask("POST", f"{self._session}/url", {"url": address})

    def value(self, expression: str) -> Any:
        """Return what an expression has for a value in the page, whatever the page's policy is."""
        said = self.devtools("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in said, said
        return said["result"].get("value")

    def picture(self) -> bytes:
        """Return the whole page as a PNG."""
        said = self.devtools("Page.captureScreenshot", captureBeyondViewport=True)
        return base64.b64decode(said["data"])

    def printed(self) -> bytes:
        """Return the page as a PDF."""
        return base64.b64decode(self.devtools("Page.printToPDF", printBackground=True)["data"])

    def complaints(self) -> list[str]:
        """Return what the browser has said of the pages since the last time: errors, and what a policy forbade."""
        said = self._ask("POST", f"{self._session}/se/log", {"type": "browser"})
        return [entry["message"] for entry in said]

    def devtools(self, command: str, **words: Any) -> Any:
        """Return the answer to a command of the DevTools protocol."""
        return self._ask("POST", f"{self._session}/goog/cdp/execute", {"cmd": command, "params": words})

    def close(self) -> None:
        """End the browser."""
        self._ask("DELETE", self._session)

    def _ask(self, method: str, path: str, body: Any = None) -> Any:
        data = json.dumps(body).encode() if body is not None else None
        request = urllib.request.Request(self._root + path, data, {"Content-Type": "application/json"}, method=method)
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request, timeout=_SECONDS) as answer:
            return json.load(answer)["value"]


@contextlib.contextmanager
def browser(folder: Path) -> Iterator[Browser]:
    """Run a browser with a profile of its own below `folder`."""
    command = ["nice", "chromedriver", "--port=0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as driver:
        try:
            assert driver.stdout is not None
            port = next(
                int(found[1]) for line in driver.stdout if (found := re.search(r"successfully on port ([0-9]+)", line))
            )
            made = Browser(port, folder / "profile")
            try:
                yield made
            finally:
                made.close()
        finally:
            driver.terminate()
