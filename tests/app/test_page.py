"""The page in a real browser: every screen, the viewer by its pixels, keys, accessibility; no name outside is known."""

import zipfile
from collections.abc import Iterator
from pathlib import Path

import highdicom as hd
import numpy as np
import pytest

from browser import Page, Site, serving, small_site
from demo import template
from dicom_cases import PRIVATE, Case, noise
from dicom_made_up import IDENTITY, made_up_slice
from dicom_peer import Peer
from hostile import HOSTILE
from medseg import io
from medseg.volume import Volume
from medseg_app.server.accounts import hash_password
from served import STUB
from tiny_model import head_series

pytestmark = [pytest.mark.browser, pytest.mark.timeout(1200)]  # drawing without a graphics card is slow

VIEW, WINDOW, TOOL = (f".bar select >> nth={number}" for number in range(3))
AXE = Path(__file__).resolve().parents[2] / "build" / "axe.min.js"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with small_site(tmp_path_factory.mktemp("home")) as made:
        yield made


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An archive of two DICOM series: the head as CT, and a few slices of noise."""
    home = tmp_path_factory.mktemp("study")
    head_series(home / "head")
    Case(pixels=noise((4, 14, 6))).write(home / "noise")
    with zipfile.ZipFile(home / "study.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path in home.glob("*/*.dcm"):
            archive.write(path, path.relative_to(home))
    return home / "study.zip"


def test_a_dicom_series_is_segmented_corrected_and_taken_home(site: Site, study: Path, tmp_path: Path) -> None:
    page = site.page()
    page.drop(study)
    _choose_head(page)
    assert page.tab.locator(".finding.good").count() >= 4
    assert not [word for word in PRIVATE if word in page.tab.inner_text("body")], "nobody asked whom it shows"
    assert page.colours()["lit"] > 0.05
    assert page.colours()["coloured"] == 0
    page.run("brain-structures")
    page.until("document.querySelector('.stage-text')?.textContent.includes('part')")
    page.at("review")
    _review_structures(page)
    painted = _correct_structure(page, 15)
    _take_home(page, study, tmp_path, painted)
    assert page.problems == []
    assert page.asked == {site.address.split("/")[2]}


def _choose_head(page: Page) -> None:
    """Of the two series of the study, with a thumbnail each."""
    seen = "[...document.querySelectorAll('li img.thumbnail[alt]')].filter((one) => one.naturalWidth > 40)"
    page.until(f"{seen}.length === 2")
    page.tab.click("text=50 images")
    page.tab.wait_for_selector("text='Choose what to do'")
    page.until("document.querySelector('img.thumbnail[alt]')?.naturalWidth > 40")


def _review_structures(page: Page) -> None:
    """Hide, show and fade what lies over the image, by the table, the slider and the keys."""
    names = page.tab.locator("table.structures tbody th").all_inner_texts()
    assert len(names) == 17
    page.until("window.medseg.viewer.nv.volumes.length === 2")
    with_overlay = page.colours()["coloured"]
    assert with_overlay > 0.02
    page.tab.click("table.structures thead input")
    assert page.colours()["coloured"] < with_overlay / 10, "every structure is hidden"
    page.tab.click("table.structures thead input")
    page.tab.uncheck(f"[aria-label='Show {names[0]}']")
    assert 0 < page.colours()["coloured"] < with_overlay, "one structure is hidden"
    page.tab.check(f"[aria-label='Show {names[0]}']")
    page.tab.fill("#ms-opacity", "0.05")
    assert page.colours()["coloured"] < with_overlay / 2, "the overlay is faint"
    page.tab.fill("#ms-opacity", "0.5")
    assert page.colours()["coloured"] == with_overlay
    page.tab.focus("[data-layer=image]")
    page.tab.keyboard.press("ArrowLeft")
    assert page.tab.inner_text(".place").split(", ")[-1] in names, "what lies under the crosshair is told"
    page.tab.keyboard.press(" ")
    assert page.colours()["coloured"] == 0, "space takes the overlay away"
    page.tab.keyboard.press(" ")
    page.tab.select_option(VIEW, "render")
    assert page.colours()["lit"] > 0.02, "the rendering is not blank"
    page.tab.select_option(VIEW, "axial")


def _correct_structure(page: Page, label: int) -> int:
    """Paint a structure at the crosshair and by brush, undo and redo, save; how many voxels it then has."""
    page.go("correct")
    count = f"window.medseg.viewer.nv.drawBitmap.reduce((n, v) => n + (v === {label}), 0)"
    locks = "document.querySelectorAll('#ms-locks input').forEach((box) => box.click())"
    before = page.tab.evaluate(count)
    page.tab.select_option("#ms-label", str(label))
    page.tab.evaluate(locks)
    page.tab.click("#ms-dab")
    assert page.tab.evaluate(count) == before, "every structure is locked, and the middle of the head is one"
    page.tab.keyboard.press("z")
    page.tab.evaluate(locks)
    page.tab.click("#ms-dab")
    assert page.tab.evaluate(count) > before, "painted without a pointer"
    page.tab.keyboard.press("z")
    page.tab.click("#ms-paint")
    page.drag(page.on_plane(0, 0.5, 0.5), page.on_plane(0, 0.6, 0.55))
    painted = page.tab.evaluate(count)
    assert painted > before
    page.tab.keyboard.press("z")
    assert page.tab.evaluate(count) == before, "a stroke is undone"
    page.tab.keyboard.press("y")
    assert page.tab.evaluate(count) == painted
    page.tab.click("#ms-save")
    page.at("review")
    page.tab.wait_for_selector("text=corrected by hand")
    return painted


def _take_home(page: Page, study: Path, folder: Path, painted: int) -> None:
    """Label map, segmentation object and report all hold what was painted."""
    page.go("report")
    volume = io.read(study.parent / "head")
    labels = io.read(page.download("labels.nii.gz", folder), kind="labels")
    assert labels.grid.equals(volume.grid)
    assert int((labels.voxels == 15).sum()) == painted
    back = hd.seg.segread(page.download("segmentation.dcm", folder))
    (segment,) = [one for one in back.SegmentSequence if one.SegmentLabel == "brainstem"]
    assert segment.SegmentAlgorithmType == "SEMIAUTOMATIC"
    series = volume.source.series if volume.source else None
    assert series
    planes = [plane.instance.uid for plane in series.slices]
    found = back.get_pixels_by_source_instance(planes, segment_numbers=[segment.SegmentNumber])[..., 0]
    assert np.array_equal(found > 0, series.to_slices(labels.voxels) == 15), "it lies on the images"
    assert "Research use only" in page.report()
    assert "Corrected by hand" in page.report()


def test_restore_compare_and_delete(site: Site) -> None:
    page = site.page()
    page.bring(site.image)
    page.until("document.querySelector('img.thumbnail[alt]')?.naturalWidth > 40")
    greys = {}
    for key in "231":  # brighter, darker, and the automatic window again
        page.tab.keyboard.press(key)
        greys[key] = page.colours()["greys"][0][0]
    assert greys["2"] > 1.1 * greys["1"] > 1.21 * greys["3"], "windows of MR are shares of the automatic one"
    page.run("mr-denoise")
    page.at("review")
    page.tab.wait_for_selector(".mark")
    assert page.tab.inner_text(".mark") == "RESTORED"
    assert page.tab.inner_text("#ms-banner") == "UNTRAINED MODEL - THIS RESULT HAS NO MEANING"
    bottom = page.tab.evaluate("document.querySelector('#medseg-app footer').getBoundingClientRect().bottom")
    assert bottom <= 722, "the banner pushes nothing out of sight"
    assert page.colours("restored")["lit"] > 0.05
    page.tab.fill("#ms-split", "0.25")
    assert "25%" in page.tab.locator(".layer >> nth=1").get_attribute("style")
    assert page.colours()["coloured"] == 0
    for overlay in ("regions", "difference"):
        page.tab.check(f"input[value={overlay}]")
        page.until("window.medseg.viewer.nv.volumes.length === 2")
        assert page.colours()["coloured"] > 0.01, overlay
        assert page.tab.is_hidden("[data-layer=restored]"), "it covers nothing of the overlay"
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
    page = site.page()
    for number, (name, (ending, content)) in enumerate(HOSTILE.items()):
        bad = tmp_path / f"bad{number}{ending}"
        bad.write_bytes(content())
        page.bring(bad)
        mark, word, told = page.tab.inner_text(".finding.error").split("\n")
        assert (mark, word) == ("\N{MULTIPLICATION X}", "Problem"), name
        assert len(told.split()) > 3, name
        assert "image0" not in told, f"{name}: the name of our copy means nothing to the user"
        assert "root:" not in told, name
    page.bring(site.image)
    assert page.tab.locator(".finding.good").count() >= 4, "the server goes on"


def test_ct_is_windowed_and_measured_and_a_model_of_whole_heads_asks_again(site: Site, tmp_path: Path) -> None:
    voxels = np.random.default_rng(0).integers(-10, 10, (40, 24, 16)).astype(np.int16) - 800
    voxels[20:] += 840  # the right of the patient
    voxels[:, 12:] += 100  # the front
    io.write(Volume(voxels, np.diag([1.5, 2.0, 5.0, 1.0])), tmp_path / "ct.nii.gz")
    page = site.page()
    page.bring(tmp_path / "ct.nii.gz")
    for window, (low, high) in {"soft": (-160, 240), "bone": (-450, 1050), "lung": (-1350, 150)}.items():
        page.tab.select_option(WINDOW, window)
        shown = np.clip((voxels - low) / (high - low), 0, 1)
        axial = page.colours()["greys"][0]
        assert axial == pytest.approx([shown[20:].mean(), shown[:20].mean()], abs=0.02), window
    _, coronal, sagittal = page.colours()["greys"]
    assert coronal[0] > coronal[1], "the right of the patient is on the left"
    assert sagittal[0] > sagittal[1], "the nose is on the left"
    for written, (left, right, top, bottom) in zip(page.written(), ("RLAP", "RLSI", "APSI"), strict=True):
        assert written[left][0] < 0.2 < 0.8 < written[right][0]
        assert written[top][1] < 0.2 < 0.8 < written[bottom][1]

    page.tab.select_option(TOOL, "distance")
    for plane, start, end, length in (
        (0, (0.2, 0.3), (0.6, 0.3), 24.0),  # of 60 mm right-left
        (0, (0.3, 0.2), (0.3, 0.7), 24.0),  # of 48 mm front-back
        (1, (0.4, 0.1), (0.4, 0.6), 40.0),  # of 80 mm head-foot
    ):
        page.drag(page.on_plane(plane, *start), page.on_plane(plane, *end))
        told = page.tab.inner_text(".place").removeprefix("Distance: ")
        assert float(told.removesuffix(" mm")) == pytest.approx(length, abs=0.6), "a pixel is 0.26 mm"
        assert told in page.written()[plane], "it stands beside the line"
    page.tab.select_option(TOOL, "angle")
    page.drag(page.on_plane(1, 0.2, 0.2), page.on_plane(1, 0.6, 0.2))
    page.tab.mouse.move(*page.on_plane(1, 0.3, 0.5), steps=2)
    page.tab.mouse.click(*page.on_plane(1, 0.3, 0.5))
    told = page.tab.inner_text(".place").removeprefix("Angle: ").removesuffix(" degrees")
    assert float(told) == pytest.approx(np.degrees(np.arctan2(24, 18)), abs=1.5), "24 mm down for 18 mm across"
    assert f"{told} deg" in page.written()[1]
    page.tab.evaluate("window.medseg.viewer.showImage(`/api/v1/jobs/${window.medseg.check}/files/view.nii`)")
    assert page.written()[1].keys() == set("RLSI"), "an image is not shown with what was measured in another"

    page.tab.click("text='Full screen'")
    page.until("document.fullscreenElement?.id === 'ms-viewer'")
    page.until("document.querySelector('[data-layer=image]').clientHeight > 0.8 * innerHeight")
    page.tab.click("text='Full screen'")
    page.until("document.fullscreenElement === null")
    page.go("choose")
    page.tab.click("[data-model=brain-structures] button.main")
    page.tab.wait_for_selector("dialog[open] >> text=a whole head needs")
    page.tab.click("dialog >> text=Back")
    assert page.tab.get_attribute("[data-screen=choose]", "aria-current") == "step"
    assert page.problems == []


def test_every_screen_is_usable_by_everybody(site: Site, study: Path, tmp_path: Path) -> None:
    """No serious fault that axe-core knows, and nothing cut off at 200 %: at half the width the page never scrolls."""
    page = site.page()
    faults, too_wide = {}, []
    for screen in _screens(page, site, study, tmp_path):
        faults[screen] = _faults(page) if AXE.is_file() else []
        page.tab.set_viewport_size({"width": 640, "height": 360})
        if page.tab.evaluate("document.documentElement.scrollWidth > innerWidth"):
            too_wide.append(screen)
        page.tab.set_viewport_size({"width": 1280, "height": 720})
    assert too_wide == []
    assert {screen: found for screen, found in faults.items() if found} == {}
    if not AXE.is_file():
        pytest.skip("axe-core is not here; `make test-all` fetches it")


def _screens(page: Page, site: Site, study: Path, home: Path) -> Iterator[str]:
    yield "open"
    page.drop(study)
    yield "series"
    _choose_head(page)
    yield "check"
    page.mark("tiny-sam")
    page.tab.mouse.click(*page.on_plane(0, 0.4, 0.4))
    yield "mark"
    page.go("choose")
    yield "choose"
    page.run("brain-structures")
    yield "run"
    page.at("review")
    for screen in ("review", "correct", "report", "examples", "history"):
        page.go(screen)
        yield screen
    page.tab.keyboard.press("?")
    page.tab.wait_for_selector("dialog[open]")
    yield "keys"
    page.tab.goto(site.address + page.tab.evaluate("`api/v1/jobs/${window.medseg.run}/report`"))
    yield "report for printing"
    peer = Peer().start()
    for number in range(2):
        held = made_up_slice(SOPInstanceUID=f"1.{number}", SeriesInstanceUID=f"1.2.{number}", SeriesDescription="T1")
        peer.held[held.SOPInstanceUID] = held
    accounts = {"ann": hash_password("a long enough one")}
    with serving(home, STUB, accounts=accounts, archives={"archive": peer.address}, search=True) as address:
        page.tab.goto(address)
        page.tab.wait_for_selector("input[type=password]")
        yield "login"
        page.tab.fill("input[name=name]", "ann")
        page.tab.fill("input[type=password]", "a long enough one")
        page.tab.keyboard.press("Enter")
        page.tab.fill(".search input >> nth=0", IDENTITY)
        yield "search"
        page.tab.click("text='Search'")
        page.tab.click("text='Show the patients'")
        page.tab.wait_for_selector(f"td >> text={IDENTITY}")
        assert page.tab.locator(".search tbody tr").count() == 2
        yield "found"
        page.tab.click("#ms-logout button")
        page.tab.wait_for_selector("input[type=password]")
    peer.stop()


def _faults(page: Page) -> list[str]:
    if not page.tab.evaluate("'axe' in window"):
        page.tab.evaluate(AXE.read_text(encoding="utf-8"))
    found = page.tab.evaluate("axe.run(document, { resultTypes: ['violations'] })")
    return [
        f"{fault['id']}: {fault['nodes'][0]['html'][:200]}"
        for fault in found["violations"]
        if fault["impact"] in ("serious", "critical")
    ]


@pytest.mark.slow
def test_real_models_on_a_real_head(site: Site, tmp_path: Path) -> None:
    """What a radiologist does who has never seen the page, from the file to the report; nothing stands for anything."""
    files = [tmp_path / "head.nii.gz", tmp_path / "slab.nii.gz", tmp_path / "slab.zip"]
    _write_every_third(io.read(template()), files[0], slices=slice(None))
    _write_every_third(io.read(template()), files[1], slices=slice(25, 33))  # a few are enough to be restored
    with zipfile.ZipFile(files[2], "w") as archive:
        archive.write(files[1], "study/slab.nii.gz")
    with serving(tmp_path / "serve") as address:
        page = site.page(address, patience=600)
        page.bring(files[0])
        planes = page.colours()["planes"]
        assert len(planes) == 3
        assert min(planes) > 0.2, "a head fills its planes"
        page.tab.select_option(VIEW, "render")
        assert page.colours()["lit"] > 0.02, "the rendering is not blank"
        page.tab.select_option(VIEW, "planes")
        assert min(page.colours()["planes"]) > 0.2  # drawn: a page that still renders in software sees no progress
        page.run("brain-structures")
        values = _progress(page)
        assert len(values) > 2, values
        assert values == sorted(values), "progress moves, and forward only"
        texts = [page.tab.locator(f"table.structures tbody {cell}").all_inner_texts() for cell in ("th", "td.number")]
        volumes = dict(zip(*texts, strict=True))
        assert 400 < float(volumes["left cerebral cortex"]) + float(volumes["right cerebral cortex"]) < 1100, "ml"
        page.until("window.medseg.viewer.nv.volumes.length === 2")
        assert page.colours()["coloured"] > 0.05
        page.go("report")
        labels = io.read(page.download("labels.nii.gz", tmp_path), kind="labels")
        assert labels.grid.equals(io.read(files[0]).grid)
        assert "left cerebral cortex" in page.report()
        page.mark("tiny-sam")
        page.tab.mouse.click(*page.on_plane(0, 0.5, 0.4))
        assert page.tab.locator("table.marked tbody tr").count() == 1
        page.tab.keyboard.press("z")
        assert page.tab.locator("table.marked").count() == 0, "the click is undone"
        page.run("brain-structures")  # the longer one, or it may end before the click
        page.tab.wait_for_selector("#ms-cancel", state="attached")
        page.tab.evaluate("document.querySelector('#ms-cancel').click()")  # at once: a click waits for two frames
        page.tab.wait_for_selector("text=Cancelled. Nothing was kept.")
        page.bring(files[2])
        assert min(page.colours()["planes"]) > 0.1, "the zipped volume is shown"
        page.run("mr-denoise")
        page.at("review")
        assert page.colours("restored")["lit"] > 0.01
        assert page.problems == []
        assert page.asked == {address.split("/")[2]}


def _write_every_third(whole: Volume, path: Path, *, slices: slice) -> None:
    """A volume with every third voxel along each axis, and of these some of the slices from bottom to top."""
    affine = whole.affine.copy()
    affine[:3, :3] *= 3
    affine[2, 3] += (slices.start or 0) * affine[2, 2]
    io.write(Volume(np.ascontiguousarray(whole.voxels[::3, ::3, ::3][:, :, slices]), affine), path)


def _progress(page: Page) -> list[float]:
    """The values that the bar goes through until the result is there, none missed between two looks."""
    page.tab.evaluate(
        """() => {
            window.seen = [];
            new MutationObserver(() => {
                const value = document.querySelector('#ms-content progress')?.getAttribute('value');
                if (value && value !== window.seen.at(-1)) window.seen.push(value);
            }).observe(document.querySelector('#ms-content'), {subtree: true, childList: true, attributes: true});
        }"""
    )
    page.until("document.querySelector('[data-screen=review][aria-current=step]') !== null")
    return [float(value) for value in page.tab.evaluate("window.seen")]
