"""Our door for users of MONAI: dictionary transforms that read, prepare and segment as `medseg` itself does."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

from monai.config.type_definitions import KeysCollection
from monai.transforms.transform import MapTransform

from medseg.errors import UsageError
from medseg_pipelines.load import load_model
from medseg_pipelines.portable.labels import LabelInferer, PrepareVolumed
from medseg_pipelines.portable.volumes import LoadVolumed, as_tensor, as_volume
from medseg_pipelines.results import Result
from medseg_pipelines.segmentation import body_of, preparation_of

__all__ = ["LabelInferer", "LoadVolumed", "PrepareVolumed", "Segmentd", "body_of", "preparation_of"]


class Segmentd(MapTransform):
    """Replace images by their label maps, voxel for voxel what `medseg.load_model(model)` gives.

    Args:
        keys: Whose values are (1, X, Y, Z) MetaTensors with an affine in RAS, as `LoadVolumed` gives them.
        model: A name from `medseg models`, or a model folder.
        device: "auto", "cpu", "cuda", "cuda:N" or "mps".
        engine: "auto", or a name that `medseg doctor` lists.
        force_scope: Run on images that the model was not made for.

    Raises:
        UsageError: There is no such model, device or engine.
        ModelMissing: The weights are absent or altered.
    """

    def __init__(
        self,
        keys: KeysCollection,
        model: str | Path | None = None,
        *,
        device: str = "auto",
        engine: str = "auto",
        force_scope: bool = False,
    ) -> None:
        super().__init__(keys)
        self.model = load_model(model, device=device, engine=engine)
        self.force_scope = force_scope

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """The data with (1, X, Y, Z) label ids on the grid of each image.

        Raises:
            InputRefused: An image is not what the model was made for.
        """
        segmented = dict(data)
        for key in self.key_iterator(segmented):
            image = segmented[key]
            result = self.model(as_volume(image), force_scope=self.force_scope)
            if not isinstance(result, Result):
                raise UsageError(f"model {self.model.recipe.name} is for pictures, Segmentd takes models of volumes")
            segmented[key] = as_tensor(result.volume, like=image)
        return segmented
