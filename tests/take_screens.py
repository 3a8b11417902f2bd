"""Take the pictures of the screens in docs/screens: `python tests/take_screens.py`, needs Chromium.

The head is the template of `make demo` at 2 mm; the models are the real ones.
"""

import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from browser import Page, browser, serving
from demo import template
from medseg import io
from medseg.volume import Volume

SCREENS = Path(__file__).resolve().parent.parent / "docs" / "screens"


def main() -> None:
    """Go through the screens in the order of use."""
    with tempfile.TemporaryDirectory() as name, browser() as started, serving(Path(name) / "serve") as address:
        whole = io.read(template())
        affine = whole.affine.copy()
        affine[:3, :3] *= 2
        io.write(Volume(np.ascontiguousarray(whole.voxels[::2, ::2, ::2]), affine), Path(name) / "head.nii.gz")
        page = Page(started.new_context(viewport={"width": 1280, "height": 720}), address, patience=1500)
        take(page, "open")
        page.bring(Path(name) / "head.nii.gz")
        take(page, "check")
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
        page.go("history")
        take(page, "history")
        print(page.problems or "no message on the console")


def take(page: Page, name: str) -> None:
    """One picture, reduced to 256 colours to stay small."""
    page.tab.wait_for_timeout(3000)  # the viewer draws a while after it has its volumes
    path = SCREENS / f"{name}.png"
    page.tab.screenshot(path=path)
    Image.open(path).convert("RGB").quantize(256).save(path, optimize=True)


if __name__ == "__main__":
    main()
