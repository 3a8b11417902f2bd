"""A browser for tests of the page: Debian's Chromium without a graphics card, every outside name blocked."""

import os
import shutil
import socket
import sys
import threading
import time
from base64 import b64encode
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import page_worker
from medseg import io
from tiny_model import head
from tiny_prompting import build_tiny_prompting
from tiny_support import support_model

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

    def drop(self, path: Path) -> None:
        """Drop a file on the page and wait for what was found."""
        self.go("open")
        self.tab.evaluate(
            """([name, content]) => {
              const dataTransfer = new DataTransfer();
              dataTransfer.items.add(new File([Uint8Array.from(atob(content), (byte) => byte.charCodeAt(0))], name));
              document.querySelector(".drop").dispatchEvent(new DragEvent("drop", { dataTransfer, cancelable: true }));
            }""",
            [path.name, b64encode(path.read_bytes()).decode()],
        )
        self.at("check")

    def run(self, model: str) -> None:
        """Run a model from its card."""
        self.go("choose")
        self.tab.click(f"[data-model={model}] button.main")

    def mark(self, model: str) -> None:
        """Begin to mark for a model from its card."""
        self.go("choose")
        self.tab.click(f"[data-model={model}] button.main")
        self.at("mark")

    def on_plane(self, plane: int, across: float, down: float) -> tuple[float, float]:
        """A place on a plane of the viewer (0 axial, 1 coronal, 2 sagittal), in shares of it, as the mouse takes it."""
        box = self.tab.locator("[data-layer=image]").bounding_box()
        left, top, width, height = self.tab.evaluate(
            """(plane) => {
              const { nv } = window.medseg.viewer;
              const [x, y, w, h] = nv.screenSlices.find((one) => one.axCorSag === plane).leftTopWidthHeight;
              return [Math.min(x, x + w), y, Math.abs(w), h].map((v) => v / nv.uiData.dpr);
            }""",
            plane,
        )
        return box["x"] + left + across * width, box["y"] + top + down * height

    def example(self, number: int, pair: Sequence[Path]) -> None:
        """Add an image and its label map as a case of a support set that is to be made."""
        for at, path in enumerate(pair):
            self.tab.locator("fieldset input[type=file]").nth(at).set_input_files(str(path))
        self.tab.click("text='Add this case'")
        self.until(f"document.querySelectorAll('.basket li').length === {number}")

    def make_set(self, name: str, pairs: Iterable[Sequence[Path]], labels: str) -> None:
        """Make a support set of images and label maps, and open its contact sheet."""
        self.go("examples")
        for number, pair in enumerate(pairs, start=1):
            self.example(number, pair)
        self.tab.fill("#ms-set-name", name)
        self.tab.fill("input[placeholder^='17']", labels)
        self.tab.click("#ms-set-make")
        self.tab.wait_for_selector(f"[data-set={name}]")
        self.tab.click(f"[data-set={name}] summary")

    def drag(self, start: tuple[float, float], end: tuple[float, float]) -> None:
        """Press, move and let go."""
        self.tab.mouse.move(*start)
        self.tab.mouse.down()
        self.tab.mouse.move(*end, steps=4)
        self.tab.mouse.up()

    def download(self, name: str, folder: Path) -> Path:
        """Take a file of the result home from Report."""
        with self.tab.expect_download() as download:
            self.tab.click(f"text={name}")
        download.value.save_as(folder / name)
        return folder / name

    def report(self) -> str:
        """What stands in the report for printing, on Report."""
        return self.tab.request.get(self.tab.evaluate("document.querySelector('a[target=_blank]').href")).text()

    def colours(self, layer: str = "image") -> dict[str, Any]:
        """Shares of the canvas that are not black, and that are coloured; the crosshair is taken away for it.

        Of each plane that is shown, `planes` holds the share that is not black, `greys` the mean grey, 0 to 1, of its
        left and of its right half.
        """
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
              const halves = nv.screenSlices.map(({ leftTopWidthHeight: [x, y, w, h] }) => {
                const sums = [0, 0], middle = x + w / 2;
                let inside = 0;
                for (let row = Math.ceil(y); row < y + h - 1; row++) {
                  for (let at = Math.ceil(Math.min(x, x + w)); at < Math.max(x, x + w) - 1; at++) {
                    const grey = pixels[4 * ((gl.drawingBufferHeight - 1 - row) * gl.drawingBufferWidth + at)];
                    sums[Number(at > middle)] += grey;
                    inside += grey > 20;
                  }
                }
                const size = Math.abs(w * h);
                return { lit: inside / size, greys: sums.map((sum) => sum / 255 / (size / 2)) };
              });
              nv.opts.crosshairWidth = width;
              nv.opts.isOrientationTextVisible = letters;
              nv.drawScene();
              const [planes, greys] = [halves.map((one) => one.lit), halves.map((one) => one.greys)];
              return { lit: lit / size, coloured: coloured / size, planes, greys };
            }""",
            layer,
        )

    def written(self) -> list[dict[str, tuple[float, float]]]:
        """What is written on each plane that is shown, and where, in shares of the plane from its left and top."""
        return self.tab.evaluate(
            """() => {
              const { nv } = window.medseg.viewer, seen = [];
              const draw = nv.drawText.bind(nv);
              nv.drawText = (at, text, ...look) => { seen.push([text, ...at]); draw(at, text, ...look); };
              nv.drawScene();
              delete nv.drawText;
              return nv.screenSlices.map(({ leftTopWidthHeight: [left, top, width, height] }) => {
                const first = Math.min(left, left + width);
                const share = (x, y) => [(x - first) / Math.abs(width), (y - top) / height];
                const shares = seen.map(([text, x, y]) => [text, share(x, y)]);
                return Object.fromEntries(shares.filter(([, at]) => at.every((one) => one >= 0 && one < 1)));
              });
            }"""
        )


@dataclass
class Site:
    """A running server, a browser, and an image to bring."""

    address: str
    browser: Any
    image: Path

    def page(self, address: str | None = None, *, patience: int = 120, beside: bool = False) -> Page:
        """A new visitor, here or on another server; those before leave, unless `beside`: open pages go on drawing."""
        for context in [] if beside else self.browser.contexts:
            context.close()
        context = self.browser.new_context(viewport={"width": 1280, "height": 720}, accept_downloads=True)
        return Page(context, address or self.address, patience=patience)


@contextmanager
def offer_small_models(home: Path) -> Iterator[None]:
    """Models that follow prompts and examples, of random weights, for servers that start meanwhile."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MEDSEG_HOME", str(home / "data"))
        (home / "data" / "models" / "tiny-sam").mkdir(parents=True)
        build_tiny_prompting(home / "data" / "models" / "tiny-sam")
        support_model(home / "data" / "models" / "tiny-support")
        yield


@contextmanager
def small_site(home: Path) -> Iterator[Site]:
    """A server with the worker of these tests, and with small models that follow prompts and examples."""
    with browser() as started, offer_small_models(home):
        io.write(head(), home / "head.nii.gz")
        with serving(home / "serve", (sys.executable, page_worker.__file__)) as address:
            yield Site(address, started, home / "head.nii.gz")
