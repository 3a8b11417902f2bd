"""Volumes with finer voxels as bundles."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn

from medseg import io
from medseg_pipelines.bundle.kinds.kind import Kind, Part, Steps, Words, plain, saving, volume_fault
from medseg_pipelines.bundle.kinds.specimen import made_up
from medseg_pipelines.bundle.vendor import target_of
from medseg_pipelines.portable.superresolution import FinerVoxels
from medseg_pipelines.portable.volumes import LoadVolumed
from medseg_pipelines.recipe import SuperResolutionRecipe, recipe_folder
from medseg_pipelines.superresolution import SuperResolution
from medseg_pipelines.superresolution_grid import channels_and_doublings

_EQUAL = 1e-5  # of the range of the grey values
_SPECIMENS = {"all": ((18, 16, 14), (1.0, 1.2, 1.1)), "slices": ((18, 16, 4), (1.0, 1.1, 4.0))}  # voxels and mm


class SuperResolutionKind(Kind[SuperResolutionRecipe]):
    """Bundles that give volumes finer voxels."""

    POSTFIX: ClassVar = "finer"

    def code(self) -> list[type]:
        """Reader and super-resolution."""
        return [LoadVolumed, FinerVoxels]

    def steps(self, network: nn.Module) -> Steps:
        """Read, refine, save on the finer grid."""
        return Steps(
            preprocessing=[{"_target_": target_of(LoadVolumed), "keys": "image"}],
            inferer={"_target_": target_of(FinerVoxels), "upscaling": plain(self.recipe.upscaling.model_dump())},
            postprocessing=[saving(self.POSTFIX, "float32")],
        )

    def stock_steps(self) -> None:
        """There are none: stock transforms know no grid that follows from that of the image."""

    def data_format(self, *, script: bool) -> Part:
        """Windows in units of the network."""
        channels, doublings = channels_and_doublings(self.recipe.upscaling)
        window = self.recipe.upscaling.window
        form = {"type": "image", "format": "magnitude", "modality": self.recipe.scope.modalities[0]}
        patch = {"dtype": "float32", "is_patch_data": True, "value_range": []}
        seen = ["acquired volume"] if doublings else ["interpolated volume", "distance from the acquired slice"]
        if self.recipe.upscaling.guide:
            seen.insert(0, f"{seen[0]} by non-local means")
        names = {str(number): name for number, name in enumerate(seen)}
        finer = {"num_channels": 1, "channel_def": {"0": "finer volume"}}
        shape = [side * 2**doublings for side in window]
        whole = {"spatial_shape": ["*", "*", "*"], "dtype": "float32", "is_patch_data": False, "value_range": []}
        image = {**form, "num_channels": channels, "spatial_shape": list(window), **patch, "channel_def": names}
        found = {"inputs": {"image": image}, "outputs": {"pred": {**form, **finer, "spatial_shape": shape, **patch}}}
        return found if script else {**found, "post_processed_outputs": {"pred": {**form, **finer, **whole}}}

    def words(self) -> Words:
        """What the documentation says."""
        recipe = self.recipe
        return Words(
            result=f"The volumes are those of `medseg infer -m {recipe.name}` to {_EQUAL:g} of their range, on a finer "
            f"grid with the same outer edges, in the unit of the input ({recipe.unit})",
            script="windows of one size in units of the network; there is no stock configuration for it, because the "
            "finer grid follows from that of each image, which stock transforms do not know",
            classes=(
                f"one channel, {'/'.join(recipe.scope.modalities)}, {recipe.unit}",
                "none",
                f"a window of the finer volume; the whole of it after the inferer, {recipe.unit}",
            ),
            no_training="it would need pairs of coarse and fine volumes, which `medseg train` makes with code that no "
            "bundle has",
        )

    def served(self, network: nn.Module) -> nn.Module:
        """The network itself."""
        return network

    def sample(self, seed: int) -> Tensor:
        """A window."""
        channels, _ = channels_and_doublings(self.recipe.upscaling)
        shape = (1, channels, *self.recipe.upscaling.window)
        return torch.rand(shape, generator=torch.Generator().manual_seed(seed))

    def write_specimen(self, path: Path) -> None:
        """A small volume, with thick slices where those are to be made thin."""
        shape, spacing = _SPECIMENS[self.recipe.upscaling.axes]
        io.write(made_up(shape, spacing), path)

    def fault(self, model: str | Path, scan: Path, folder: Path) -> str | None:
        """The largest difference, where it is too large."""
        written = folder / f"{scan.name.removesuffix('.nii.gz')}_{self.POSTFIX}.nii.gz"
        if not written.is_file():
            return "the run wrote no volume"
        result = SuperResolution(self.recipe, recipe_folder(model), device="cpu")(scan, force_scope=True)
        return volume_fault(io.read(written), result.volume, _EQUAL)
