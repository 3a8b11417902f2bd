"""Things told apart on pictures, such as nuclei, as bundles."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import ClassVar

from PIL import Image
from torch import nn

from medseg.io.pictures import read_ids
from medseg_pipelines.bundle.kinds.kind import Part, Steps, Training, Words, plain
from medseg_pipelines.bundle.kinds.pictures import PictureKind, picture_fault, saving_pixels
from medseg_pipelines.bundle.kinds.specimen import made_up_cells
from medseg_pipelines.bundle.vendor import target_of
from medseg_pipelines.picture_instances import PictureInstanceSegmentation, separation_of
from medseg_pipelines.portable.instances import PictureSeparator
from medseg_pipelines.portable.pictures import LoadPictured, SavePixelsd
from medseg_pipelines.recipe import recipe_folder

_SIZE = (180, 220)  # px of the specimen, height and width


class InstanceKind(PictureKind):
    """Bundles that number the things on pictures."""

    POSTFIX: ClassVar = "things"

    @property
    def outputs(self) -> list[str]:
        """Things and their cores."""
        name = self.recipe.labels[0].name
        return [name, f"core of {name}"]

    def code(self) -> list[type]:
        """Reader, separation and writer."""
        return [LoadPictured, PictureSeparator, SavePixelsd]

    def steps(self, network: nn.Module) -> Steps:
        """Read, tell apart as it is, save."""
        separation = {"separation": plain(asdict(separation_of(self.recipe)))}
        inferer = {"_target_": target_of(PictureSeparator), **self.prepared(), **self.sliding(), **separation}
        return Steps(
            preprocessing=[{"_target_": target_of(LoadPictured), "keys": "image"}],
            inferer=inferer,
            postprocessing=[saving_pixels(self.POSTFIX)],
        )

    def training(self) -> Training:
        """Fine-tuning on pictures with numbered things."""
        return self.learning({"masks": "things"}, "one number per thing, 0 between them, in pictures of the same size")

    def words(self) -> Words:
        """What the documentation says."""
        return Words(
            result=f"The numbers are those of `medseg infer -m {self.recipe.name}`, pixel by pixel",
            script="whole pictures of 8 bit per colour, red, green and blue from 0 to 1; stock transforms know no "
            "watershed, so they give one mask of all things together, and the whole picture must fit into memory",
            classes=(
                "one picture, grey or in colours",
                "one number per thing",
                "logits of things and of their cores; one number per thing after the inferer",
            ),
        )

    def drawn(self) -> Part:
        """Numbers."""
        numbers = {"type": "image", "format": "labels", "num_channels": 1, "dtype": "int32", "value_range": []}
        return {**numbers, "channel_def": {"0": "background", "1": f"{self.recipe.labels[0].name} number 1, and so on"}}

    def write_specimen(self, path: Path) -> None:
        """Bright discs on a dark ground, some of which touch."""
        Image.fromarray(made_up_cells(*_SIZE)).save(path)

    def fault(self, model: str | Path, scan: Path, folder: Path) -> str | None:
        """The number of pixels that differ."""
        expected = PictureInstanceSegmentation(self.recipe, recipe_folder(model), device="cpu")(scan, force_scope=True)
        written = folder / f"{scan.stem}_{self.POSTFIX}{Path(expected.main_file).suffix}"
        return picture_fault(written, read_ids, expected.labels)
