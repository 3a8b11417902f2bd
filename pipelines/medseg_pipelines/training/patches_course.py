"""Training of a model of pictures on folders of images and masks, laid out as public data sets are."""

from __future__ import annotations

import re
from pathlib import Path
from typing import ClassVar

import numpy as np
from pydantic import Field, field_validator

from medseg.errors import InputRefused, UsageError
from medseg.fundus import diameter
from medseg.io.pictures import read_mask, read_picture
from medseg_pipelines.picture_preparation import colour_planes, field_of, resized, scaled_size
from medseg_pipelines.recipe import PictureRecipe
from medseg_pipelines.training.course import Course
from medseg_pipelines.training.loop import Section
from medseg_pipelines.training.patches import PatchOptions, PatchSampler, PatchSource, PatchTrainer, patch_source


class Layout(Section):
    """Where a data set keeps its images and masks; `*` stands for what tells one case from another."""

    images: str  # pattern below the data folder, one `*` in the file name; capital and small letters are the same
    masks: str  # the same, `*` filled in with what it stood for in the name of the image

    @field_validator("images", "masks")
    @classmethod
    def _one_star(cls, pattern: str) -> str:
        if pattern.count("*") != 1 or "*" not in pattern.rsplit("/", 1)[-1]:
            raise ValueError(f"expected one * in the file name, got '{pattern}'")
        return pattern

    def pairs(self, data: Path) -> list[tuple[Path, Path]]:
        """Images with the masks that belong to them, in the order of their names; a mask may be missing."""
        masks = _matches(data, self.masks)
        found = []
        for case, image in sorted(_matches(data, self.images).items()):
            mask = masks.get(case, data / self.masks.replace("*", image.name[_star(self.images, image.name)]))
            if mask != image:
                found.append((image, mask))
        return found


def _matches(data: Path, pattern: str) -> dict[str, Path]:
    """Files that follow a pattern, by what its `*` stands for, in small letters."""
    folder, _, name = pattern.rpartition("/")
    shape = re.compile(re.escape(name).replace(r"\*", "(.+)"), re.IGNORECASE)
    place = data / folder
    files = sorted(path for path in place.iterdir() if path.is_file()) if place.is_dir() else []
    matches = ((shape.fullmatch(path.name), path) for path in files)
    return {match[1].lower(): path for match, path in matches if match}


def _star(pattern: str, name: str) -> slice:
    """Which letters of a file name the `*` of its pattern stands for."""
    before, after = pattern.rsplit("/", 1)[-1].split("*")
    return slice(len(before), len(name) - len(after))


PUBLIC = {
    name: Layout(images=images, masks=masks)
    for name, images, masks in (
        ("DRIVE", "training/images/*_training.tif", "training/1st_manual/*_manual1.gif"),
        ("DRIVE/training", "images/*_training.tif", "1st_manual/*_manual1.gif"),
        ("STARE", "stare-images/*.ppm", "labels-ah/*.ah.ppm"),
        ("CHASE_DB1", "Image_*.jpg", "Image_*_1stHO.png"),
        ("HRF", "images/*.jpg", "manual1/*.tif"),
        ("images and masks", "images/*.png", "masks/*.png"),
    )
}


class PictureOptions(PatchOptions):
    """The `training` section of a recipe that learns from images and masks in a folder."""

    layouts: dict[str, Layout] = Field(default={})  # by name; beside those of public data sets, tried after them


class PictureCourse(Course[PictureOptions]):
    """Training of any network that maps a picture to logits."""

    OPTIONS: ClassVar = PictureOptions

    def files(self, data: Path) -> list[Path]:
        """All images, then their masks in the same order."""
        layouts = {**PUBLIC, **self.options.layouts}
        for name, layout in layouts.items():
            pairs = layout.pairs(data)
            complete = [(image, mask) for image, mask in pairs if mask.is_file()]
            if complete and len(complete) < len(pairs):
                missing = next(mask for _, mask in pairs if not mask.is_file())
                raise UsageError(
                    f"data folder '{data}' looks like {name} but lacks '{missing.name}' and "
                    f"{len(pairs) - len(complete) - 1} more masks; add them or take their images away"
                )
            if complete:
                return [image for image, _ in complete] + [mask for _, mask in complete]
        known = "; ".join(f"{name} ({a.images} with {a.masks})" for name, a in layouts.items())
        raise UsageError(f"data folder '{data}' must be laid out like one of {known}; see --data")

    def trainer(self, device: str) -> PatchTrainer:
        """The network must take the channels and give the labels of the recipe, which its first step shows."""
        return PatchTrainer(self.network(), self.options, device=device)

    def images(self, files: list[Path]) -> PatchSampler:
        """Patches of all pictures at all scales."""
        half = len(files) // 2
        sources = [
            s for image, mask in zip(files[:half], files[half:], strict=True) for s in self._sources(image, mask)
        ]
        return PatchSampler(sources, self.options, self._recipe().preparation)

    def _sources(self, image: Path, mask: Path) -> list[PatchSource]:
        """One picture at every scale."""
        picture, truth = read_picture(image), read_mask(mask)
        if truth.shape != picture.size:
            raise InputRefused(
                f"{mask.name}: must be {picture.size[1]} x {picture.size[0]} pixels like '{image.name}', "
                f"got {truth.shape[1]} x {truth.shape[0]}"
            )
        options = self._recipe().preparation
        field = field_of(picture, options)
        base = 1.0 if options.diameter is None else options.diameter / diameter(field)
        found = []
        for scale in self.options.scales:
            size = scaled_size(picture.size, base * scale)
            planes, inside = colour_planes(picture, field, size, options)
            target = resized((truth & field)[None].astype(np.float32), size)
            found.append(patch_source(planes, target, inside))
        return found

    def _recipe(self) -> PictureRecipe:
        if not isinstance(self.recipe, PictureRecipe):
            raise UsageError(f"training 'pictures' needs a recipe of task picture-segmentation, got {self.recipe.task}")
        if len(self.recipe.labels) != 1:
            raise UsageError(f"training 'pictures' needs a recipe with one label, got {len(self.recipe.labels)}")
        return self.recipe
