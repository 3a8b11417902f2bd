"""Marks, examples and pictures in the page, in a real browser; and what is left where it has no WebGL."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from browser import Page, Site, launched, small_site
from medseg import io
from medseg.io.pictures import read_ids
from pictures import fundus
from tiny_model import head
from tiny_support import outlined_files

pytestmark = [pytest.mark.browser, pytest.mark.timeout(1200)]  # drawing without a graphics card is slow


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with small_site(tmp_path_factory.mktemp("home")) as made:
        yield made


def test_marks_are_set_undone_run_and_changed(site: Site) -> None:
    page = site.page()
    page.bring(site.image)
    page.mark("tiny-sam")
    rows = page.tab.locator("table.marked tbody tr")
    page.tab.mouse.click(*page.on_plane(0, 0.4, 0.4))
    page.tab.mouse.click(*page.on_plane(0, 0.6, 0.6), button="right")
    assert page.tab.locator("table.marked td:nth-child(2)").all_inner_texts() == ["inside", "outside"]
    first, second = page.tab.evaluate("window.medseg.marking.steps.items.map((mark) => mark.at)")
    assert first[0] > 0 > second[0], "the right of the patient is on the left"
    assert first[1] > 0 > second[1], "the front is at the top"
    page.tab.check("input[value=box]")
    page.drag(page.on_plane(0, 0.3, 0.3), page.on_plane(0, 0.6, 0.55))
    assert rows.count() == 3
    page.drag(page.on_plane(1, 0.3, 0.3), page.on_plane(1, 0.6, 0.55))
    assert "in the Axial plane" in page.tab.inner_text("#ms-mark-told"), "this image is not segmented in that one"
    page.tab.keyboard.press("z")
    assert rows.count() == 2, "a box is undone"
    page.tab.keyboard.press("y")
    assert rows.count() == 3
    page.tab.click("[aria-label='Remove mark 2']")
    assert page.tab.locator("table.marked td:nth-child(2)").all_inner_texts() == ["inside", "box"]
    page.tab.click("text='Undo'")
    assert rows.count() == 3
    page.tab.click("text='Another structure'")
    page.tab.fill("#ms-content input[type=text]", "lesion")
    page.tab.focus("[data-layer=image]")
    page.tab.keyboard.press("ArrowLeft")
    page.tab.click("text='Inside, at the crosshair'")
    assert "lesion" in rows.nth(3).inner_text()
    page.tab.check("text=Only on the slices that are marked")
    page.tab.click("#ms-mark-run")
    page.at("review")
    assert page.tab.locator("table.structures tbody th").all_inner_texts() == ["structure 1", "lesion"]
    assert "weakest slice" in page.tab.inner_text("table.structures")
    assert page.tab.inner_text("#ms-banner") == "UNTRAINED MODEL - THIS RESULT HAS NO MEANING"
    page.until("window.medseg.viewer.nv.volumes.length === 2")
    assert page.colours()["coloured"] > 0.01
    page.tab.click("#ms-mark-again")
    page.at("mark")
    assert rows.count() == 4, "what was said is there to be changed"
    assert page.problems == []


def test_a_support_set_is_made_used_and_its_result_judged(site: Site, tmp_path: Path) -> None:
    images, labels = outlined_files(tmp_path)
    page = site.page()
    page.make_set("balls", zip(images, labels, strict=True), "1=large ball, 2=small ball")
    page.until("document.querySelector('.sheet').naturalWidth > 600")
    assert site.page(beside=True).tab.evaluate("fetch('/api/v1/support-sets').then((answer) => answer.json())") == []
    page.bring(images[0])
    page.run("tiny-support")
    page.at("review")
    assert "runs agree" in page.tab.inner_text("table.structures")
    page.tab.check("input[value=doubt]")
    page.until("window.medseg.viewer.nv.volumes.length === 2")
    page.tab.click("[aria-label='Reject small ball']")
    page.tab.fill("#ms-comment", "not there")
    page.tab.click("#ms-reject-save")
    page.tab.wait_for_selector("text=rejected by hand and left out: small ball (not there)")
    assert page.tab.locator("table.structures tbody th").all_inner_texts() == ["large ball"]
    page.tab.click("#ms-example")
    page.tab.wait_for_selector(".basket li")
    assert page.tab.locator(".basket li").count() == 1, "a result becomes a case"
    page.tab.click("text='Remove balls'")
    page.tab.click("dialog >> text='Delete'")
    page.tab.wait_for_selector("text=There are none yet")
    assert page.problems == []


def test_a_picture_is_segmented_marked_and_taken_home(site: Site, tmp_path: Path) -> None:
    Image.fromarray(fundus()[0]).save(tmp_path / "eye.png")
    page = site.page()
    page.bring(tmp_path / "eye.png")
    page.run("vessels")
    page.at("review")
    for choice in ("Overlay", "Labels", "What the model gave", "Original"):
        page.tab.check(f"text={choice}")
        page.until("document.querySelector('.picture').naturalWidth > 100")
    assert page.tab.locator("table.structures tr").count() > 2
    page.go("report")
    assert read_ids(page.download("labels.png", tmp_path)).shape == fundus()[1].shape
    page.mark("tiny-sam")
    box = page.tab.locator(".over-picture").bounding_box()
    page.tab.mouse.click(box["x"] + box["width"] / 4, box["y"] + box["height"] / 2)
    page.tab.check("input[value=box]")
    page.drag((box["x"] + 20, box["y"] + 30), (box["x"] + 100, box["y"] + 90))
    page.tab.keyboard.press("ArrowRight")
    page.tab.click("text='Outside, at the crosshair'")
    width, height = Image.open(tmp_path / "eye.png").size
    point, _, outside = page.tab.evaluate("window.medseg.marking.steps.items")
    assert point["at"] == pytest.approx([width / 4, height / 2, 0], abs=2)
    assert outside["at"] == pytest.approx([width / 2 + 0.01 * width, height / 2, 0], abs=2)
    page.tab.click("#ms-mark-run")
    page.at("review")
    page.until("document.querySelector('.picture').naturalWidth > 100")
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
    page.mark("tiny-sam")
    box = page.tab.locator(".plain canvas >> nth=0").bounding_box()
    page.tab.mouse.click(box["x"] + 0.25 * box["width"], box["y"] + 0.25 * box["height"])
    page.tab.check("input[value=box]")
    page.drag((box["x"] + 20, box["y"] + 20), (box["x"] + 60, box["y"] + 50))
    point, rectangle = page.tab.evaluate("window.medseg.marking.steps.items")
    grid = io.read(tmp_path / "head.nii.gz").grid
    far = [step * count / 4 for step, count in zip(grid.spacing, grid.shape, strict=True)]
    assert point["at"] == pytest.approx([far[0], far[1], point["at"][2]], abs=6), "right and front of the middle"
    assert rectangle["first"][2] == rectangle["last"][2] == pytest.approx(point["at"][2])
    assert page.tab.is_hidden(".mark")
    page.run("mr-denoise")
    page.at("review")
    page.tab.wait_for_selector(".mark")
    pixels = "document.querySelector('.plain canvas').toDataURL()"
    halves = page.tab.evaluate(pixels)
    page.tab.fill("#ms-split", "1")
    assert page.tab.evaluate(pixels) != halves, "the slider moves between original and restored"
    page.tab.evaluate(f"window.original = {pixels}")
    page.tab.check("input[value=difference]")
    page.until(f"{pixels} !== window.original")
    assert page.tab.is_visible(".mark")
    assert page.problems == []
    started.close()
