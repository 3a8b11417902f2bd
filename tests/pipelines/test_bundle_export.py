"""A model becomes a bundle that stands on its own, and the check sees what is wrong with one."""

import ast
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import torch
import yaml

from medseg import io
from medseg.errors import MedsegError, ModelMissing, UsageError
from medseg_pipelines import load_model
from medseg_pipelines.bundle import check, export
from medseg_pipelines.bundle.archive import MANIFEST, METADATA, file_names, read_json
from medseg_pipelines.bundle.torchscript import LabelScores
from medseg_pipelines.bundle.vendor import closure, foreign_imports, redirected
from medseg_pipelines.recipe import RECIPE_FILE, load_recipe, recipe_names
from tiny_model import WINDOW

# What a machine with MONAI and the extras that it declares has.
BROUGHT = set(sys.stdlib_module_names) | {"torch", "monai", "numpy", "scipy", "nibabel"}
OPTIONAL = {"triton", "SimpleITK", "pydicom"}  # asked for behind a guard, or only for a format that needs it


@pytest.fixture(scope="module")
def bundle(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of the tiny model, unchecked."""
    folder = tmp_path_factory.mktemp("bundles") / "tiny"
    folder.mkdir()
    export.build(model_folder, folder)
    return folder


def test_every_command_of_monai_works_without_medseg_and_gives_our_voxels(
    bundle: Path, model_folder: Path, tmp_path: Path
) -> None:
    recipe, scan = load_recipe(model_folder), tmp_path / "images" / "specimen.nii.gz"
    scan.parent.mkdir()
    io.write(check.specimen(recipe), scan)
    config, script = str(bundle / "configs" / "inference.json"), tmp_path / "again.ts"
    ckpt_export = [
        *["ckpt_export", "network_def", "--filepath", str(script), "--config_file", config, "--use_trace", "True"],
        *["--meta_file", str(bundle / METADATA), "--ckpt_file", str(bundle / "models" / "model.pt")],
        *["--bundle_root", str(bundle)],
    ]
    stock = str(bundle / "configs" / "inference_stock.json")
    places = ["--dataset_dir", str(scan.parent), "--output_dir", str(tmp_path / "stock"), "--device", "cpu"]
    run_stock = ["run", "--config_file", stock, "--bundle_root", str(bundle), *places]
    found = check.probe(bundle, tmp_path, recipe, more={"ckpt_export": ckpt_export, "run_stock": run_stock})
    assert {name: fault for name, fault in found.items() if fault} == {}
    assert script.is_file()

    expected = load_model(model_folder, device="cpu")(scan, force_scope=True).volume
    labels = io.read(tmp_path / "labels" / "specimen_labels.nii.gz", kind="labels")
    assert len(np.unique(expected.voxels)) > 2, "the comparison must see more than two labels"
    assert np.array_equal(labels.voxels, expected.voxels)
    assert labels.grid.equals(expected.grid, tolerance=1e-4)
    near = io.read(tmp_path / "stock" / "specimen_labels.nii.gz", kind="labels")
    assert near.grid.equals(expected.grid, tolerance=1e-4)


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
    assert not (bundle / "configs" / "train.json").exists()
    assert "train.json" in (bundle / "docs" / "README.md").read_text(encoding="utf-8")


def test_scores_per_label_decode_like_class_and_side() -> None:
    table = [(0, 0), (2, 1), (3, 3), (5, 4)]
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn((1, 5, 6, 6, 6), generator=generator)
    found = LabelScores(torch.nn.Identity(), table)(scores)[0].argmax(0)
    expected = torch.tensor(table)[scores[0, :4].argmax(0), (scores[0, 4] > 0).long()]
    assert torch.equal(found, expected)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The check without its process: what that would find can be set."""
    steps = ("verify_metadata", "verify_net_in_out", "run", "properties", "weights", "script")
    found: dict[str, Any] = {**dict.fromkeys(steps), "strangers": []}
    monkeypatch.setattr(check, "probe", lambda *arguments: found)
    monkeypatch.setattr(check, "_compare", lambda *arguments: None)
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
def test_export_to_a_zip(model_folder: Path, tmp_path: Path) -> None:
    target = tmp_path / "tiny-bundle.zip"
    assert export.export_bundle(model_folder, target).passed
    with zipfile.ZipFile(target) as archive:
        assert {name.split("/")[0] for name in archive.namelist()} == {"tiny-bundle"}
    assert check.check_bundle(target, model=model_folder).passed
    assert list(tmp_path.iterdir()) == [target]
    with pytest.raises(UsageError, match="already there"):
        export.export_bundle(model_folder, target)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", [name for name in recipe_names() if load_recipe(name).task == "segmentation"])
def test_every_shipped_model_exports(name: str, tmp_path: Path) -> None:
    try:
        report = export.export_bundle(name, tmp_path / name)
    except ModelMissing as missing:
        pytest.skip(str(missing))
    assert [point.name for point in report.points if point.fault] == []
    assert len(report.points) == 10


def test_the_loader_of_monai_label_gives_our_voxels(bundle: Path, model_folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("monailabel")
    scan = tmp_path / "specimen.nii.gz"
    io.write(check.specimen(load_recipe(model_folder)), scan)
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
    assert np.array_equal(labels.voxels, load_model(model_folder, device="cpu")(scan, force_scope=True).volume.voxels)


def test_a_model_that_runs_foreign_code_is_not_exported(model_folder: Path, tmp_path: Path) -> None:
    content = yaml.safe_load((model_folder / RECIPE_FILE).read_text(encoding="utf-8"))
    content["network"] = {"name": "trusted-bundle", "options": {"sha256": "0"}}
    (tmp_path / RECIPE_FILE).write_text(yaml.safe_dump(content), encoding="utf-8")
    with pytest.raises(UsageError, match="code of a bundle"):
        export.build(tmp_path, tmp_path / "out")
