"""Foreign bundles become models; hostile ones are refused and cannot run a line."""

import io
import os
import pickle
import stat
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.bundle.config_parser import ConfigParser

from medseg import Volume, write
from medseg.errors import InputRefused, ModelMissing, UsageError
from medseg_pipelines import load_model, nets
from medseg_pipelines.bundle.archive import pack
from medseg_pipelines.bundle.importing import import_bundle
from medseg_pipelines.recipe import imported_names, load_recipe
from zoo_bundles import WINDOW, build_network, build_zoo_bundle, config, write_config


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for imported models that nobody else sees."""
    monkeypatch.setenv("MEDSEG_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """The UNet of the zoo's shape."""
    return build_zoo_bundle(tmp_path / "zoo")


def _image() -> Volume:
    """One window of 1 mm with CT-like values, oriented RAS."""
    voxels = np.random.default_rng(1).normal(40, 90, WINDOW).round().astype(np.int16)
    return Volume(voxels, np.diag([1.0, 1.0, 1.0, 1.0]))


@pytest.mark.parametrize(("network", "form"), [("UNet", "json"), ("SegResNet", "yaml"), ("DynUNet", "json")])
def test_zoo_bundle_gives_what_monai_gives(network: str, form: str, tmp_path: Path) -> None:
    folder = build_zoo_bundle(tmp_path / "zoo", network, form=form)
    model = import_bundle(pack(folder, tmp_path / "zoo.zip") if network == "UNet" else folder)
    assert imported_names() == [model.name]
    write(_image(), tmp_path / "scan.nii.gz")
    parser = ConfigParser()
    parser.read_config(str(folder / "configs" / f"inference.{form}"))
    prepared = parser.get_parsed_content("preprocessing")({"image": str(tmp_path / "scan.nii.gz")})["image"]
    with torch.inference_mode():
        expected = build_network(network)(prepared[None].as_tensor())[0].argmax(0).numpy()
    found = load_model(model.name)(tmp_path / "scan.nii.gz")
    assert len(np.unique(expected)) > 1, "the comparison must see more than one label"
    assert np.mean(found.volume.voxels != expected) < 1e-3  # voxels whose two best scores are equal to rounding
    assert found.labels[0].name == "left organ"


def test_texts_of_others_cannot_reach_into_the_terminal(bundle: Path) -> None:
    recipe = load_recipe(import_bundle(bundle, name="Mine").name)
    assert recipe.name == "mine"
    assert recipe.summary == "Random weights [31mwith colour."


def test_an_exported_bundle_comes_back_as_the_same_model(model_folder: Path, tmp_path: Path) -> None:
    from medseg_pipelines.bundle.export import build
    from tiny_model import head

    (tmp_path / "ours").mkdir()
    build(model_folder, tmp_path / "ours")
    model = import_bundle(tmp_path / "ours", name="back")
    expected, found = (load_model(name)(head()).volume.voxels for name in (model_folder, model.name))
    assert np.array_equal(found, expected)


def test_everything_that_was_not_understood_is_listed(bundle: Path, home: Path) -> None:
    content = config("UNet")
    content["network_def"]["_target_"] = "scripts.net.Mine"
    content["preprocessing"]["transforms"].insert(3, {"_target_": "CropForegroundd", "keys": "image"})
    content["preprocessing"]["transforms"][2]["axcodes"] = "LPS"
    content["inferer"]["overlap"] = "$0.25 + 0.25"
    content["postprocessing"]["transforms"][2] = {"_target_": "Lambdad", "keys": "pred", "func": "$lambda x: x"}
    write_config(bundle, content)
    with pytest.raises(InputRefused) as refusal:
        import_bundle(bundle)
    for word in ("scripts.net.Mine", "CropForegroundd", "LPS", "0.25 + 0.25", "lambda", "argmax", "--trust-code"):
        assert word in str(refusal.value)
    assert not list(home.glob("models/*"))


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c["preprocessing"]["transforms"].insert(2, {"_target_": "ScaleIntensityd", "keys": "image"}),
        lambda c: c["inferer"].update(roi_size=[32, 32]),
        lambda c: c["inferer"].update(_target_="SimpleInferer"),
        lambda c: c["network_def"].update(in_channels=4),
        lambda c: c["network_def"].update(out_channels=3),
        lambda c: c["network_def"].update(spatial_dims=2),
        lambda c: c["network_def"].update(_target_="evil.UNet"),
        lambda c: c["network_def"].update(channels="@network_def"),
        lambda c: c.update(image_key="@image_key", pixdim="@pixdim"),
        lambda c: c["preprocessing"]["transforms"][4].update(keys=["image", "other"]),
        lambda c: c["postprocessing"]["transforms"][0].update(softmax=False, sigmoid=True),
        lambda c: c.update(preprocessing="%other.json#preprocessing"),
    ],
)
def test_what_cannot_be_served_alike_is_refused(change: Callable[[dict[str, Any]], Any], bundle: Path) -> None:
    content = config("UNet")
    change(content)
    write_config(bundle, content)
    with pytest.raises((InputRefused, ModelMissing)):
        import_bundle(bundle)


class _Code:
    """A pickle that runs a command when it is opened."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


def _pickle_with_code(bundle: Path, marker: Path) -> None:
    (bundle / "models" / "model.pt").write_bytes(pickle.dumps({"a": _Code(marker)}))


def _archive_with_code(bundle: Path, marker: Path) -> None:
    torch.save({"weight": torch.zeros(1), "extra": _Code(marker)}, bundle / "models" / "model.pt")


def _expression(bundle: Path, marker: Path) -> None:
    content = config("UNet")
    content["network_def"]["strides"] = f"$__import__('os').mkdir({str(marker)!r})"
    write_config(bundle, content)


def _target(bundle: Path, marker: Path) -> None:
    content = config("UNet")
    content["network_def"] = {"_target_": "os.mkdir", "path": str(marker)}
    write_config(bundle, content)


def _transform(bundle: Path, marker: Path) -> None:
    content = config("UNet")
    content["preprocessing"]["transforms"].append({"_target_": "scripts.run.Me", "keys": "image"})
    write_config(bundle, content)
    (bundle / "scripts").mkdir()
    code = f"import os\nos.mkdir({str(marker)!r})\n"
    (bundle / "scripts" / "__init__.py").write_text(code, encoding="utf-8")


def _yaml_tag(bundle: Path, marker: Path) -> None:
    (bundle / "configs" / "inference.json").unlink()
    text = f"network_def: !!python/object/apply:os.mkdir [{str(marker)!r}]\n"
    (bundle / "configs" / "inference.yaml").write_text(text, encoding="utf-8")


def _yaml_aliases(bundle: Path, marker: Path) -> None:
    (bundle / "configs" / "inference.json").unlink()
    lines = ["a0: &a0 [1, 1]"] + [f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]" for n in range(1, 40)]
    lines += ["network_def: {_target_: UNet, channels: *a39}"]
    (bundle / "configs" / "inference.yaml").write_text("\n".join(lines), encoding="utf-8")


def _compressed_weights(bundle: Path, marker: Path) -> None:
    path = bundle / "models" / "model.pt"
    with zipfile.ZipFile(path) as old:
        content = {entry.filename: old.read(entry) for entry in old.infolist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        for name, data in content.items():
            new.writestr(name, data)


def _link(bundle: Path, marker: Path) -> None:
    (bundle / "docs" / "README.md").symlink_to("/etc/hostname")


@pytest.mark.parametrize(
    "harm",
    [
        _pickle_with_code,
        _archive_with_code,
        _expression,
        _target,
        _transform,
        _yaml_tag,
        _yaml_aliases,
        _compressed_weights,
        _link,
    ],
)
def test_a_hostile_bundle_cannot_run_a_line(
    harm: Callable[[Path, Path], None], bundle: Path, home: Path, tmp_path: Path
) -> None:
    marker = tmp_path / "harmed"
    harm(bundle, marker)
    with pytest.raises(InputRefused):
        import_bundle(bundle)
    assert not marker.exists()
    assert not list(home.glob("models/*"))


def test_code_where_it_does_not_matter_is_not_run_either(bundle: Path, tmp_path: Path) -> None:
    content = config("UNet")
    for key in ("initialize", "run", "imports"):
        content[key] = [f"$__import__('os').mkdir({str(tmp_path / 'harmed')!r})"]
    write_config(bundle, content)
    model = import_bundle(bundle)
    load_model(model.name)(_image())
    assert not (tmp_path / "harmed").exists()


def _entry(name: str, mode: int = 0) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name)
    entry.external_attr = mode << 16
    return entry


@pytest.mark.parametrize(
    ("entries", "word"),
    [
        ([(_entry("../out.txt"), b"x")], "leads out"),
        ([(_entry("/tmp/out.txt"), b"x")], "leads out"),
        ([(_entry("a/b\\..\\c"), b"x")], "leads out"),
        ([(_entry("c:/out.txt"), b"x")], "leads out"),
        ([(_entry("link", stat.S_IFLNK | 0o777), b"/etc/hostname")], "link"),
        ([(_entry("pipe", stat.S_IFIFO | 0o644), b"")], "link"),
        ([(_entry("a"), b"x"), (_entry("A"), b"y")], "same name"),
        ([(_entry("bomb"), bytes(50 << 20))], "times its size"),
        ([(_entry(f"{n}.txt"), bytes(1 << 20)) for n in range(65)], "times its size"),
    ],
    ids=["above", "absolute", "backslash", "drive", "link", "pipe", "twice", "bomb", "many small bombs"],
)
def test_archives_that_harm_are_refused(
    entries: list[tuple[zipfile.ZipInfo, bytes]], word: str, tmp_path: Path
) -> None:
    path = tmp_path / "bundle.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for entry, content in entries:
            archive.writestr(entry, content, compress_type=zipfile.ZIP_DEFLATED)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(InputRefused, match=word):
        import_bundle(path)
    assert sorted(tmp_path.rglob("*")) == before


def test_an_entry_that_lies_about_its_size_is_refused(bundle: Path, tmp_path: Path) -> None:
    path = pack(bundle, tmp_path / "bundle.zip")
    content = bytearray(path.read_bytes())
    size = (bundle / "LICENSE").stat().st_size.to_bytes(4, "little")
    at = content.rfind(b"bundle/LICENSE") - 46 + 24  # uncompressed size in the central directory
    assert content[at : at + 4] == size
    content[at : at + 4] = (1).to_bytes(4, "little")
    path.write_bytes(bytes(content))
    with pytest.raises(InputRefused):
        import_bundle(path)


@pytest.mark.parametrize("content", [b"", b"no zip at all", b"PK\x03\x04 cut"], ids=["empty", "text", "cut"])
def test_what_is_no_archive_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "bundle.zip").write_bytes(content)
    with pytest.raises(InputRefused, match="whole zip"):
        import_bundle(tmp_path / "bundle.zip")


def test_weights_must_fit_to_the_last_name(bundle: Path) -> None:
    state = torch.load(bundle / "models" / "model.pt", weights_only=True)
    state.pop(next(iter(state)))
    torch.save(state, bundle / "models" / "model.pt")
    with pytest.raises(ModelMissing, match="do not fit"):
        import_bundle(bundle)


def test_weights_inside_a_trainers_checkpoint_are_found(bundle: Path) -> None:
    state = torch.load(bundle / "models" / "model.pt", weights_only=True)
    buffer = io.BytesIO()
    torch.save({"epoch": 3, "state_dict": {f"module.{name}": value for name, value in state.items()}}, buffer)
    (bundle / "models" / "model.pt").write_bytes(buffer.getvalue())
    assert load_model(import_bundle(bundle).name)(_image()).volume.shape == WINDOW


def test_names_that_are_taken_are_refused(bundle: Path) -> None:
    with pytest.raises(UsageError, match="ships"):
        import_bundle(bundle, name="brain-structures")
    import_bundle(bundle, name="mine")
    with pytest.raises(UsageError, match="there already"):
        import_bundle(bundle, name="mine")


def test_trusted_code_runs_and_is_watched(bundle: Path, home: Path) -> None:
    content = config("UNet")
    content["network_def"]["_target_"] = "scripts.net.Mine"
    write_config(bundle, content)
    (bundle / "scripts").mkdir()
    (bundle / "scripts" / "__init__.py").write_text("", encoding="utf-8")
    code = "from monai.networks.nets import UNet\n\n\nclass Mine(UNet):\n    pass\n"
    (bundle / "scripts" / "net.py").write_text(code, encoding="utf-8")
    digest = nets.folder_digest(bundle)
    with pytest.raises(InputRefused, match=digest):
        import_bundle(bundle)
    with pytest.raises(UsageError, match="sha256"):
        import_bundle(bundle, trust_code="0" * 64)
    model = import_bundle(bundle, trust_code=digest)
    assert load_model(model.name)(_image()).volume.shape == WINDOW
    (model.folder / "bundle" / "scripts" / "net.py").write_text(code + "# changed\n", encoding="utf-8")
    with pytest.raises(ModelMissing, match="trusted"):
        load_model(model.name)
