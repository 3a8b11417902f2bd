"""The door for users of MONAI gives the voxels of our own."""

from pathlib import Path

import numpy as np
import pytest
import torch
from monai.data.meta_tensor import MetaTensor
from monai.data.utils import decollate_batch, list_data_collate
from monai.transforms.compose import Compose
from monai.transforms.post.dictionary import Invertd

from medseg.geometry import to_ras
from medseg.io import read, write
from medseg.volume import Volume
from medseg_pipelines import load_model
from medseg_pipelines.recipe import load_recipe
from medseg_pipelines.transforms import LabelInferer, LoadVolumed, PrepareVolumed, Segmentd, body_of, preparation_of
from tiny_model import head


@pytest.fixture(scope="module")
def scan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An oblique, anisotropic image with axes in another order."""
    volume = head(spacing=3.0, orientation="LPI")
    turn = np.eye(4)
    turn[:3, :3] = [[0.995, -0.0998, 0], [0.0998, 0.995, 0], [0, 0, 1]]
    path = tmp_path_factory.mktemp("scan") / "scan.nii.gz"
    write(Volume(np.ascontiguousarray(volume.voxels.transpose(2, 0, 1)), turn @ volume.affine[:, [2, 0, 1, 3]]), path)
    return path


def test_compose_gives_what_the_model_gives(model_folder: Path, scan: Path) -> None:
    expected = load_model(model_folder)(scan).volume
    found = Compose([LoadVolumed("image"), Segmentd("image", model=model_folder)])({"image": str(scan)})["image"]
    assert isinstance(found, MetaTensor)
    assert np.array_equal(found[0].numpy(), expected.voxels)
    assert np.array_equal(found.affine.numpy(), expected.affine)


def test_parts_give_what_the_model_gives_through_a_batch(model_folder: Path, scan: Path) -> None:
    recipe, segmentation = load_recipe(model_folder), load_model(model_folder)
    expected = segmentation(scan).volume
    before = Compose([LoadVolumed("image"), PrepareVolumed("image", **preparation_of(recipe))])
    batch = list_data_collate([before({"image": str(scan)})])
    inferer = LabelInferer(
        window=recipe.inference.window,
        overlap=recipe.inference.overlap,
        table=recipe.decode.table,
        multiple=2,
        body=body_of(recipe),
    )
    batch["pred"] = inferer(batch["image"], segmentation._predict)
    case = decollate_batch(batch)[0]
    found = Invertd("pred", transform=before, orig_keys="image", nearest_interp=True)(case)["pred"]
    assert np.array_equal(found[0].numpy(), expected.voxels)
    assert np.array_equal(found.affine.numpy(), expected.affine)


def test_the_way_back_is_exact(scan: Path, tmp_path: Path) -> None:
    image = read(scan)
    scan = tmp_path / "frame.nii.gz"  # nothing around the head: the frame is cut off
    write(image.with_voxels(np.where(image.voxels < 100, 0, image.voxels)), scan)
    volume = read(scan)
    steps = Compose(
        [
            LoadVolumed("image"),
            PrepareVolumed("image", orientation="RAS", margin=5.0, spacing=None, percentiles=(0, 100), intensity=()),
        ]
    )
    case = steps({"image": str(scan)})
    turned, _ = to_ras(volume)
    assert case["image"].shape[1:] != turned.shape, "something must have been cut off"
    back = steps.inverse(case)["image"]
    assert np.array_equal(back.affine.numpy(), volume.affine)
    inside = back[0].numpy() != 0
    assert np.array_equal(back[0].numpy()[inside], volume.voxels[inside])


def test_an_image_without_a_place_is_refused() -> None:
    with pytest.raises(ValueError, match="MetaTensor"):
        PrepareVolumed("image", orientation="RAS", margin=None, spacing=None, percentiles=(0, 100))(
            {"image": torch.zeros(1, 4, 4, 4)}
        )
