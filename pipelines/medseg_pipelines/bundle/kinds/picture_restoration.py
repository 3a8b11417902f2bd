"""Pictures restored or enlarged as bundles."""

from __future__ import annotations

from math import gcd
from pathlib import Path
from typing import ClassVar

import torch
from PIL import Image
from torch import Tensor, nn

from medseg.io.pictures import read_picture
from medseg_pipelines.bundle.kinds.kind import Kind, Part, Steps, Words, plain
from medseg_pipelines.bundle.kinds.pictures import picture_fault, saving_pixels
from medseg_pipelines.bundle.kinds.regional import require_portable, unused_partitioners
from medseg_pipelines.bundle.kinds.specimen import made_up_fundus
from medseg_pipelines.bundle.vendor import target_of
from medseg_pipelines.picture_restoration import PictureRestoration
from medseg_pipelines.portable.picture_restoration import PictureRestorer, RegionalPictureRAT
from medseg_pipelines.portable.pictures import LoadPictured, SavePixelsd
from medseg_pipelines.recipe import PictureRestorationRecipe, recipe_folder

_SIZE = (45, 53)  # px of the specimen, height and width
_REGIONS = 4  # of the sample


class PictureRestorationKind(Kind[PictureRestorationRecipe]):
    """Bundles that restore or enlarge pictures with RAT."""

    POSTFIX: ClassVar = "restored"
    SPECIMEN: ClassVar = "specimen.png"
    SUFFIXES: ClassVar = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".ppm")
    PACKAGES: ClassVar = ("pillow", "scikit-image", "scipy", "pytorch-ignite")
    DATA_TYPE: ClassVar = "png"

    def build_network(self) -> RegionalPictureRAT:
        """RAT with the regions as its last channel; errors as of `require_portable`."""
        require_portable(self.recipe)
        return RegionalPictureRAT(**self.recipe.network.options)

    def left_out(self) -> frozenset[str]:
        """Partitioners that the model does not use."""
        return unused_partitioners(self.recipe.partition.kind)

    def code(self) -> list[type]:
        """Reader, restorer and writer."""
        return [LoadPictured, PictureRestorer, SavePixelsd]

    def steps(self, network: nn.Module) -> Steps:
        """Read, restore as it is, save."""
        recipe = self.recipe
        inferer = {
            "_target_": target_of(PictureRestorer),
            "partition": plain(recipe.partition.model_dump()),
            "window": recipe.window,
            "overlap": recipe.overlap,
            "colour": recipe.colour,
        }
        return Steps(
            preprocessing=[{"_target_": target_of(LoadPictured), "keys": "image"}],
            inferer=inferer,
            postprocessing=[saving_pixels(self.POSTFIX)],
        )

    def stock_steps(self) -> None:
        """There are none: stock transforms find no regions."""

    def data_format(self, *, script: bool) -> Part:
        """Windows with region ids in, restored windows out."""
        colours = ["red", "green", "blue"] if self.recipe.colour else ["one colour at a time"]
        form = {"type": "image", "format": "magnitude", "modality": self.recipe.scope.modalities[0]}
        patch = {"dtype": "float32", "is_patch_data": True}
        side, scale = self._side(), self.recipe.scale
        shapes = [[step, step] if script else [f"{step}*n"] * 2 for step in (side, side * scale)]
        seen = {str(n): name for n, name in enumerate([*colours, "region ids, whole numbers from 0 on"])}
        given = {str(n): name for n, name in enumerate(colours)}
        image = {**form, "num_channels": len(seen), "spatial_shape": shapes[0], **patch, "channel_def": seen}
        pred = {**form, "num_channels": len(given), "spatial_shape": shapes[1], **patch, "channel_def": given}
        found = {
            "inputs": {"image": {**image, "value_range": []}},
            "outputs": {"pred": {**pred, "value_range": [0, 1]}},
        }
        whole = {"spatial_shape": ["*", "*"], "dtype": "uint8", "is_patch_data": False, "value_range": [0, 255]}
        drawn = {**form, "num_channels": len(given), "channel_def": given, **whole}
        return found if script else {**found, "post_processed_outputs": {"pred": drawn}}

    def words(self) -> Words:
        """What the documentation says."""
        side = self._side()
        return Words(
            result=f"The restored pictures are those of `medseg infer -m {self.recipe.name}`, pixel by pixel",
            script=f"windows of {side} x {side} pixels with region ids as their last channel; there is no stock "
            "configuration for it, because stock transforms find no regions",
            classes=("one picture, grey or in colours", "none", "a restored window; the restored picture after all"),
            no_training="it would need region ids for crops of two sizes, which `medseg train` makes with code that "
            "no bundle has",
        )

    def served(self, network: nn.Module) -> nn.Module:
        """The network itself."""
        return network

    def sample(self, seed: int) -> Tensor:
        """A window with its regions."""
        generator, side = torch.Generator().manual_seed(seed), self._side()
        image = torch.rand((1, 3 if self.recipe.colour else 1, side, side), generator=generator)
        ids = torch.randint(_REGIONS, (1, 1, side, side), generator=generator).float()
        return torch.cat((image, ids), 1)

    def write_specimen(self, path: Path) -> None:
        """A small picture in colours."""
        Image.fromarray(made_up_fundus(*_SIZE)).save(path)

    def fault(self, model: str | Path, scan: Path, folder: Path) -> str | None:
        """The number of pixels that differ."""
        expected = PictureRestoration(self.recipe, recipe_folder(model), device="cpu")(scan, force_scope=True).pixels
        written = folder / f"{scan.stem}_{self.POSTFIX}.png"
        return picture_fault(written, lambda path: read_picture(path).pixels, expected)

    def _side(self) -> int:
        """Pixels of a window that the network takes; also of what is recorded."""
        multiple, scale = self.build_network().multiple, self.recipe.scale
        return multiple // gcd(multiple, scale)
