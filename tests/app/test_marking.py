"""Jobs with prompts and with examples, as the worker of the page does them: results, privacy on the disk, refusals."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from medseg import io
from medseg_app.jobs.offered import offered_names
from medseg_app.jobs.supporting import _common
from medseg_app.jobs.worker import answer
from medseg_app.server.confidence import confidence
from tiny_model import head
from tiny_prompting import build_tiny_prompting
from tiny_support import outlined, outlined_files, support_model

MARKS = {
    "space": "mm",
    "names": {"2": "lesion"},
    "prompts": [
        {"kind": "box", "first": [-40, -40, 0], "last": [40, 40, 0], "label": 1},
        {"kind": "point", "at": [10, 10, 0], "inside": False, "label": 1},
        {"kind": "point", "at": [-20, 5, 4], "inside": True, "label": 2},
    ],
}


class Home:
    """The folders of a server, without the server."""

    def __init__(self, folder: Path) -> None:
        self.uploads, self.jobs = folder / "uploads", folder / "jobs"

    def bring(self, upload: str, path: Path) -> str:
        (self.uploads / upload).mkdir(parents=True)
        ending = "".join(path.suffixes)
        (self.uploads / upload / f"image000000{ending}").write_bytes(path.read_bytes())
        return upload

    def do(self, kind: str, job: str, upload: str, **request: Any) -> tuple[str, str]:
        (self.jobs / job).mkdir(parents=True)
        (self.uploads / upload).mkdir(parents=True, exist_ok=True)
        folders = {"folder": str(self.jobs / job), "upload": str(self.uploads / upload)}
        return answer({"kind": kind, "request": request, "memory_limit": 1 << 30, **folders}, lambda event: None)

    def result(self, job: str) -> Path:
        return self.jobs / job / "result"

    def manifest(self, job: str) -> dict[str, Any]:
        return json.loads((self.result(job) / "manifest.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A server with a model that follows prompts, one that follows examples, and one support set."""
    folder = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MEDSEG_HOME", str(folder / "data"))
        (folder / "data" / "models" / "tiny-sam").mkdir(parents=True)
        build_tiny_prompting(folder / "data" / "models" / "tiny-sam")
        support_model(folder / "data" / "models" / "tiny-support")
        made = Home(folder / "serve")
        images, labels = outlined_files(folder / "cases")
        for number, (image, label) in enumerate(zip(images, labels, strict=True)):
            made.bring(f"image{number}", image)
            made.bring(f"label{number}", label)
        io.write(head(spacing=6.0), folder / "head.nii.gz")
        made.bring("head", folder / "head.nii.gz")
        assert _make(made, "balls", _cases(), names={"1": "large ball"}) == ("done", "")
        yield made


def _cases() -> list[dict[str, str]]:
    return [{"upload": f"image{number}", "labels": f"label{number}"} for number in range(3)]


def _make(home: Home, job: str, cases: list[dict[str, str]], **more: Any) -> tuple[str, str]:
    asked = {"name": job, "cases": cases, "names": {}, "modality": None, "plane": None, **more}
    return home.do("support", job, f"folder of {job}", **asked)


def test_marks_become_a_label_map_with_its_marks_beside_it(home: Home) -> None:
    assert home.do("run", "marked", "head", model="tiny-sam", prompts=MARKS, propagate=False) == ("done", "")
    labels = io.read(home.result("marked") / "labels.nii.gz", kind="labels")
    assert labels.grid.equals(io.read(home.uploads / "head" / "image000000.nii.gz").grid)
    kept = json.loads((home.result("marked") / "prompts.json").read_text())
    assert [mark["at"] for mark in kept["prompts"] if mark["kind"] == "point"] == [[10, 10, 0], [-20, 5, 4]]
    manifest = home.manifest("marked")
    assert (manifest["model"]["trained"], manifest["options"]["propagate"]) == (False, False)
    names = [label["name"] for label in json.loads((home.result("marked") / "labels.json").read_text())["labels"]]
    assert names == ["structure 1", "lesion"]
    assert (home.result("marked") / "view" / "main.nii").is_file()
    told = confidence(manifest)
    assert [(one.id, one.kind, one.sure) for one in told] == [(1, "presence", None), (2, "presence", None)]
    assert all(one.score is not None and 0 <= one.score <= 1 for one in told)
    state, reason = home.do("correct", "rejected", "head", of="marked", rejected=[1], comment="")
    assert (state, reason) == ("done", "")
    left = io.read(home.result("rejected") / "labels.nii.gz", kind="labels").voxels
    assert set(np.unique(left)) <= {0, 2}


def test_marks_outside_the_image_are_refused_in_one_sentence(home: Home) -> None:
    far = {"space": "mm", "prompts": [{"kind": "point", "at": [900, 0, 0]}]}
    state, reason = home.do("run", "far", "head", model="tiny-sam", prompts=far)
    assert (state, reason.split(",")[0]) == ("refused", "point must lie within the image")
    assert not home.result("far").exists()


def test_marks_on_a_picture(home: Home, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (40, 60, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    marks = {"space": "px", "prompts": [{"kind": "box", "first": [5, 5, 0], "last": [40, 30, 0]}]}
    home.bring("photo", tmp_path / "photo.png")
    assert home.do("check", "looked", "photo")[0] == "done"
    cards = {card["name"]: card for card in home.manifest("looked")["models"]}
    assert (cards["tiny-sam"]["fits"], cards["tiny-sam"]["accepts"]) == ("yes", ["points", "boxes", "masks"])
    assert cards["brain-structures"]["fits"] == "no"
    assert home.do("run", "photo marked", "photo", model="tiny-sam", prompts=marks) == ("done", "")
    assert Image.open(home.result("photo marked") / "labels.png").size == (60, 40)


def test_a_set_lies_with_its_owner_and_shows_what_it_holds(home: Home) -> None:
    card = home.manifest("balls")["card"]
    assert [(label["id"], label["name"]) for label in card["labels"]] == [(1, "large ball")]
    assert (card["name"], card["cases"]) == ("balls", 3)
    assert Image.open(home.result("balls") / "sheet.png").width > 600
    data = home.jobs.parent.parent / "data"
    assert not (data / "support-sets").exists(), "what all users of the machine see is not touched"


def test_a_run_by_example_tells_how_sure_it_is_and_leaves_nothing_outside(home: Home) -> None:
    assert home.do("run", "found", "image0", model="tiny-support", support="balls") == ("done", "")
    manifest = home.manifest("found")
    assert manifest["support"]["name"] == "balls"
    assert [(one.id, one.kind) for one in confidence(manifest)] == [(1, "agreement")]
    doubt = io.read(home.result("found") / "view" / "doubt.nii")
    assert doubt.grid.equals(io.read(home.uploads / "image0" / "image000000.nii.gz").grid, tolerance=1e-3)
    assert len(list((home.jobs / "balls" / "cache").iterdir())) == 3, "what the network makes of the set goes with it"
    assert not (home.jobs.parent.parent / "data" / "support-cache").exists()


def test_a_corrected_result_serves_as_a_case(home: Home) -> None:
    assert home.do("run", "made", "image0", model="tiny-support", support="balls")[0] == "done"
    labels = io.read(home.uploads / "label0" / "image000000.nii.gz", kind="labels")
    io.write(labels.with_voxels((labels.voxels == 2).astype(np.uint8)), home.uploads / "image0" / ".drawing.nii")
    assert home.do("correct", "corrected", "image0", of="made", drawing=".drawing.nii") == ("done", "")
    cases = [{"upload": "image0", "job": "corrected"}, *_cases()[1:]]
    assert _make(home, "again", cases, names={"1": "ball"}) == ("done", "")
    assert [label["name"] for label in home.manifest("again")["card"]["labels"]] == ["ball"]


def test_structures_keep_the_names_that_models_gave_them() -> None:
    volumes = tuple(outlined(seed)[1] for seed in range(2))
    names = {1: "large", 2: "small", 3: "nowhere"}
    assert _common(volumes, (names, names)) == {1: "large", 2: "small"}
    assert _common(volumes, (names, {1: "large"})) == {1: "large"}
    assert _common(volumes, (names, {})) is None, "somebody drew one of them"


def test_what_cannot_be_made_is_refused_in_one_sentence(home: Home) -> None:
    gone = [*_cases()[:2], {"upload": "nothing", "labels": "label2"}]
    twice = [_cases()[0], _cases()[0], _cases()[1]]
    for number, (cases, more, words) in enumerate(
        [
            (gone, {}, "case 3: its files are not there any more"),
            (twice, {}, "two are equal"),
            (_cases(), {"names": {"9": "ball"}}, "label of case 1: must hold ball"),
        ]
    ):
        state, reason = _make(home, f"bad{number}", cases, **more)
        assert (state, words in reason) == ("refused", True), reason
        assert not home.result(f"bad{number}").exists()
    state, reason = home.do("run", "lost", "image0", model="tiny-support", support="bad0")
    assert (state, reason.split(";")[0]) == ("refused", "support set is not there any more")


def test_models_without_their_weights_are_not_offered(home: Home, tmp_path: Path) -> None:
    assert {"tiny-sam", "tiny-support", "brain-structures"} <= set(offered_names())
    assert "sam" not in offered_names()
    kept = home.jobs.parent.parent / "data" / "weights" / "sam-vit-b"
    kept.mkdir(parents=True)
    (kept / "weights.safetensors").write_bytes(b"")
    assert "sam" in offered_names()
