"""The result of one run, in memory and as a folder."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from medseg import __version__, io
from medseg.volume import Volume
from medseg_pipelines.case import hash_file, hash_volume
from medseg_pipelines.folders import RESULT_MARK, whole_folder
from medseg_pipelines.planes import three_planes
from medseg_pipelines.preview import Caption, draw_preview
from medseg_pipelines.recipe import Label, Recipe
from medseg_pipelines.statistics import Structure, as_csv, as_json
from medseg_pipelines.words import RESEARCH_USE, UNTRAINED

LABELS_JSON = "labels.json"

_ENDINGS = {"NRRD": ".nrrd", "MetaImage": ".mha"}  # whatever else came in goes out as NIfTI


@dataclass(frozen=True, eq=False, kw_only=True)
class Outcome(ABC):
    """What a model made of an image of any kind.

    Attributes:
        manifest: How it came about, plain JSON data.
        recipe: The model.
    """

    manifest: dict[str, Any]
    recipe: Recipe

    @property
    def warnings(self) -> tuple[str, ...]:
        """What has to be known beside the result, one sentence each."""
        return tuple(self.manifest["warnings"])

    @abstractmethod
    def preview(self) -> Image.Image:
        """The picture of the result."""

    @property
    @abstractmethod
    def main_file(self) -> str:
        """Name of the label map or restored image within the result folder."""

    @property
    @abstractmethod
    def digest(self) -> str:
        """The sha256 of what was computed, as the manifest has it: equal only for results equal bit for bit."""

    @abstractmethod
    def _write(self, folder: Path) -> None:
        """Everything but manifest and preview."""

    def save(self, folder: str | Path, *, overwrite: bool = False, also: Callable[[Path], None] | None = None) -> Path:
        """Write image, statistics, preview and manifest; the folder appears whole or not at all.

        Args:
            folder: Where; its parent must exist.
            overwrite: Replace an earlier result.
            also: Writes further files into the folder before it appears, for example DICOM objects.

        Returns:
            The folder.

        Raises:
            UsageError: The folder is there already, or its parent is not.
        """
        target = Path(folder)
        with whole_folder(target, overwrite=overwrite) as partial:
            self._write(partial)
            self.preview().save(partial / "preview.png", optimize=True)
            if also is not None:
                also(partial)
            written = sorted(path for path in partial.rglob("*") if path.is_file())
            files = {path.relative_to(partial).as_posix(): hash_file(path)[0] for path in written}
            write_json(partial / RESULT_MARK, {**self.manifest, "files": files})
        return target

    def version(self) -> str:
        """Program, model and weights in a few words."""
        model = self.manifest["model"]
        return f"medseg {__version__}, {model['name']} {model['weights_sha256'][:8]}"


@dataclass(frozen=True, eq=False, kw_only=True)
class Result(Outcome):
    """What a model made of a volume, on its grid.

    Attributes:
        volume: The label map or the restored image.
        image: What it was made of.
    """

    volume: Volume
    image: Volume

    @property
    def digest(self) -> str:
        """The sha256 of the volume."""
        return hash_volume(self.volume)

    def to_nibabel(self) -> Any:
        """The volume as a nibabel image."""
        return io.to_nibabel(self.volume, like=self.image)

    def to_sitk(self) -> Any:
        """The volume as a SimpleITK image."""
        return io.to_sitk(self.volume)

    @property
    def ending(self) -> str:
        """Of volumes within the result folder."""
        source = self.image.source
        return _ENDINGS.get(source.format if source else "", ".nii.gz")

    def caption(self) -> Caption:
        """The words around the preview."""
        size, step = (" x ".join(f"{v:.4g}" for v in values) for values in (self.image.shape, self.image.spacing))
        return Caption(
            title=self.recipe.title,
            subtitle=f"{self.version()}. {size} voxels of {step} mm.",
            warnings=tuple(warning for warning in self.warnings if warning != UNTRAINED),
            trained=self.recipe.weights.trained,
        )


@dataclass(frozen=True, eq=False, kw_only=True)
class LabelResult(Result):
    """A segmentation.

    Attributes:
        labels: What the ids of `volume` mean.
        statistics: ml per structure, in the order of `labels`.
    """

    labels: tuple[Label, ...]
    statistics: tuple[Structure, ...]

    def preview(self) -> Image.Image:
        """Three planes with and without the labels, legend and volumes."""
        return draw_preview(three_planes(self.image, self.volume), self.labels, self.statistics, self.caption())

    @property
    def main_file(self) -> str:
        """Name of the label map."""
        return "labels" + self.ending

    def _write(self, folder: Path) -> None:
        io.write(self.volume, folder / self.main_file, like=self.image)
        write_json(folder / LABELS_JSON, self._names())
        write_json(folder / "statistics.json", {"notice": RESEARCH_USE, **as_json(self.statistics)})
        (folder / "statistics.csv").write_text(as_csv(self.statistics), encoding="utf-8")

    def _names(self) -> dict[str, Any]:
        return {
            "model": self.recipe.name,
            "file": self.main_file,
            "background": 0,
            "labels": [label.model_dump() for label in self.labels],
        }


def write_json(path: Path, content: dict[str, Any]) -> None:
    """A table as an indented UTF-8 file."""
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
