"""A browser for tests of the page: Debian's Chromium without a graphics card, every outside name blocked."""

import os
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

_FLAGS = (
    "--no-sandbox",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)


@contextmanager
def browser() -> Iterator[Any]:
    """Chromium through Playwright; skips the test where one of them is missing, and fails it under `make test-all`."""
    chromium = shutil.which("chromium")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        sync_playwright = None
    if chromium is None or sync_playwright is None:
        message = "Chromium or Playwright is not installed; `make test-all` installs both"
        pytest.fail(message) if os.environ.get("MEDSEG_TEST_ALL") else pytest.skip(message)
    with sync_playwright() as playwright:
        started = launched(playwright.chromium)
        yield started
        started.close()


def launched(kind: Any, *flags: str) -> Any:
    """Another Chromium of the same Playwright, of which a process can have only one."""
    return kind.launch(executable_path=shutil.which("chromium"), args=[*_FLAGS, *flags])


@contextmanager
def serving(home: Path, worker: tuple[str, ...] | None = None, **more: Any) -> Iterator[str]:
    """A server in a thread of this process; gives its address. `more` goes into its settings."""
    import uvicorn

    from medseg_app.server.guard import LOOPBACK
    from medseg_app.server.place import Settings
    from medseg_app.server.site import build_site

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = Settings(home=home, hosts=LOOPBACK, **({"worker": worker} if worker else {}), **more)
    server = uvicorn.Server(uvicorn.Config(build_site(settings)[0], port=port, log_level="error", ws="none"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while thread.is_alive() and not server.started:
            time.sleep(0.05)
        yield f"http://127.0.0.1:{port}/"
    finally:
        server.should_exit = True
        thread.join()


class Page:
    """A page that remembers what went wrong on it.

    Args:
        context: Of the browser: a visitor.
        address: Of the server.
        patience: Seconds that anything may take.
    """

    def __init__(self, context: Any, address: str, *, patience: int = 120) -> None:
        self.patience = patience
        self.tab = context.new_page()
        self.tab.set_default_timeout(1000 * patience)
        self.problems: list[str] = []
        self.asked: set[str] = set()
        self.tab.on("console", lambda told: told.type in ("error", "warning") and self.problems.append(told.text))
        self.tab.on("pageerror", lambda error: self.problems.append(str(error)))
        self.tab.on("request", lambda request: self.asked.add(request.url.split("/")[2] if "//" in request.url else ""))
        self.tab.goto(address)
        self.tab.wait_for_selector("#medseg-app[data-ready]")

    def go(self, screen: str) -> None:
        """Open a screen by its step."""
        self.tab.click(f"[data-screen={screen}]")
        self.at(screen)

    def at(self, screen: str) -> None:
        """Wait for a screen."""
        self.tab.wait_for_selector(f"[data-screen={screen}][aria-current=step]")

    def until(self, expression: str) -> None:
        """Wait until an expression is true; Playwright's own way builds code in the page, which the page forbids."""
        deadline = time.monotonic() + self.patience
        while not self.tab.evaluate(expression):
            assert time.monotonic() < deadline, expression
            time.sleep(0.1)

    def bring(self, *paths: Any) -> None:
        """Bring files and wait for what was found."""
        self.go("open")
        self.tab.locator("input[type=file]").first.set_input_files([str(path) for path in paths])
        self.at("check")

    def run(self, model: str) -> None:
        """Run a model from its card."""
        self.go("choose")
        self.tab.click(f"[data-model={model}] button.main")

    def colours(self, layer: str = "image") -> dict[str, float]:
        """Shares of the canvas that are not black, and that are coloured; the crosshair is taken away for it."""
        return self.tab.evaluate(
            """(name) => {
              const viewer = window.medseg.viewer;
              const nv = name === "image" ? viewer.first.nv : viewer.second.nv;
              const width = nv.opts.crosshairWidth, letters = nv.opts.isOrientationTextVisible;
              nv.opts.crosshairWidth = 0;
              nv.opts.isOrientationTextVisible = false;
              nv.drawScene();
              const gl = nv.gl, size = gl.drawingBufferWidth * gl.drawingBufferHeight;
              const pixels = new Uint8Array(4 * size);
              gl.readPixels(0, 0, gl.drawingBufferWidth, gl.drawingBufferHeight, gl.RGBA, gl.UNSIGNED_BYTE, pixels);
              let lit = 0, coloured = 0;
              for (let i = 0; i < pixels.length; i += 4) {
                const most = Math.max(pixels[i], pixels[i + 1], pixels[i + 2]);
                lit += most > 20;
                coloured += most - Math.min(pixels[i], pixels[i + 1], pixels[i + 2]) > 30;
              }
              nv.opts.crosshairWidth = width;
              nv.opts.isOrientationTextVisible = letters;
              nv.drawScene();
              return { lit: lit / size, coloured: coloured / size };
            }""",
            layer,
        )
