"""A model becomes a bundle that stands on its own, and the check sees what is wrong with one."""

import ast
import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import torch
import yaml

from bundle_cases import Case, run_cases, small_copy
from medseg import io
from medseg.errors import MedsegError, ModelMissing, UsageError
from medseg.io.pictures import read_ids, read_indexed, read_picture
from medseg.volume import Volume
from medseg_pipelines import load_model
from medseg_pipelines.bundle import check, export
from medseg_pipelines.bundle.archive import MANIFEST, METADATA, file_names, read_json
from medseg_pipelines.bundle.kinds import kind_of
from medseg_pipelines.bundle.kinds.kind import volume_fault
from medseg_pipelines.bundle.kinds.restoration import specimen as slices_specimen
from medseg_pipelines.bundle.kinds.segmentation import SegmentationKind
from medseg_pipelines.bundle.kinds.support import support_set_of
from medseg_pipelines.bundle.torchscript import LabelScores
from medseg_pipelines.bundle.vendor import closure, foreign_imports, redirected
from medseg_pipelines.recipe import RECIPE_FILE, load_recipe, recipe_names, template_names
from medseg_pipelines.results import Result
from medseg_pipelines.support import create_support_set
from medseg_pipelines.support_store import load_support_set
from medseg_pipelines.words import EXAMPLES_TRAVEL
from pictures import build_tiny_vessel_model
from tiny_cells import build_tiny_cells
from tiny_model import WINDOW, build_tiny_model
from tiny_restoration import build_tiny_restoration
from tiny_superres import build_superres_model
from tiny_support import NETWORK, outlined, support_model
from tiny_tiles import build_tiny_tiles

TRAINED = ["tiny labels", "tiny labels of slices", "tiny slices", "tiny pictures", "tiny cells"]
UNPAIRED = ["tiny tiles", "tiny doubled", "tiny examples"]  # a bundle has nothing to train these on
TINY = [*TRAINED, *UNPAIRED]
REFUSED = {  # and what of each is named as the reason
    **dict.fromkeys(template_names(), "without weights.*then export RUN"),
    **dict.fromkeys(("db-sam", "db-sam-small", "medsam", "sam"), "boxes or masks mark.*medseg infer --box"),
    "her-seg-pretrain": "teaches an encoder.*--from RUN",
    "sam2-sgp": "weights are yours.*medseg infer --support",
    "support-set": "together with a support set: add --support NAME",
}
pytestmark = pytest.mark.timeout(900)  # the first test waits for all bundles
SHIPPED = [name for name in recipe_names() if name not in REFUSED]

# What a machine with MONAI and the extras that it declares has.
BROUGHT = set(sys.stdlib_module_names) | {"torch", "monai", "numpy", "scipy", "nibabel"}
OPTIONAL = {
    "triton",
    "SimpleITK",
    "pydicom",
    "safetensors",
}  # asked for behind a guard, or only for a format that needs it


@pytest.fixture(scope="module")
def cases(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Case]]:
    """Bundles of a tiny model of every kind and of all that ship, those with small windows."""
    place = tmp_path_factory.mktemp("bundles")
    matching = {"name": "sam2-sgp", "options": {**NETWORK, "matching": 8}}
    models = {
        "tiny labels": model_folder,
        "tiny labels of slices": build_tiny_model(tmp_path_factory.mktemp("flat"), flat=True),
        "tiny slices": build_tiny_restoration(tmp_path_factory.mktemp("restoring")),
        "tiny pictures": build_tiny_vessel_model(tmp_path_factory.mktemp("pictures")),
        "tiny cells": build_tiny_cells(tmp_path_factory.mktemp("cells")),
        "tiny tiles": build_tiny_tiles(tmp_path_factory.mktemp("tiles"), weights=True, window=32),
        "tiny doubled": build_superres_model(tmp_path_factory.mktemp("doubled"), "all"),
        "tiny examples": support_model(place / "examples", network=matching),
        **{name: small_copy(name, place / f"{name} small") for name in SHIPPED},
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MEDSEG_HOME", str(place / "home"))
        images, maps = zip(*[outlined(seed, size=10) for seed in range(3)], strict=True)
        labels = [each.with_voxels(each.voxels**2, kind="labels") for each in maps]  # ids need not follow each other
        create_support_set("balls", images, labels, names={1: "large ball", 4: "small ball"})
        yield run_cases(models, place, {"tiny examples": "balls"})


@pytest.fixture(scope="module")
def bundle(cases: dict[str, Case]) -> Path:
    """The bundle of the tiny model that segments."""
    return cases["tiny labels"].bundle


@pytest.fixture(scope="module")
def restoring(cases: dict[str, Case]) -> Case:
    """The tiny model that restores."""
    return cases["tiny slices"]


def _ours(model: Path, scan: Path) -> Volume:
    """What `medseg infer` makes of an image."""
    result = load_model(model, device="cpu")(scan, force_scope=True)
    assert isinstance(result, Result)
    return result.volume


def _changed(bundle: Path, tuned: Path) -> int:
    """Parameters that a training changed; all must be finite and none may be missing."""
    before, after = (torch.load(path, weights_only=True) for path in (bundle / "models" / "model.pt", tuned))
    assert before.keys() == after.keys()
    assert all(bool(value.isfinite().all()) for value in after.values())
    return sum(not torch.equal(value, after[name]) for name, value in before.items())


@pytest.mark.parametrize("name", [*TINY, *SHIPPED])
def test_monai_runs_the_bundle_without_medseg_and_gives_our_voxels(name: str, cases: dict[str, Case]) -> None:
    case = cases[name]
    assert {step: fault for step, fault in case.found.items() if fault} == {}
    assert case.kind.fault(case.model, case.scan, case.work / "results") is None
    assert check.script_fault(case.kind, case.model, case.work) is None


@pytest.mark.parametrize("name", TINY)
def test_a_checkpoint_is_exported_without_medseg(name: str, cases: dict[str, Case]) -> None:
    assert (cases[name].work / "again.ts").is_file()


@pytest.mark.parametrize("name", TRAINED)
def test_a_bundle_trains_without_medseg(name: str, cases: dict[str, Case]) -> None:
    case = cases[name]
    assert _changed(case.bundle, case.work / "tuned" / "model.pt") > 0


def test_the_stock_configuration_of_labels_gives_a_label_map(cases: dict[str, Case]) -> None:
    case = cases["tiny labels"]
    expected = _ours(case.model, case.scan)
    assert len(np.unique(expected.voxels)) > 2, "the comparison must see more than two labels"
    near = io.read(case.work / "stock" / "specimen_labels.nii.gz", kind="labels")
    assert near.grid.equals(expected.grid, tolerance=1e-4)
    assert len(np.unique(near.voxels)) > 2


def test_the_stock_configuration_of_slices_is_closer_than_no_restoration(restoring: Case) -> None:
    image = io.read(restoring.scan)
    expected = _ours(restoring.model, restoring.scan)
    near = io.read(restoring.work / "stock" / "specimen_restored.nii.gz")
    change = expected.voxels - image.voxels
    assert np.abs(change).max() > 1, "the network must change something"
    assert near.grid.equals(expected.grid, tolerance=1e-4)
    assert np.sqrt(np.mean((near.voxels - expected.voxels) ** 2)) < np.sqrt(np.mean(change**2))


def test_the_stock_configuration_of_pictures_gives_nearly_our_mask(cases: dict[str, Case]) -> None:
    case = cases["tiny pictures"]
    ours = read_indexed(case.work / "results" / "specimen_mask.png")
    near = read_indexed(case.work / "stock" / "specimen_mask.png")
    assert 0.02 < np.mean(ours > 0) < 0.98, "the comparison must see a mask"
    assert np.mean((near > 0) == (ours > 0)) > 0.9


def test_the_stock_configuration_of_things_gives_their_mask(cases: dict[str, Case]) -> None:
    mask = read_indexed(cases["tiny cells"].work / "stock" / "specimen_things.png")
    assert set(np.unique(mask)) == {0, 1}, "cores are no label of their own"
    case = cases["nuclei"]  # the masks of random weights are noise
    ids = read_ids(case.work / "results" / "specimen_things.png")
    assert ids.max() > 1, "the comparison must see several things"
    script = torch.jit.load(case.bundle / "models" / "model.ts").eval()
    pixels = torch.from_numpy(read_picture(case.scan).unit_planes())
    with torch.inference_mode():
        near = script(pixels.mT[None]).argmax(1)[0].mT.numpy()
    assert np.mean((near > 0) == (ids > 0)) > 0.9


def test_without_a_stock_configuration_the_documentation_says_why(cases: dict[str, Case]) -> None:
    bundle = cases["tiny doubled"].bundle
    assert not (bundle / "configs" / "inference_stock.json").exists()
    assert "there is no stock configuration" in (bundle / "docs" / "README.md").read_text(encoding="utf-8")


def test_a_bundle_of_examples_holds_what_the_network_made_of_them_and_says_so(cases: dict[str, Case]) -> None:
    bundle = cases["tiny examples"].bundle
    told, support = read_json(bundle / METADATA), load_support_set("balls")
    assert (told["support_set"], told["support_set_sha256"]) == ("balls", support.card.sha256)
    documents = [(bundle / "docs" / name).read_text(encoding="utf-8") for name in ("README.md", "data_license.txt")]
    assert all(EXAMPLES_TRAVEL in text for text in (told["description"], *documents))
    state = torch.load(bundle / "models" / "model.pt", weights_only=True)
    for number, label in enumerate((1, 4)):
        kept = {name: value for name, value in state.items() if name.startswith(f"kept.{number}.")}
        assert {name.split(".")[-1] for name in kept} == {"likeness", "memory", "places", "inside"}
        slices = sum(len(case.showing(label)) for case in support.cases)
        assert all(len(value) == slices and bool(value.any()) for value in kept.values())
    drawn = io.read(cases["tiny examples"].work / "results" / "specimen_labels.nii.gz", kind="labels")
    assert len(np.unique(drawn.voxels)) > 1, "the comparison must see something that was found"
    names = told["network_data_format"]["outputs"]["pred"]["channel_def"]
    assert names == {"0": "background", "1": "large ball", "4": "small ball"}


@pytest.mark.usefixtures("cases")
def test_only_the_support_set_of_a_bundle_is_compared_with(model_folder: Path, tmp_path: Path) -> None:
    told = {"support_set": "balls", "support_set_sha256": load_support_set("balls").card.sha256}
    found = support_set_of(told)
    assert found is not None
    assert found.card.name == "balls"
    assert support_set_of({}) is None
    with pytest.raises(UsageError, match="another support set than what 'balls' is now"):
        support_set_of({**told, "support_set_sha256": "0" * 64})
    with pytest.raises(UsageError, match="'cubes', which is not here any more"):
        support_set_of({**told, "support_set": "cubes"})
    with pytest.raises(UsageError, match="follows no examples: drop --support"):
        export.build(model_folder, tmp_path, support="balls")
    pictures = replace(found, card=found.card.model_copy(update={"kind": "pictures"}))
    with pytest.raises(UsageError, match="is of pictures, a bundle follows volumes only"):
        kind_of(load_recipe("support-set"), support=pictures)


@pytest.mark.parametrize(("name", "reason"), REFUSED.items())
def test_what_cannot_be_a_bundle_is_said_plainly(name: str, reason: str, tmp_path: Path) -> None:
    with pytest.raises((UsageError, ModelMissing), match=reason):
        export.build(name, tmp_path)


def test_a_difference_of_restored_volumes_is_seen() -> None:
    image = slices_specimen()
    image = image.with_voxels(image.voxels.astype(np.float32))
    other = image.voxels.copy()
    other[3, 4, 5] += 1e-4 * np.ptp(other)
    assert volume_fault(image, image, 1e-5) is None
    assert "differ by up to 0.0001" in str(volume_fault(image.with_voxels(other), image, 1e-5))


def test_only_what_a_model_reaches_travels(restoring: Case) -> None:
    names = file_names(restoring.bundle)
    assert "scripts/medseg/partition/intensity.py" in names
    assert not any(word in name for name in names for word in ("superpixels", "automatic_masks", "recipe", "inferers"))
    sources = [(restoring.bundle / name).read_text(encoding="utf-8") for name in names if name.endswith(".py")]
    assert {stranger for source in sources for stranger in foreign_imports(source)} <= BROUGHT | OPTIONAL
    metadata = read_json(restoring.bundle / METADATA)
    jsonschema.validate(metadata, read_json(check.SCHEMA_FILE))
    image = metadata["network_data_format"]["inputs"]["image"]
    assert (image["num_channels"], image["spatial_shape"]) == (5, ["8*n", "8*n"])
    official = load_model(restoring.model, device="cpu")._network.state_dict()
    assert torch.load(restoring.bundle / "models" / "model.pt", weights_only=True).keys() == official.keys()


def test_code_of_the_bundle_needs_nothing_else(bundle: Path) -> None:
    names = [name for name in file_names(bundle) if name.endswith(".py")]
    needed = {stranger for name in names for stranger in foreign_imports((bundle / name).read_text(encoding="utf-8"))}
    assert needed <= BROUGHT | OPTIONAL
    copied = {name for name in names if not name.endswith("__init__.py")}
    assert "scripts/medseg/networks/wau.py" in copied
    assert not any("recipe" in name or "segmentation" in name for name in copied), "only what is needed travels"


def test_imports_are_redirected_and_text_is_not() -> None:
    source = '"""from medseg import x"""\nfrom medseg.io import read\n\n\ndef f():\n    from medseg import io\n'
    moved = redirected(source)
    assert "from scripts.medseg.io import read" in moved
    assert "    from scripts.medseg import io" in moved
    assert ast.get_docstring(ast.parse(moved)) == "from medseg import x"
    assert {"medseg.io.nifti", "medseg.volume"} <= set(closure(["medseg.io"]))
    with pytest.raises(ValueError, match="from"):
        redirected("import medseg.io\n")


def test_metadata_satisfies_both_generations(bundle: Path) -> None:
    schema, found = read_json(check.SCHEMA_FILE), read_json(bundle / METADATA)
    jsonschema.validate(found, schema)
    assert found["required_packages_version"] == found["optional_packages_version"]
    image = found["network_data_format"]["inputs"]["image"]
    assert (image["spatial_shape"], image["num_channels"], image["format"]) == (list(WINDOW), 1, "magnitude")
    assert found["network_data_format"]["outputs"]["pred"]["num_channels"] == 12
    for key in ("schema", "required_packages_version", "network_data_format"):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({k: v for k, v in found.items() if k != key}, schema)


def test_configurations_follow_the_rules(bundle: Path) -> None:
    own, stock = (read_json(bundle / "configs" / name) for name in ("inference.json", "inference_stock.json"))
    assert own["network_def"]["_requires_"] == "@scripts_path"
    assert own["dataloader"]["num_workers"] == 0
    assert "scripts" not in json.dumps(stock)
    assert "configs/train.json" in (bundle / "docs" / "README.md").read_text(encoding="utf-8")


def test_scores_per_label_decode_like_class_and_side() -> None:
    table = [(0, 0), (2, 1), (3, 3), (5, 4)]
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn((1, 5, 6, 6, 6), generator=generator)
    found = LabelScores(torch.nn.Identity(), table)(scores)[0].argmax(0)
    expected = torch.tensor(table)[scores[0, :4].argmax(0), (scores[0, 4] > 0).long()]
    assert torch.equal(found, expected)


@pytest.fixture
def quick(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Building and checking without what takes long: what the check's process would find can be set."""
    steps = ("verify_metadata", "verify_net_in_out", "run", "properties", "weights", "script")
    found: dict[str, Any] = {**dict.fromkeys(steps), "strangers": []}
    monkeypatch.setattr(export, "build", lambda model, folder, support: _copy(bundle, folder))
    monkeypatch.setattr(check, "probe", lambda trials: [found for _ in trials])
    monkeypatch.setattr(check, "script_fault", lambda *arguments: None)
    monkeypatch.setattr(SegmentationKind, "fault", lambda *arguments: None)
    return found


def _copy(bundle: Path, folder: Path) -> Path:
    for name in file_names(bundle):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes((bundle / name).read_bytes())
    return folder


def _faults(folder: Path, model: Path) -> set[str]:
    return {point.name for point in check.check_bundle(folder, model=model).points if point.fault}


@pytest.mark.usefixtures("quick")
def test_check_sees_what_was_changed(bundle: Path, model_folder: Path, tmp_path: Path) -> None:
    folder = _copy(bundle, tmp_path / "copy")
    assert _faults(folder, model_folder) == set()
    code = folder / "scripts" / "medseg" / "volume.py"
    code.write_text(code.read_text(encoding="utf-8") + "\nfrom medseg.io import read\n", encoding="utf-8")
    assert _faults(folder, model_folder) == {"checksums", "code"}
    told = read_json(folder / MANIFEST)
    told["model"]["weights_sha256"] = "0" * 64
    (folder / MANIFEST).write_text(json.dumps(told), encoding="utf-8")
    assert _faults(folder, model_folder) == {"checksums", "code", "weights"}
    (folder / "LICENSE").unlink()
    assert _faults(folder, model_folder) == {"files"}


def test_check_reports_what_its_process_found(bundle: Path, model_folder: Path, quick: dict[str, Any]) -> None:
    quick.update(script="other voxels", strangers=["triton"])
    assert _faults(bundle, model_folder) == {"model.ts", "run without medseg"}
    with pytest.raises(UsageError, match="add -m"):
        check.check_bundle(bundle)


def test_export_keeps_nothing_that_failed(model_folder: Path, tmp_path: Path, quick: dict[str, Any]) -> None:
    quick["run"] = "no such thing"
    for name in ("tiny", "tiny.zip"):
        with pytest.raises(MedsegError, match="run without medseg"):
            export.export_bundle(model_folder, tmp_path / name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("quick")
def test_export_to_a_zip(model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "tiny-bundle.zip"
    monkeypatch.chdir(tmp_path)
    assert export.export_bundle(model_folder, Path(target.name)).passed, "a path from where the user is"
    with zipfile.ZipFile(target) as archive:
        assert {name.split("/")[0] for name in archive.namelist()} == {"tiny-bundle"}
    assert check.check_bundle(target, model=model_folder).passed
    assert list(tmp_path.iterdir()) == [target]
    with pytest.raises(UsageError, match="add --overwrite"):
        export.export_bundle(model_folder, target)
    assert export.export_bundle(model_folder, target, overwrite=True).passed


def test_only_an_earlier_bundle_is_overwritten(model_folder: Path, tmp_path: Path, quick: dict[str, Any]) -> None:
    target = tmp_path / "tiny"
    assert export.export_bundle(model_folder, target).passed
    (target / "LICENSE").unlink()
    quick["run"] = "no such thing"
    with pytest.raises(MedsegError, match="nothing was written"):
        export.export_bundle(model_folder, target, overwrite=True)
    assert not (target / "LICENSE").exists(), "a bundle that failed replaces nothing"
    quick["run"] = None
    assert export.export_bundle(model_folder, target, overwrite=True).passed
    assert (target / "LICENSE").is_file()
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").touch()
    with pytest.raises(UsageError, match="not replaced"):
        export.export_bundle(model_folder, tmp_path / "photos", overwrite=True)


def test_the_loader_of_monai_label_gives_our_voxels(bundle: Path, model_folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("monailabel")
    scan = tmp_path / "specimen.nii.gz"
    kind_of(load_recipe(model_folder)).write_specimen(scan)
    program = (
        "import sys\n"
        "from monailabel.tasks.infer.bundle import BundleInferTask\n"
        "task = BundleInferTask(sys.argv[1], {'bundle_path': sys.argv[1]})\n"
        "print(task({'image': sys.argv[2], 'image_path': sys.argv[2], 'device': 'cpu'})[0])\n"
    )
    answer = subprocess.run(
        [sys.executable, "-c", program, str(bundle), str(scan)],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())},
        timeout=240,
    )
    labels = io.read(answer.stdout.strip().splitlines()[-1], kind="labels")
    assert np.array_equal(labels.voxels, _ours(model_folder, scan).voxels)


def test_a_model_that_runs_foreign_code_is_not_exported(model_folder: Path, tmp_path: Path) -> None:
    content = yaml.safe_load((model_folder / RECIPE_FILE).read_text(encoding="utf-8"))
    content["network"] = {"name": "trusted-bundle", "options": {"sha256": "0"}}
    (tmp_path / RECIPE_FILE).write_text(yaml.safe_dump(content), encoding="utf-8")
    with pytest.raises(UsageError, match="code of a bundle"):
        export.build(tmp_path, tmp_path / "out")
