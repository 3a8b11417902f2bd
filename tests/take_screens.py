"""Take the pictures of the screens in docs/screens: `python tests/take_screens.py [PART...]`, needs Chromium.

The head is the template of `make demo` at 2 mm; the models are the real ones, but for the one that follows marks: no
weights of such a model ship, so that a small one stands for it.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from browser import Page, browser, offer_small_models, serving
from demo import template
from medseg import io
from medseg.volume import Volume
from pictures import fundus
from tiny_support import outlined_files

SCREENS = Path(__file__).resolve().parent.parent / "docs" / "screens"


def main() -> None:
    """Go through the parts that are named, or all of them, each as a new visitor."""
    parts = {"head": _head, "marks": _marks, "examples": _examples, "picture": _picture}
    with tempfile.TemporaryDirectory() as name, browser() as started, offer_small_models(Path(name)):
        whole, folder = io.read(template()), Path(name)
        affine = whole.affine.copy()
        affine[:3, :3] *= 2
        io.write(Volume(np.ascontiguousarray(whole.voxels[::2, ::2, ::2]), affine), folder / "head.nii.gz")
        with serving(folder / "serve") as address:
            for part in sys.argv[1:] or parts:
                page = Page(started.new_context(viewport={"width": 1280, "height": 720}), address, patience=1500)
                parts[part](page, folder)
                print(part, page.problems or "no message on the console")


def _head(page: Page, folder: Path) -> None:
    """From the file to the report, and what was restored."""
    take(page, "open")
    page.bring(folder / "head.nii.gz")
    take(page, "check")
    page.tab.select_option(".bar select >> nth=2", "distance")
    page.drag(page.on_plane(0, 0.25, 0.38), page.on_plane(0, 0.7, 0.38))
    page.tab.select_option(".bar select >> nth=2", "angle")
    page.drag(page.on_plane(1, 0.3, 0.75), page.on_plane(1, 0.3, 0.35))
    page.tab.mouse.move(*page.on_plane(1, 0.6, 0.5), steps=2)
    page.tab.mouse.click(*page.on_plane(1, 0.6, 0.5))
    take(page, "measure")
    page.tab.select_option(".bar select >> nth=2", "crosshair")
    page.tab.click("text='Reset'")
    page.go("choose")
    take(page, "choose")
    page.run("brain-structures")
    page.until("document.querySelector('.stage-text')?.textContent.includes('part')")
    take(page, "run")
    page.at("review")
    page.until("window.medseg.viewer.nv.volumes.length === 2")
    take(page, "review")
    page.tab.select_option(".bar select >> nth=0", "render")
    take(page, "rendering")
    page.tab.select_option(".bar select >> nth=0", "planes")
    page.go("correct")
    take(page, "correct")
    page.go("report")
    take(page, "report")
    page.run("mr-denoise")
    page.at("review")
    page.tab.wait_for_selector(".mark")
    take(page, "compare")
    page.tab.check("input[value=regions]")
    take(page, "regions")
    page.go("history")
    take(page, "history")


def _marks(page: Page, folder: Path) -> None:
    page.bring(folder / "head.nii.gz")
    page.mark("tiny-sam")
    page.tab.mouse.click(*page.on_plane(0, 0.42, 0.42))
    page.tab.mouse.click(*page.on_plane(0, 0.62, 0.6), button="right")
    page.tab.check("input[value=box]")
    page.drag(page.on_plane(0, 0.36, 0.3), page.on_plane(0, 0.5, 0.55))
    page.tab.locator("table.marked").scroll_into_view_if_needed()
    take(page, "mark")


def _examples(page: Page, folder: Path) -> None:
    images, labels = outlined_files(folder / "cases", size=48)
    page.make_set("balls", zip(images, labels, strict=True), "1=large ball, 2=small ball")
    take(page, "examples")
    page.bring(images[0])
    page.run("support-set")
    page.at("review")
    page.tab.check("input[value=doubt]")
    take(page, "confidence")


def _picture(page: Page, folder: Path) -> None:
    Image.fromarray(fundus(480, 600)[0]).save(folder / "eye.png")
    page.bring(folder / "eye.png")
    page.run("vessels")
    page.at("review")
    take(page, "picture")


def take(page: Page, name: str) -> None:
    """One picture, reduced to 256 colours to stay small."""
    page.tab.wait_for_timeout(3000)  # the viewer draws a while after it has its volumes
    path = SCREENS / f"{name}.png"
    page.tab.screenshot(path=path)
    Image.open(path).convert("RGB").quantize(256).save(path, optimize=True)


if __name__ == "__main__":
    main()
