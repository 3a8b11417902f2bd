"""The result of one run, in memory and as a folder."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from medseg import __version__, io
from medseg.volume import Volume
from medseg_pipelines.case import hash_file
from medseg_pipelines.folders import RESULT_MARK, whole_folder
from medseg_pipelines.planes import three_planes
from medseg_pipelines.preview import Caption, draw_preview
from medseg_pipelines.recipe import Label, Recipe
from medseg_pipelines.statistics import Structure, as_csv, as_json
from medseg_pipelines.words import RESEARCH_USE, UNTRAINED

LABELS_JSON = "labels.json"

_ENDINGS = {"NRRD": ".nrrd", "MetaImage": ".mha"}  # whatever else came in goes out as NIfTI


@dataclass(frozen=True, eq=False, kw_only=True)
class Result:
    """A segmentation on the grid of its image.

    Attributes:
        volume: The label map, label ids on the grid of `image`.
        image: What was segmented.
        labels: What the ids mean.
        statistics: ml per structure, in the order of `labels`.
        manifest: How the result came about, plain JSON data.
        recipe: The model.
    """

    volume: Volume
    image: Volume
    labels: tuple[Label, ...]
    statistics: tuple[Structure, ...]
    manifest: dict[str, Any]
    recipe: Recipe

    @property
    def warnings(self) -> tuple[str, ...]:
        """What has to be known beside the result, one sentence each."""
        return tuple(self.manifest["warnings"])

    def to_nibabel(self) -> Any:
        """The label map as a nibabel image."""
        return io.to_nibabel(self.volume, like=self.image)

    def to_sitk(self) -> Any:
        """The label map as a SimpleITK image."""
        return io.to_sitk(self.volume)

    def preview(self) -> Image.Image:
        """Three planes with and without the labels, legend and volumes."""
        planes = three_planes(self.image, self.volume)
        model = self.manifest["model"]
        size, step = (" x ".join(f"{v:.4g}" for v in values) for values in (self.image.shape, self.image.spacing))
        version = f"medseg {__version__}, {model['name']} {model['weights_sha256'][:8]}"
        caption = Caption(
            title=self.recipe.title,
            subtitle=f"{version}. {size} voxels of {step} mm.",
            warnings=tuple(warning for warning in self.warnings if warning != UNTRAINED),
            trained=self.recipe.weights.trained,
        )
        return draw_preview(planes, self.labels, self.statistics, caption)

    def save(self, folder: str | Path, *, overwrite: bool = False) -> Path:
        """Write label map, names, statistics, preview and manifest; the folder appears whole or not at all.

        Args:
            folder: Where; its parent must exist.
            overwrite: Replace an earlier result.

        Returns:
            The folder.

        Raises:
            UsageError: The folder is there already, or its parent is not.
        """
        target = Path(folder)
        with whole_folder(target, overwrite=overwrite) as partial:
            io.write(self.volume, partial / self.label_file, like=self.image)
            _write_json(partial / LABELS_JSON, self._names())
            _write_json(partial / "statistics.json", {"notice": RESEARCH_USE, **as_json(self.statistics)})
            (partial / "statistics.csv").write_text(as_csv(self.statistics), encoding="utf-8")
            self.preview().save(partial / "preview.png", optimize=True)
            files = {path.name: hash_file(path)[0] for path in sorted(partial.iterdir())}
            _write_json(partial / RESULT_MARK, {**self.manifest, "files": files})
        return target

    @property
    def label_file(self) -> str:
        """Name of the label map within the folder: the format family of the input."""
        source = self.image.source
        return "labels" + _ENDINGS.get(source.format if source else "", ".nii.gz")

    def _names(self) -> dict[str, Any]:
        return {
            "model": self.recipe.name,
            "file": self.label_file,
            "background": 0,
            "labels": [label.model_dump() for label in self.labels],
        }


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
