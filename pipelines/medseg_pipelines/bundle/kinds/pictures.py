"""Masks of pictures as bundles."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from medseg.errors import UsageError
from medseg.io.pictures import read_indexed
from medseg_pipelines.bundle.kinds.kind import Kind, Part, Steps, Training, Words, plain, saving
from medseg_pipelines.bundle.kinds.specimen import made_up_fundus
from medseg_pipelines.bundle.torchscript import recorded
from medseg_pipelines.bundle.torchscript_pictures import WholePicture
from medseg_pipelines.bundle.vendor import target_of
from medseg_pipelines.picture_segmentation import PictureSegmentation
from medseg_pipelines.portable.pictures import LoadPictured, PictureMasker
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

    def build_network(self) -> nn.Module:
        """The network of the recipe.

        Raises:
            UsageError: The model tells things apart, which no bundle can.
        """
        if self.recipe.instances is not None:
            raise UsageError(
                f"model '{self.recipe.name}' must draw masks to be a bundle, it tells things apart one by one, which "
                "`medseg infer` alone can do"
            )
        return super().build_network()

    def code(self) -> list[type]:
        """Reader and segmentation."""
        return [LoadPictured, PictureMasker]

    def steps(self, network: nn.Module) -> Steps:
        """Read, segment as it is, save."""
        inferer = {
            "_target_": target_of(PictureMasker),
            **self._preparation(),
            "inference": plain(self.recipe.inference.model_dump()),
            "labels": [label.id for label in self.recipe.labels],
        }
        return Steps(
            preprocessing=[{"_target_": target_of(LoadPictured), "keys": "image"}],
            inferer=inferer,
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

    def training(self) -> Training | None:
        """Fine-tuning on pictures with masks, where there is one kind of thing to draw."""
        if len(self.recipe.labels) > 1:
            return None
        both = ["image", "label"]
        crop = max(32, self.recipe.inference.window // 2 // 32 * 32)
        return Training(
            preprocessing=[
                {"_target_": target_of(LoadMaskedd), **self._preparation()},
                {"_target_": "SpatialPadd", "keys": both, "spatial_size": ["@crop", "@crop"]},
                {"_target_": "RandSpatialCropd", "keys": both, "roi_size": ["@crop", "@crop"], "random_size": False},
                *[{"_target_": "RandFlipd", "keys": both, "prob": 0.5, "spatial_axis": axis} for axis in (0, 1)],
            ],
            loss={"_target_": target_of(MaskLoss)},
            options={"crop": crop, "batch_size": 4, "learning_rate": 1e-4, "max_epochs": 200},
            code=[LoadMaskedd, MaskLoss],
            folders=("images", "masks"),
            content="masks of the same size, bright where there is something to draw",
        )

    def data_format(self, *, script: bool) -> Part:
        """Windows of prepared channels in, logits out; of `model.ts` whole pictures in, a score per label out."""
        side, labels = self.recipe.inference.window, self.recipe.labels
        form = {"type": "image", "format": "magnitude", "modality": self.recipe.scope.modalities[0]}
        patch = {"spatial_shape": [side, side], "dtype": "float32", "is_patch_data": True, "value_range": []}
        whole = {"spatial_shape": ["*", "*"], "is_patch_data": False}
        known = {"0": "background", **{str(label.id): label.name for label in labels}}
        drawn = {"type": "image", "format": "labels", "num_channels": 1, "dtype": "uint8", "value_range": [0, 255]}
        seen, scores = len(self.recipe.preparation.mix), {"type": "image", "format": "segmentation"}
        if script:
            colours = {"0": "red", "1": "green", "2": "blue"}
            names = {str(n): name for n, name in enumerate(["background", *(label.name for label in labels)])}
            shared = {**whole, "dtype": "float32", "value_range": [0, 1]}
            return {
                "inputs": {"image": {**form, "num_channels": 3, **shared, "channel_def": colours}},
                "outputs": {"pred": {**scores, "num_channels": len(names), **shared, "channel_def": names}},
            }
        names = {str(n): label.name for n, label in enumerate(labels)}
        channels = {str(n): f"prepared channel {n}" for n in range(seen)}
        return {
            "inputs": {"image": {**form, "num_channels": seen, **patch, "channel_def": channels}},
            "outputs": {"pred": {**scores, "num_channels": len(labels), **patch, "channel_def": names}},
            "post_processed_outputs": {"pred": {**drawn, **whole, "channel_def": known}},
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
            no_training="it would have to draw one kind of thing, not several",
        )

    def served(self, network: nn.Module) -> nn.Module:
        """A picture in, a score per label out, tiles inside."""
        return WholePicture(network, self.recipe.preparation, self.recipe.inference).eval()

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
        written = folder / f"{scan.stem}_{self.POSTFIX}.png"
        if not written.is_file():
            return "the run wrote no mask"
        found = read_indexed(written)
        expected = PictureSegmentation(self.recipe, recipe_folder(model), device="cpu")(scan, force_scope=True).labels
        if found.shape != expected.shape:
            return f"mask of {found.shape}, expected {expected.shape}"
        differ = int(np.count_nonzero(found != expected))
        return f"{differ} of {found.size} pixels differ" if differ else None

    def _preparation(self) -> dict[str, Any]:
        return {"preparation": plain(self.recipe.preparation.model_dump())}

    def _saving(self) -> Part:
        return {**saving(self.POSTFIX, "uint8"), "output_ext": ".png"}
