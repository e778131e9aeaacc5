"""Headless Chromium on the loopback interface: a page is opened, and sends its document once it has a verdict."""

from __future__ import annotations

import contextlib
import functools
import http.server
import queue
import re
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import package_tools as tools

# Loads the page beside it and sends its document once the page has given its verdict.
WATCH = """<!doctype html><html><iframe id="page"></iframe><script>
const page = document.getElementById("page");
page.src = location.hash.slice(1);
const timer = setInterval(() => {
  const root = page.contentDocument?.documentElement;
  if (!root?.dataset.passed) return;
  clearInterval(timer);
  fetch("/", { method: "POST", body: root.outerHTML });
}, 50);
</script></html>"""


class Site(http.server.ThreadingHTTPServer):
    """A folder on a free port of the loopback interface, and what its pages reported."""

    def __init__(self, folder: Path) -> None:
        self.reports: queue.Queue[str] = queue.Queue()
        super().__init__(("127.0.0.1", 0), functools.partial(Handler, directory=str(folder)))


class Handler(http.server.SimpleHTTPRequestHandler):
    server: Site

    def do_GET(self) -> None:
        if self.path != "/watch":
            super().do_GET()
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(WATCH.encode())

    def do_POST(self) -> None:
        self.server.reports.put(self.rfile.read(int(self.headers["Content-Length"])).decode())
        self.send_response(204)
        self.end_headers()

    def log_message(self, *args: object) -> None:
        pass


@contextlib.contextmanager
def served(folder: Path) -> Iterator[Site]:
    with Site(folder) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


SOFTWARE_GPU = ["--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader", "--enable-features=Vulkan"]
"""WebGPU on SwiftShader, Chromium's own Vulkan driver in software."""


def browse(site: Site, page: str, profile: Path, *, gpu: bool = False) -> str:
    """The page's document when it has given its verdict, in headless Chromium."""
    tools.need("chromium")
    command = ["chromium", "--headless=new", "--no-sandbox", "--disable-background-networking"]
    command += SOFTWARE_GPU if gpu else ["--disable-gpu"]
    command += [f"--user-data-dir={profile}", f"http://127.0.0.1:{site.server_port}/watch#/{page}"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as browser:
        try:
            return site.reports.get(timeout=120)
        finally:
            browser.terminate()


def verdict(dom: str) -> bool:
    found = re.search(r'data-passed="(true|false)"', dom)
    assert found, dom[:2000]
    return found[1] == "true"
