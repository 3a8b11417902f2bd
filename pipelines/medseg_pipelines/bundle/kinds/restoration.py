"""Volumes restored slice by slice as bundles."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np
import torch
from torch import Tensor, nn

from medseg import io
from medseg.volume import Volume
from medseg_pipelines.bundle.kinds.kind import Kind, Part, Steps, Training, Words, plain, saving, undoing, volume_fault
from medseg_pipelines.bundle.kinds.regional import require_portable, unused_partitioners
from medseg_pipelines.bundle.kinds.specimen import made_up
from medseg_pipelines.bundle.torchscript_slices import WholeVolume, recorded_tile
from medseg_pipelines.bundle.vendor import target_of
from medseg_pipelines.portable.slices import RegionalRAT, SliceRestorer
from medseg_pipelines.portable.slices_training import LoadSlicesd, RandSliced, RegionLoss
from medseg_pipelines.portable.volumes import LoadVolumed
from medseg_pipelines.recipe import RestorationRecipe, recipe_folder
from medseg_pipelines.restoration import Restoration
from medseg_pipelines.slices import PlainSlices

_TILE = 128  # pixels of a tile of `model.ts`, about
_EQUAL = 1e-5  # of the range of the grey values


class RestorationKind(Kind[RestorationRecipe]):
    """Bundles that restore volumes with RAT."""

    POSTFIX: ClassVar = "restored"

    @property
    def packages(self) -> tuple[str, ...]:
        """Superpixels are those of scikit-image."""
        more = ("scikit-image",) if self.recipe.partition.kind == "superpixels" else ()
        return (*super().packages, *more)

    def build_network(self) -> RegionalRAT:
        """RAT with the regions as its last channel; errors as of `require_portable`."""
        require_portable(self.recipe)
        return RegionalRAT(**self._options())

    def network_def(self, network: nn.Module) -> Part:
        """Class and options of the network."""
        return {"_target_": target_of(type(network)), **self._options()}

    def left_out(self) -> frozenset[str]:
        """Partitioners that the model does not use."""
        return unused_partitioners(self.recipe.partition.kind)

    def code(self) -> list[type]:
        """Reader and restorer."""
        return [LoadVolumed, SliceRestorer]

    def steps(self, network: nn.Module) -> Steps:
        """Read, restore on the grid as it is, save."""
        return Steps(
            preprocessing=[{"_target_": target_of(LoadVolumed), "keys": "image"}],
            inferer={"_target_": target_of(SliceRestorer), **self._slices(), **self._partition()},
            postprocessing=[saving(self.POSTFIX, "float32")],
        )

    def stock_steps(self) -> Steps:
        """The whole volume at once, in RAS: slices lie across the foot-head axis."""
        return Steps(
            preprocessing=[
                {"_target_": "LoadImaged", "keys": "image"},
                {"_target_": "EnsureChannelFirstd", "keys": "image"},
                {"_target_": "Orientationd", "keys": "image", "axcodes": "RAS", "labels": None},
            ],
            inferer={"_target_": "SimpleInferer"},
            postprocessing=[undoing(), saving(self.POSTFIX, "float32")],
        )

    def training(self) -> Training:
        """Fine-tuning on pairs of a degraded and a good image."""
        draw = {"_target_": target_of(RandSliced), **self._slices(), "crop": "@crop"}
        return Training(
            preprocessing=[{"_target_": target_of(LoadSlicesd), **self._slices(), **self._partition()}, draw],
            loss={"_target_": target_of(RegionLoss)},
            options={"crop": 64, "batch_size": 8, "learning_rate": 1e-4, "max_epochs": 200},
            code=[LoadSlicesd, RandSliced, RegionLoss],
            folders=("images", "targets"),
            content="good images without the noise, each on the grid of its degraded one",
        )

    def data_format(self, *, script: bool) -> Part:
        """Slices with noise level and region ids in, one slice out; of `model.ts` volumes in and out."""
        recipe = self.recipe
        modality = recipe.scope.modalities[0]
        form = {"type": "image", "format": "hounsfield" if modality == "CT" else "magnitude", "modality": modality}
        whole = {"spatial_shape": ["*", "*", "*"], "dtype": "float32", "is_patch_data": False, "value_range": []}
        volume = {**form, "num_channels": 1, **whole}
        restored = {**volume, "channel_def": {"0": "restored"}}
        if script:
            outputs = {"pred": restored}
            return {"inputs": {"image": {**volume, "channel_def": {"0": "image"}}}, "outputs": outputs}
        side = f"{self.build_network().multiple}*n"
        patch = {"spatial_shape": [side, side], "dtype": "float32", "is_patch_data": True, "value_range": []}
        reach = recipe.slices.context // 2
        channels = [f"slice {place:+d}" if place else "slice to restore" for place in range(-reach, reach + 1)]
        channels += ["slice to restore by non-local means"] * recipe.slices.guide
        channels += ["noise level"] * recipe.slices.noise_map + ["region ids, whole numbers from 0 on"]
        names = {str(number): name for number, name in enumerate(channels)}
        return {
            "inputs": {"image": {**form, "num_channels": len(channels), **patch, "channel_def": names}},
            "outputs": {"pred": {**form, "num_channels": 1, **patch, "channel_def": {"0": "restored"}}},
            "post_processed_outputs": {"pred": restored},
        }

    def words(self) -> Words:
        """What the documentation says."""
        recipe = self.recipe
        return Words(
            result=f"The restored volumes are those of `medseg infer -m {recipe.name}` to {_EQUAL:g} of their range, "
            f"on the grid of the input and in its own unit ({recipe.unit}); MONAI Deploy's image operators store "
            "whole numbers up to 255 and must not be used",
            script="whole volumes in RAS, slices across the foot-head axis; it finds regions and one noise level per "
            "slice in a simpler way and works in tiles, so its volumes are close to the others and not the same",
            classes=(
                f"one channel, {'/'.join(recipe.scope.modalities)}, {recipe.unit}",
                "none",
                f"the restored slice; the restored volume after the inferer, {recipe.unit}",
            ),
        )

    def served(self, network: nn.Module) -> nn.Module:
        """A volume in, a volume out, tiles inside."""
        options, clusters, side = self._tiles(network)
        return WholeVolume(network, options, clusters, side).eval()

    def recorded(self, network: nn.Module) -> nn.Module:
        """The same compiled, so that it takes volumes of any size, around a tile that was recorded."""
        options, clusters, side = self._tiles(network)
        tile = recorded_tile(network, options, clusters, side)
        return cast(nn.Module, torch.jit.script(WholeVolume(tile, options, clusters, side).eval()))

    def sample(self, seed: int) -> Tensor:
        """A small volume."""
        voxels = made_up((40, 36, 2), (1.0, 1.0, 3.0)).voxels.astype(np.float32)
        return torch.from_numpy(np.roll(voxels, 5 * seed, axis=0).copy())[None, None]

    def write_specimen(self, path: Path) -> None:
        """A volume with thick slices along its last axis."""
        io.write(specimen(), path)

    def fault(self, model: str | Path, scan: Path, folder: Path) -> str | None:
        """The largest difference, where it is too large."""
        written = folder / f"{scan.name.removesuffix('.nii.gz')}_{self.POSTFIX}.nii.gz"
        if not written.is_file():
            return "the run wrote no restored volume"
        found = io.read(written)
        expected = Restoration(self.recipe, recipe_folder(model), device="cpu")(scan, force_scope=True).volume
        return volume_fault(found, expected, _EQUAL)

    def _tiles(self, network: nn.Module) -> tuple[PlainSlices, int, int]:
        multiple = int(getattr(network, "multiple", 1))
        clusters = int(self.recipe.partition.options.get("clusters", 12))
        return PlainSlices.of(self.recipe.slices), clusters, max(1, round(_TILE / multiple)) * multiple

    def _options(self) -> dict[str, Any]:
        slices = self.recipe.slices
        return {**self.recipe.network.options, "context": slices.context, "guide": slices.guide}

    def _slices(self) -> Part:
        return {"slices": plain(vars(PlainSlices.of(self.recipe.slices)))}

    def _partition(self) -> Part:
        return {"partition": plain(self.recipe.partition.model_dump())}


def specimen() -> Volume:
    """An oblique image with thick slices, of a size that the network does not take as it is."""
    return made_up((75, 59, 7), (1.1, 1.2, 4.0))
