"""Masks of pictures as bundles."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import ClassVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from medseg.io.pictures import read_indexed
from medseg_pipelines.bundle.kinds.kind import Kind, Part, Steps, Training, Words, plain, plain_tensors, saving
from medseg_pipelines.bundle.kinds.specimen import made_up_fundus
from medseg_pipelines.bundle.torchscript import recorded
from medseg_pipelines.bundle.torchscript_pictures import WholePicture
from medseg_pipelines.bundle.vendor import target_of
from medseg_pipelines.picture_segmentation import PictureSegmentation
from medseg_pipelines.portable.pictures import LoadPictured, PictureMasker, SavePixelsd
from medseg_pipelines.portable.pictures_training import LoadMaskedd, MaskLoss
from medseg_pipelines.recipe import PictureRecipe, recipe_folder

_SIZE = (180, 220)  # px of the specimen, height and width


class PictureKind(Kind[PictureRecipe]):
    """Bundles that draw masks on pictures."""

    POSTFIX: ClassVar = "mask"
    SPECIMEN: ClassVar = "specimen.png"
    SUFFIXES: ClassVar = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".ppm")
    PACKAGES: ClassVar = ("pillow", "scikit-image", "scipy", "pytorch-ignite")
    DATA_TYPE: ClassVar = "png"

    @property
    def outputs(self) -> list[str]:
        """What the channels of the network show."""
        return [label.name for label in self.recipe.labels]

    def code(self) -> list[type]:
        """Reader and segmentation."""
        return [LoadPictured, PictureMasker]

    def steps(self, network: nn.Module) -> Steps:
        """Read, segment as it is, save."""
        labels = [label.id for label in self.recipe.labels]
        return Steps(
            preprocessing=[{"_target_": target_of(LoadPictured), "keys": "image"}],
            inferer={"_target_": target_of(PictureMasker), **self.prepared(), **self.sliding(), "labels": labels},
            postprocessing=[self._saving()],
        )

    def stock_steps(self) -> Steps:
        """The whole picture at once."""
        scale = {"a_min": 0.0, "a_max": 255.0, "b_min": 0.0, "b_max": 1.0}
        return Steps(
            preprocessing=[
                {"_target_": "LoadImaged", "keys": "image"},
                {"_target_": "EnsureChannelFirstd", "keys": "image"},
                {"_target_": "ScaleIntensityRanged", "keys": "image", **scale},
            ],
            inferer={"_target_": "SimpleInferer"},
            postprocessing=[{"_target_": "AsDiscreted", "keys": "pred", "argmax": True}, self._saving()],
        )

    def training(self) -> Training:
        """Fine-tuning on pictures with masks."""
        labels = [label.id for label in self.recipe.labels]
        if len(labels) == 1:
            return self.learning({}, "masks of the same size, bright where there is something to draw")
        numbers = ", ".join(f"{label.id} for {label.name}" for label in self.recipe.labels)
        return self.learning({"masks": "values", "labels": labels}, f"masks of the same size with the values {numbers}")

    def learning(self, masks: Part, content: str) -> Training:
        """A training configuration.

        Args:
            masks: Arguments of `LoadMaskedd` on how masks are read.
            content: What lies in the folder of the masks.
        """
        both = ["image", "label"]
        crop = max(32, self.recipe.inference.window // 2 // 32 * 32)
        return Training(
            preprocessing=[
                {"_target_": target_of(LoadMaskedd), **self.prepared(), **masks},
                {"_target_": "SpatialPadd", "keys": both, "spatial_size": ["@crop", "@crop"]},
                {"_target_": "RandSpatialCropd", "keys": both, "roi_size": ["@crop", "@crop"], "random_size": False},
                *[{"_target_": "RandFlipd", "keys": both, "prob": 0.5, "spatial_axis": axis} for axis in (0, 1)],
                plain_tensors(both),
            ],
            loss={"_target_": target_of(MaskLoss)},
            options={"crop": crop, "batch_size": 4, "learning_rate": 1e-4, "max_epochs": 200},
            code=[LoadMaskedd, MaskLoss],
            folders=("images", "masks"),
            content=content,
        )

    def data_format(self, *, script: bool) -> Part:
        """Windows of prepared channels in, logits out; of `model.ts` whole pictures in, a score per label out."""
        side, labels = self.recipe.inference.window, self.recipe.labels
        form = {"type": "image", "format": "magnitude", "modality": self.recipe.scope.modalities[0]}
        patch = {"spatial_shape": [side, side], "dtype": "float32", "is_patch_data": True, "value_range": []}
        whole = {"spatial_shape": ["*", "*"], "is_patch_data": False}
        seen, scores = len(self.recipe.preparation.mix), {"type": "image", "format": "segmentation"}
        if script:
            colours = {"0": "red", "1": "green", "2": "blue"}
            names = {str(n): name for n, name in enumerate(["background", *(label.name for label in labels)])}
            shared = {**whole, "dtype": "float32", "value_range": [0, 1]}
            return {
                "inputs": {"image": {**form, "num_channels": 3, **shared, "channel_def": colours}},
                "outputs": {"pred": {**scores, "num_channels": len(names), **shared, "channel_def": names}},
            }
        names = {str(n): name for n, name in enumerate(self.outputs)}
        channels = {str(n): f"prepared channel {n}" for n in range(seen)}
        return {
            "inputs": {"image": {**form, "num_channels": seen, **patch, "channel_def": channels}},
            "outputs": {"pred": {**scores, "num_channels": len(names), **patch, "channel_def": names}},
            "post_processed_outputs": {"pred": {**self.drawn(), **whole}},
        }

    def words(self) -> Words:
        """What the documentation says."""
        return Words(
            result=f"The masks are those of `medseg infer -m {self.recipe.name}`, pixel by pixel",
            script="whole pictures of 8 bit per colour, red, green and blue from 0 to 1; it finds the field of view in "
            "a simpler way, so its masks are close to the others and not the same",
            classes=(
                "one picture, grey or in colours",
                "a mask of the same size",
                "logits; label ids after the inferer",
            ),
        )

    def served(self, network: nn.Module) -> nn.Module:
        """A picture in, a score per label out, tiles inside."""
        recipe = self.recipe
        return WholePicture(network, recipe.preparation, recipe.inference, masks=len(recipe.labels)).eval()

    def recorded(self, network: nn.Module) -> nn.Module:
        """The same compiled, so that it takes pictures of any size, around a tile that was recorded."""
        side = self.recipe.inference.window
        sample = torch.rand(
            (1, len(self.recipe.preparation.mix), side, side), generator=torch.Generator().manual_seed(0)
        )
        return cast(nn.Module, torch.jit.script(self.served(recorded(network, sample))))

    def sample(self, seed: int) -> Tensor:
        """A small picture."""
        pixels = made_up_fundus(120 + 8 * seed, 140)
        return torch.from_numpy(pixels.astype(np.float32).transpose(2, 1, 0).copy())[None] / 255

    def write_specimen(self, path: Path) -> None:
        """A round field with dark lines."""
        Image.fromarray(made_up_fundus(*_SIZE)).save(path)

    def fault(self, model: str | Path, scan: Path, folder: Path) -> str | None:
        """The number of pixels that differ."""
        expected = PictureSegmentation(self.recipe, recipe_folder(model), device="cpu")(scan, force_scope=True).labels
        return picture_fault(folder / f"{scan.stem}_{self.POSTFIX}.png", read_indexed, expected)

    def prepared(self) -> Part:
        """What is said of the preparation, wherever pictures are prepared."""
        return {"preparation": plain(self.recipe.preparation.model_dump())}

    def sliding(self) -> Part:
        """What is said of the tiles."""
        return {"inference": plain(self.recipe.inference.model_dump())}

    def drawn(self) -> Part:
        """Type, values and meaning of what the inferer gives."""
        known = {"0": "background", **{str(label.id): label.name for label in self.recipe.labels}}
        plain_ids = {"type": "image", "format": "labels", "num_channels": 1, "dtype": "uint8", "value_range": [0, 255]}
        return {**plain_ids, "channel_def": known}

    def _saving(self) -> Part:
        return {**saving(self.POSTFIX, "uint8"), "output_ext": ".png"}


def saving_pixels(postfix: str) -> Part:
    """A transform of ours that writes whole numbers of any size as pictures beside each other."""
    return {
        "_target_": target_of(SavePixelsd),
        "keys": "pred",
        "output_dir": "@output_dir",
        "output_postfix": postfix,
    }


def picture_fault(
    written: Path, read: Callable[[Path], NDArray[np.integer]], expected: NDArray[np.integer]
) -> str | None:
    """How the picture that a run wrote differs from the expected one, or that it wrote none."""
    if not written.is_file():
        return f"the run wrote no {written.name}"
    found = read(written)
    if found.shape != expected.shape:
        return f"a picture of {found.shape}, expected {expected.shape}"
    differ = int(np.count_nonzero(found != expected))
    return f"{differ} of {found.size} pixels differ" if differ else None
