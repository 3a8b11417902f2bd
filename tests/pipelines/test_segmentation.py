"""Read, prepare, predict, undo: grids, image objects, cancelling, saved files, replay."""

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image

import medseg
from medseg.errors import Cancelled, InputRefused, ModelMissing, UsageError
from medseg.io import from_nibabel, from_sitk, read, to_nibabel, to_sitk, write
from medseg_pipelines import load_model
from medseg_pipelines.case import read_case
from medseg_pipelines.events import Event
from medseg_pipelines.manifest import read_manifest
from medseg_pipelines.replay import replay
from medseg_pipelines.segmentation import Segmentation
from medseg_pipelines.words import UNTRAINED
from tiny_model import head

FILES = ["labels.json", "labels.nii.gz", "manifest.json", "preview.png", "statistics.csv", "statistics.json"]


@pytest.fixture(scope="module")
def model(model_folder: Path) -> Segmentation:
    return load_model(model_folder, device="cpu")


@pytest.mark.parametrize("orientation", ["RAS", "LPS", "LAI"])
def test_result_lies_on_the_grid_of_the_input(model: Segmentation, orientation: str) -> None:
    volume = head(orientation=orientation, spacing=5.0)
    result = model(volume)
    assert result.volume.grid.equals(volume.grid, tolerance=0.0)
    assert result.volume.voxels.dtype.kind == "u"
    assert set(np.unique(result.volume.voxels)) <= {0, *(label.id for label in result.labels)}
    assert [s.voxels for s in result.statistics] == [
        int((result.volume.voxels == label.id).sum()) for label in result.labels
    ]


def test_image_objects_give_the_same_as_the_file(model: Segmentation, tmp_path: Path) -> None:
    path = tmp_path / "scan.nii.gz"
    write(head(), path)
    from_file = model(path)
    for image in (str(path), nibabel.load(path), to_sitk(read(path)), to_nibabel(read(path)), read(path)):
        assert np.array_equal(model(image).volume.voxels, from_file.volume.voxels)
    assert from_nibabel(from_file.to_nibabel(), kind="labels").grid.equals(from_file.volume.grid, tolerance=1e-5)
    assert from_sitk(from_file.to_sitk(), kind="labels").shape == from_file.volume.shape
    with pytest.raises(TypeError, match="image must be a path"):
        model([1, 2, 3])


def test_progress_comes_in_order_and_false_cancels(model: Segmentation) -> None:
    events: list[Event] = []
    model(head(), progress=events.append)
    stages = list(dict.fromkeys(event.stage for event in events))
    assert stages == ["reading", "preparing", "segmenting", "measuring"]
    tiles = [event for event in events if event.stage == "segmenting" and event.done]
    assert [event.done for event in tiles] == list(range(1, tiles[0].total + 1))
    assert tiles[-1].seconds_left == 0.0
    seen: list[Event] = []

    def stop_at_second_tile(event: Event) -> bool:
        seen.append(event)
        return not (event.stage == "segmenting" and event.done == 2)

    with pytest.raises(Cancelled):
        model(head(), progress=stop_at_second_tile)
    assert seen[-1].done == 2


def test_saved_folder_is_complete(model: Segmentation, tmp_path: Path) -> None:
    result = model(head())
    folder = result.save(tmp_path / "out")
    assert sorted(path.name for path in folder.iterdir()) == FILES
    again = read(folder / "labels.nii.gz", kind="labels")
    assert np.array_equal(again.voxels, result.volume.voxels)
    names = json.loads((folder / "labels.json").read_text())
    assert [entry["id"] for entry in names["labels"]] == [label.id for label in result.labels]
    statistics = json.loads((folder / "statistics.json").read_text())
    assert [entry["ml"] for entry in statistics["structures"]] == [s.ml for s in result.statistics]
    manifest = json.loads((folder / "manifest.json").read_text())
    assert UNTRAINED in manifest["warnings"]
    assert set(manifest["seconds"]) == {"reading", "preparing", "segmenting", "measuring"}
    assert manifest["peak_memory_bytes"] > 1e7
    assert str(tmp_path) not in json.dumps(manifest)
    with Image.open(folder / "preview.png") as picture:
        assert picture.getpixel((3, 3)) == (196, 30, 40)
    with pytest.raises(UsageError, match="--overwrite"):
        result.save(folder)


@pytest.mark.parametrize(
    ("ending", "file"), [(".nrrd", "labels.nrrd"), (".mha", "labels.mha"), (".nii", "labels.nii.gz")]
)
def test_format_follows_the_input(model: Segmentation, tmp_path: Path, ending: str, file: str) -> None:
    write(head(spacing=5.0), tmp_path / f"scan{ending}")
    folder = model(tmp_path / f"scan{ending}").save(tmp_path / "out")
    assert (folder / file).is_file()


def test_hash_of_a_file_in_two_parts_covers_the_voxels(tmp_path: Path) -> None:
    hashes = []
    for bright in (0, 1):
        volume = head(spacing=5.0)
        write(volume.with_voxels(volume.voxels + bright), tmp_path / "scan.mhd")
        hashes.append(read_case(tmp_path / "scan.mhd").record.sha256)
    assert hashes[0] != hashes[1]


def test_out_of_scope_needs_a_second_word(model: Segmentation) -> None:
    volume = head()
    ct = volume.with_voxels((volume.voxels - 1000).astype(np.int16))
    with pytest.raises(InputRefused, match="look like CT"):
        model(ct)
    assert any("look like CT" in warning for warning in model(ct, force_scope=True).warnings)
    assert any("9 mm" in warning for warning in model(head(spacing=9.0)).warnings)


def test_memory_limit_refuses_before_the_run(model: Segmentation) -> None:
    with pytest.raises(InputRefused, match="--memory-limit"):
        model(head(), memory_limit=1000)


def test_plan_tells_tiles_memory_and_time(model: Segmentation) -> None:
    plan = model.plan(read_case(head()))
    assert plan.spacing == pytest.approx((4.0, 4.0, 4.0))
    assert plan.tiles >= 8
    assert plan.peak_bytes > 1000
    assert plan.seconds >= 0


def test_replay_repeats_bit_for_bit(model: Segmentation, model_folder: Path, tmp_path: Path) -> None:
    scan = tmp_path / "scan.nii.gz"
    write(head(), scan)
    folder = model(scan).save(tmp_path / "out")
    manifest = read_manifest(folder / "manifest.json")
    found = replay(manifest, folder, model=model_folder)
    assert (found.identical, found.files_intact, found.changed_versions) == (True, True, ())
    (folder / "statistics.csv").write_text("edited")
    assert replay(manifest, folder, model=model_folder).files_intact is False
    volume = read(scan)
    write(volume.with_voxels(volume.voxels + 1), scan)
    with pytest.raises(InputRefused, match="another file"):
        replay(manifest, folder, model=model_folder)
    scan.unlink()
    with pytest.raises(UsageError, match="--input"):
        replay(manifest, folder, model=model_folder)


def test_wrong_models_and_devices(model_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="engine must be one of"):
        load_model(model_folder, engine="steam")
    for device in ("abacus", "cuda:99"):
        with pytest.raises(UsageError, match="device must be"):
            load_model(model_folder, device=device)
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in model_folder.iterdir():
        (broken / file.name).write_bytes(file.read_bytes())
    with (broken / "weights.safetensors").open("ab") as weights:
        weights.write(b"x")
    with pytest.raises(ModelMissing, match="sha256"):
        load_model(broken)
    (broken / "weights.safetensors").unlink()
    with pytest.raises(ModelMissing, match="missing"):
        load_model(broken)


def test_public_door_is_the_same(model_folder: Path) -> None:
    assert isinstance(medseg.load_model(str(model_folder), device="cpu"), Segmentation)
