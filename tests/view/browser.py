"""Just enough of a browser for tests: headless Chromium through chromedriver's HTTP protocol, with the standard library alone."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import subprocess
import tempfile
import urllib.request
import zlib
from pathlib import Path
from types import TracebackType
from typing import Any, Self

CHROMIUM = next((p for name in ("chromium", "chromium-browser", "google-chrome") if (p := shutil.which(name))), None)
DRIVER = shutil.which("chromedriver")
MISSING = None
if CHROMIUM is None or DRIVER is None:
    MISSING = "needs Chromium and chromedriver (on Debian: apt-get install chromium chromium-driver)"


class Browser:
    """One headless window; use it as a context manager."""

    def __enter__(self) -> Self:
        assert CHROMIUM is not None and DRIVER is not None
        self._profile = tempfile.TemporaryDirectory()
        environment = {k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy")}
        self._driver = subprocess.Popen(
            [DRIVER, "--port=0"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
        )
        assert self._driver.stdout is not None
        port = ""
        for line in self._driver.stdout:
            if "successfully on port " in line:
                port = line.rsplit("on port ", 1)[1].strip(" .\n")
                break
        self._url = f"http://127.0.0.1:{port}/session"
        arguments = [
            "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
            "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", f"--user-data-dir={self._profile.name}",
        ]  # fmt: skip
        wanted = {
            "goog:chromeOptions": {"binary": CHROMIUM, "args": arguments},
            "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"},
        }
        answer = self._call("", {"capabilities": {"alwaysMatch": wanted}})
        self._url += f"/{answer['sessionId']}"
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        try:
            self._call("", method="DELETE")
        finally:
            self._driver.terminate()
            self._driver.wait(10)
            self._profile.cleanup()

    def _call(self, path: str, body: dict[str, Any] | None = None, method: str = "POST") -> Any:
        data = None if method == "DELETE" else json.dumps(body or {}).encode()
        request = urllib.request.Request(self._url + path, data, {"Content-Type": "application/json"}, method=method)
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # never by way of a proxy
        with opener.open(request, timeout=60) as answer:
            return json.load(answer)["value"]

    def protocol(self, command: str, **parameters: Any) -> Any:
        """A command of Chromium's own protocol."""
        return self._call("/goog/cdp/execute", {"cmd": command, "params": parameters})

    def open(self, page: Path, rest: str = "") -> None:
        self._call("/url", {"url": page.resolve().as_uri() + rest})

    def resize(self, width: int, height: int = 900, media: str = "", dark: bool = False) -> None:
        """The size of the window's inside (windows themselves can't be as narrow as a telephone), "print" for paper, and the colours preferred."""
        self.protocol(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False
        )
        self._width = width
        wanted = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.protocol("Emulation.setEmulatedMedia", media=media, features=[wanted])

    def run(self, script: str, *arguments: Any) -> Any:
        """What a function body of JavaScript returns."""
        return self._call("/execute/sync", {"script": script, "args": list(arguments)})

    def press(self, key: str) -> None:
        """Press a key where the focus is."""
        for kind in ("rawKeyDown", "char", "keyUp"):
            text = {"text": "\r"} if key == "Enter" and kind == "char" else {}
            if kind != "char" or text:
                code = {"Enter": 13, "Tab": 9}[key]
                self.protocol(
                    "Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code, **text
                )

    def console(self) -> list[str]:
        """Messages since the last call."""
        return [f"{m['level']}: {m['message']}" for m in self._call("/se/log", {"type": "browser"})]

    def requests(self) -> list[str]:
        """Addresses that were asked for since the last call."""
        events = [json.loads(m["message"])["message"] for m in self._call("/se/log", {"type": "performance"})]
        return [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]

    def screenshot(self, path: Path) -> None:
        """The whole page."""
        size = self.protocol("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": self._width, "height": size["height"], "scale": 1}
        data = self.protocol("Page.captureScreenshot", format="png", captureBeyondViewport=True, clip=clip)["data"]
        path.write_bytes(base64.b64decode(data))

    def pdf(self, path: Path) -> None:
        """The page on A4."""
        data = self.protocol("Page.printToPDF", paperWidth=8.27, paperHeight=11.69, preferCSSPageSize=True)["data"]
        path.write_bytes(base64.b64decode(data))


FAINT = """
const rgb = (text) => text.match(/[\\d.]+/g).map(Number);
const light = ([r, g, b]) => [r, g, b].map((c) => c / 255).map((c) => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
  .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
const ground = (e) => {
  for (; e; e = e.parentElement) { const c = rgb(getComputedStyle(e).backgroundColor); if (c.length < 4 || c[3] > 0.5) return c; }
  return [255, 255, 255];
};
return [...document.querySelectorAll(arguments[0])].filter((e) => e.textContent.trim() && e.getClientRects().length).map((e) => {
  const [a, b] = [light(rgb(getComputedStyle(e).color)), light(ground(e))].sort((x, y) => y - x);
  return [(a + 0.05) / (b + 0.05), e.textContent.trim().slice(0, 60)];
}).filter(([ratio]) => ratio < 4.5);
"""
"""Elements whose letters stand out too little against what is behind them, by WCAG's ratio of 4.5."""


def pages_without_ink(pdf: bytes) -> list[int]:
    """Pages of a PDF on which nothing is written or drawn; fails if there are no pages."""
    objects = {int(n): body for n, body in re.findall(rb"(?:^|\n)(\d+) 0 obj\b(.*?)endobj", pdf, re.S)}
    pages = [body for _, body in sorted(objects.items()) if re.search(rb"/Type\s*/Page\b", body)]
    assert pages
    empty = []
    for i, page in enumerate(pages):
        drawn = b""
        for number in re.findall(rb"(\d+) 0 R", re.search(rb"/Contents\s*(\[.*?\]|\d+ 0 R)", page, re.S)[1]):  # type: ignore[index]
            data = re.search(rb"stream\r?\n(.*?)\nendstream", objects[int(number)], re.S)[1]  # type: ignore[index]
            drawn += zlib.decompressobj().decompress(data)
        if not re.search(rb"\b(?:TJ|Tj|Do)\b", drawn):
            empty.append(i)
    return empty
