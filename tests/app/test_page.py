"""The page in a real browser: every screen, the viewer by its pixels, keys, accessibility; no name outside is known."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import page_worker
from browser import Page, browser, launched, serving
from demo import template
from medseg import io
from medseg.volume import Volume
from tiny_model import head

pytestmark = [pytest.mark.browser, pytest.mark.timeout(1200)]  # drawing without a graphics card is slow

AXE = Path(__file__).resolve().parents[2] / "build" / "axe.min.js"


@dataclass
class Site:
    """A running server and a browser."""

    address: str
    browser: Any
    image: Path

    def page(self) -> Page:
        """A new visitor."""
        return Page(
            self.browser.new_context(viewport={"width": 1280, "height": 720}, accept_downloads=True), self.address
        )


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with browser() as started:
        home = tmp_path_factory.mktemp("home")
        io.write(head(), home / "head.nii.gz")
        with serving(home / "serve", (sys.executable, page_worker.__file__)) as address:
            yield Site(address, started, home / "head.nii.gz")


def test_segment_review_correct_and_take_home(site: Site, tmp_path: Path) -> None:
    page = site.page()
    page.bring(site.image)
    assert page.tab.locator(".finding.good").count() >= 4
    assert page.colours()["lit"] > 0.05
    assert page.colours()["coloured"] == 0
    page.run("brain-structures")
    page.until("document.querySelector('.stage-text')?.textContent.includes('part')")
    page.at("review")
    assert page.tab.locator("table.structures tbody tr").count() == 17
    page.until("window.medseg.viewer.nv.volumes.length === 2")
    with_overlay = page.colours()["coloured"]
    assert with_overlay > 0.02
    page.tab.click("table.structures thead input")
    assert page.colours()["coloured"] < with_overlay / 10, "every structure is hidden"
    page.tab.click("table.structures thead input")
    page.tab.keyboard.press("Escape")
    page.tab.focus("[data-layer=image]")
    page.tab.keyboard.press(" ")
    assert page.colours()["coloured"] == 0, "space takes the overlay away"
    page.tab.keyboard.press(" ")
    page.tab.select_option(".bar select >> nth=0", "render")
    assert page.colours()["lit"] > 0.02, "the rendering is not blank"
    page.tab.select_option(".bar select >> nth=0", "axial")

    page.go("correct")
    before = page.tab.evaluate("window.medseg.viewer.nv.drawBitmap.reduce((n, v) => n + (v === 15), 0)")
    page.tab.select_option("#ms-label", "15")
    page.tab.click("#ms-paint")
    box = page.tab.locator("[data-layer=image]").bounding_box()
    page.tab.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.tab.mouse.down()
    page.tab.mouse.move(box["x"] + box["width"] / 2 + 60, box["y"] + box["height"] / 2 + 30, steps=6)
    page.tab.mouse.up()
    count = "window.medseg.viewer.nv.drawBitmap.reduce((n, v) => n + (v === 15), 0)"
    assert page.tab.evaluate(count) > before
    page.tab.keyboard.press("z")
    assert page.tab.evaluate(count) == before, "a stroke is undone"
    page.tab.keyboard.press("y")
    assert page.tab.evaluate(count) > before
    page.tab.click("#ms-save")
    page.at("review")
    page.tab.wait_for_selector("text=corrected by hand")

    page.go("report")
    with page.tab.expect_download() as download:
        page.tab.click("text=labels.nii.gz")
    download.value.save_as(tmp_path / "labels.nii.gz")
    assert io.read(tmp_path / "labels.nii.gz", kind="labels").grid.equals(io.read(site.image).grid)
    report = page.tab.request.get(
        page.tab.locator("a[target=_blank]").get_attribute("href")
        and site.address.rstrip("/") + page.tab.locator("a[target=_blank]").get_attribute("href")
    )
    assert "Research use only" in report.text()
    assert "Corrected by hand" in report.text()
    assert page.problems == []
    assert page.asked == {site.address.split("/")[2]}


def test_restore_compare_and_delete(site: Site) -> None:
    page = site.page()
    page.bring(site.image)
    page.run("mr-denoise")
    page.at("review")
    page.tab.wait_for_selector(".mark")
    assert page.tab.inner_text(".mark") == "RESTORED"
    assert page.tab.inner_text("#ms-banner") == "UNTRAINED MODEL - THIS RESULT HAS NO MEANING"
    assert page.colours("restored")["lit"] > 0.05
    page.tab.fill("#ms-split", "0.25")
    assert "25%" in page.tab.locator(".layer >> nth=1").get_attribute("style")
    page.tab.check("input[value=difference]")
    page.until("window.medseg.viewer.nv.volumes.length === 2")
    assert page.tab.is_visible(".mark")
    page.go("history")
    assert "head" not in page.tab.inner_text("#ms-content"), "a file name may name the patient"
    page.tab.click("text=Show name")
    assert "head.nii.gz" in page.tab.inner_text("#ms-content")
    page.tab.click("tr >> text=Delete")
    page.tab.click("dialog >> text='Delete'")
    page.tab.wait_for_selector("text=Nothing yet")
    assert page.problems == []


def test_cancel_keeps_nothing(site: Site) -> None:
    page = site.page()
    page.bring(site.image)
    page.tab.evaluate("window.medseg.wish = { noise: 60 }")  # the worker of these tests then takes its time
    page.run("mr-denoise")
    page.tab.click("#ms-cancel")
    page.tab.wait_for_selector("text=Cancelled. Nothing was kept.")
    page.go("history")
    assert "cancelled" in page.tab.inner_text("#ms-content")


def test_what_cannot_be_used_gets_a_sentence(site: Site, tmp_path: Path) -> None:
    (tmp_path / "bad.nii.gz").write_bytes(b"no volume at all")
    page = site.page()
    page.bring(tmp_path / "bad.nii.gz")
    told = page.tab.inner_text(".finding.error")
    assert "the name says gzip, the content is plain text" in told
    assert "image0" not in told, "the name of our copy means nothing to the user"
    page.bring(site.image)
    assert page.tab.locator(".finding.good").count() >= 4, "the server goes on"


def test_out_of_scope_asks_again(site: Site) -> None:
    page = site.page()
    page.bring(site.image)
    page.go("choose")
    page.tab.click("[data-model=ct-denoise] button.main")
    page.tab.wait_for_selector("dialog[open] >> text=no value lies below 0")
    page.tab.click("dialog >> text=Back")
    assert page.tab.get_attribute("[data-screen=choose]", "aria-current") == "step"


@pytest.mark.skipif(not AXE.is_file(), reason="axe-core is not here; `make test-all` fetches it")
def test_no_serious_fault_of_accessibility(site: Site) -> None:
    page = site.page()
    page.tab.evaluate(AXE.read_text(encoding="utf-8"))
    faults = {"open": _faults(page)}
    page.bring(site.image)
    faults["check"] = _faults(page)
    page.go("choose")
    faults["choose"] = _faults(page)
    page.run("brain-structures")
    faults["run"] = _faults(page)
    page.at("review")
    for screen in ("review", "correct", "report", "history"):
        page.go(screen)
        faults[screen] = _faults(page)
    assert {screen: found for screen, found in faults.items() if found} == {}


def _faults(page: Page) -> list[str]:
    found = page.tab.evaluate("axe.run(document, { resultTypes: ['violations'] })")
    return [
        f"{fault['id']}: {fault['nodes'][0]['html'][:200]}"
        for fault in found["violations"]
        if fault["impact"] in ("serious", "critical")
    ]


@pytest.mark.slow
def test_real_models_on_a_real_head(site: Site, tmp_path: Path) -> None:
    whole = io.read(template())
    affine = whole.affine.copy()
    affine[:3, :3] *= 2
    io.write(Volume(np.ascontiguousarray(whole.voxels[::2, ::2, ::2]), affine), tmp_path / "head.nii.gz")
    with serving(tmp_path / "serve") as address:
        page = Page(site.browser.new_context(), address, patience=900)
        page.bring(tmp_path / "head.nii.gz")
        page.run("brain-structures")
        page.at("review")
        volumes = dict(
            zip(
                *[page.tab.locator(f"table.structures tbody {cell}").all_inner_texts() for cell in ("th", "td.number")],
                strict=True,
            )
        )
        assert 400 < float(volumes["left cerebral cortex"]) + float(volumes["right cerebral cortex"]) < 1100, "ml"
        assert page.colours()["coloured"] > 0.05
        page.run("mr-denoise")
        page.at("review")
        assert page.colours("restored")["lit"] > 0.05
        assert page.problems == []


def test_plain_slices_where_there_is_no_webgl(site: Site, tmp_path: Path) -> None:
    io.write(head(orientation="LAS"), tmp_path / "head.nii.gz")
    started = launched(site.browser.browser_type, "--disable-3d-apis")
    page = Page(started.new_context(), site.address)
    page.bring(tmp_path / "head.nii.gz")
    page.tab.wait_for_selector(".plain canvas >> nth=2")
    shares = page.tab.evaluate(
        """[...document.querySelectorAll('.plain canvas')].map((canvas) => {
          const { data } = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);
          const left = (i) => (i / 4) % canvas.width < canvas.width / 2;
          const half = (side) => data.reduce((sum, v, i) => sum + (i % 4 === 0 && left(i) === side ? v : 0), 0);
          return [half(true), half(false)];
        })"""
    )
    page.tab.screenshot(path=tmp_path / "plain.png")
    axial, coronal, sagittal = shares
    assert axial[1] > 1.1 * axial[0], "this head is brighter on its left, which is shown at the right"
    assert coronal[1] > 1.1 * coronal[0]
    assert min(sagittal) > 0
    assert page.problems == []
    started.close()
