"""Label maps by the examples of a support set, which becomes part of the bundle as the network sees it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from medseg import io
from medseg.errors import UsageError
from medseg.weights import load_weights
from medseg_pipelines.bundle.kinds.kind import Kind, Part, Steps, Words, plain, saving, undoing
from medseg_pipelines.bundle.kinds.label_maps import label_format, labels_fault, stock_preparation
from medseg_pipelines.bundle.kinds.specimen import oblique
from medseg_pipelines.bundle.torchscript import WithBackground
from medseg_pipelines.bundle.vendor import target_of
from medseg_pipelines.engines import prepare
from medseg_pipelines.portable.labels import PrepareVolumed
from medseg_pipelines.portable.support import ExampleInferer, SupportedSgp
from medseg_pipelines.portable.volumes import LoadVolumed
from medseg_pipelines.recipe import SupportRecipe, recipe_folder
from medseg_pipelines.sections import Preparation
from medseg_pipelines.support import preparation_for
from medseg_pipelines.support_pools import pools_of
from medseg_pipelines.support_segmentation import SupportSegmentation
from medseg_pipelines.support_store import PLANES, SupportSet, load_support_set
from medseg_pipelines.words import EXAMPLES_TRAVEL

_NAME, _DIGEST = "support_set", "support_set_sha256"  # of the metadata, which take texts only
_UNIT = {"a_min": 0.0, "a_max": 1.0, "b_min": 0.0, "b_max": 1.0}


class SupportKind(Kind[SupportRecipe]):
    """Bundles that segment volumes by the examples of one support set.

    Args:
        recipe: Of the model.
        support: The set; None where none was named.

    Raises:
        UsageError: No set was named, it is of pictures, or the weights of the model are its user's.
    """

    POSTFIX: ClassVar = "labels"

    def __init__(self, recipe: SupportRecipe, support: SupportSet | None) -> None:
        super().__init__(recipe)
        name = recipe.name
        if recipe.checkpoint is not None:
            raise UsageError(
                f"model '{name}' cannot be a bundle: its weights are yours and no part of it; run it with "
                "`medseg infer --support`, or export a model that `medseg train support-set` made"
            )
        if support is None:
            raise UsageError(
                f"model '{name}' becomes a bundle together with a support set: add --support NAME "
                "(`medseg support list` names them)"
            )
        if support.card.kind != "volumes":
            raise UsageError(
                f"support set '{support.card.name}' is of pictures, a bundle follows volumes only; "
                "run it with `medseg infer --support`"
            )
        self.support = support

    @property
    def axis(self) -> int:
        """Of RAS, along which slices follow each other."""
        return PLANES.index(self.support.card.plane)

    @property
    def modality(self) -> str:
        """Of the images."""
        return self.support.card.modality or self.recipe.scope.modalities[0]

    def build_network(self) -> SupportedSgp:
        """The network of the recipe as `network`, and the pools of the set as `kept`, all of them zero."""
        return SupportedSgp(**self._arguments())

    def loaded(self, home: Path) -> SupportedSgp:
        """Network and pools, the latter as the application makes them."""
        network, weights = self.build_network().eval(), self.recipe.weights
        load_weights(network.network, home / weights.file, sha256=weights.sha256)
        prepare(network.network)  # another packing sums in another order: the last bit of the pools hangs on it
        side, device = self.recipe.inference.side, torch.device("cpu")
        network.keep(pools_of(self.support, network.network, weights=weights.sha256, side=side, device=device))
        return network

    def network_def(self, network: nn.Module) -> Part:
        """Class, options of the network, and which slice of the set is of which case."""
        return {"_target_": target_of(SupportedSgp), **plain(self._arguments())}

    def notice(self) -> str:
        """That the slices of the set may show through."""
        return EXAMPLES_TRAVEL

    def origin(self) -> dict[str, str]:
        """Which set it is, so that it can be told from another one of that name."""
        return {_NAME: self.support.card.name, _DIGEST: self.support.card.sha256}

    def code(self) -> list[type]:
        """Reader, preparation and walk."""
        return [LoadVolumed, PrepareVolumed, ExampleInferer]

    def steps(self, network: nn.Module) -> Steps:
        """Read, prepare, walk, undo, save."""
        inference = self.recipe.inference
        inferer = {
            "_target_": target_of(ExampleInferer),
            "axis": self.axis,
            "side": inference.side,
            "extent": self.support.extent,
            "labels": list(self.support.ids),
            "threshold": inference.threshold,
        }
        return Steps(
            preprocessing=[
                {"_target_": target_of(LoadVolumed), "keys": "image"},
                {"_target_": target_of(PrepareVolumed), "keys": "image", **plain(self._preparation())},
                {"_target_": "ScaleIntensityRanged", "keys": "image", **_UNIT, "clip": True},
            ],
            inferer=inferer,
            postprocessing=[undoing(), saving(self.POSTFIX, "uint8")],
        )

    def stock_steps(self) -> Steps:
        """Slices each by itself, resampled as MONAI does it: label maps near ours."""
        inference, options = self.recipe.inference, self._preparation()
        section = Preparation(spacing=None, percentiles=options["percentiles"], intensity=options["intensity"])
        pixel = self.support.extent / inference.side
        pixels = [-1.0 if axis == self.axis else pixel for axis in range(3)]  # -1: as it is
        read, grey = stock_preparation(section)[:-1], stock_preparation(section)[-1:]
        inferer = {
            "_target_": "SliceInferer",
            "spatial_dim": self.axis,
            "roi_size": [inference.side, inference.side],
            "sw_batch_size": 1,
            "overlap": 0.25,
            "mode": "gaussian",
        }
        return Steps(
            preprocessing=[*read, {"_target_": "Spacingd", "keys": "image", "pixdim": pixels}, *grey],
            inferer=inferer,
            postprocessing=[
                {"_target_": "AsDiscreted", "keys": "pred", "argmax": True},
                undoing(),
                saving(self.POSTFIX, "uint8"),
            ],
        )

    def data_format(self, *, script: bool) -> Part:
        """Slices in, probabilities out; of `model.ts` the background as well."""
        labels, side = self.support.card.labels, self.recipe.inference.side
        options = {"outputs": len(labels), "shape": [side, side], "modality": self.modality, "values": [0, 1]}
        return label_format(labels, script=script, dtype="uint8", **options)

    def words(self) -> Words:
        """What the documentation says."""
        name, card, side = self.recipe.name, self.support.card, self.recipe.inference.side
        return Words(
            result=f"The label maps are those of `medseg infer -m {name} --support {card.name}`, voxel by voxel",
            script=f"slices of {side} x {side} pixels, one channel per label. There no slice reads the ones before it, "
            "and MONAI resamples in another way, so those label maps are close to the others and not the same",
            classes=(
                f"one channel, {self.modality}",
                "one integer per voxel, 0 is background",
                "the probability of each structure; the label map after the inferer",
            ),
            no_training="this model learns from many structures what places are alike (`medseg train support-set`), "
            "and a bundle follows one support set",
        )

    def served(self, network: nn.Module) -> nn.Module:
        """The threshold, then the probability of each structure."""
        return WithBackground(network, self.recipe.inference.threshold).eval()

    def sample(self, seed: int) -> Tensor:
        """A slice."""
        side = self.recipe.inference.side
        return torch.rand((1, 1, side, side), generator=torch.Generator().manual_seed(seed))

    def write_specimen(self, path: Path) -> None:
        """The slices of the first case as a volume: in a made-up image there might be nothing to be found."""
        case, steps = self.support.cases[0], self._preparation()["intensity"]
        low, high = steps[0]["source"] if steps else (0.0, 1000.0)
        grey = np.moveaxis(low + (high - low) * case.images[..., 0].astype(np.float32), 0, self.axis)
        spacing = list(case.spacing)
        spacing.insert(self.axis, max(spacing))
        io.write(oblique(grey.round().astype(np.int16), spacing), path)

    def fault(self, model: str | Path, scan: Path, folder: Path) -> str | None:
        """The number of voxels that differ."""
        application = SupportSegmentation(self.recipe, recipe_folder(model), device="cpu")
        expected = application(scan, support=self.support, force_scope=True).volume
        return labels_fault(folder / f"{scan.name.removesuffix('.nii.gz')}_{self.POSTFIX}.nii.gz", expected)

    def _arguments(self) -> dict[str, Any]:
        """Of `SupportedSgp`."""
        inference, cases = self.recipe.inference, self.support.cases
        shown = [[number for number, case in enumerate(cases) for _ in case.showing(i)] for i in self.support.ids]
        asked = {"side": inference.side, "examples": inference.examples, "resamples": inference.resamples}
        return {"options": self.recipe.network.options, "shown": shown, **asked}

    def _preparation(self) -> dict[str, Any]:
        return preparation_for(self.support.card.modality)


def support_set_of(metadata: Part) -> SupportSet | None:
    """The set that a bundle was made with; None where it was made without.

    Raises:
        UsageError: The set is not there any more, or is another one now.
    """
    name = metadata.get(_NAME)
    if name is None:
        return None
    try:
        found = load_support_set(str(name))
    except UsageError:
        raise UsageError(
            f"bundle was made with support set '{name}', which is not here any more; bring it back to compare with it"
        ) from None
    if found.card.sha256 != metadata.get(_DIGEST):
        raise UsageError(
            f"bundle was made with another support set than what '{name}' is now; bring the old one back to compare"
        )
    return found
