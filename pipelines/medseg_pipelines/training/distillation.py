"""Pre-training of HER-Seg's encoder by a Segment Anything: pictures alone, no masks (PFD).

Teacher and student see the same square: the picture at the teacher's size, normalised, and filled up with zeros.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset

from medseg.errors import ModelMissing, UsageError
from medseg.io.pictures import ENDINGS, read_picture
from medseg.networks.her_seg import HERSeg
from medseg.networks.her_seg_training import Student, distillation_loss
from medseg.networks.sam import Sam, load_published, preset_of
from medseg.weights import load_weights
from medseg_pipelines import nets
from medseg_pipelines.picture_preparation import resized, scaled_size
from medseg_pipelines.recipe import load_recipe, recipe_folder
from medseg_pipelines.training.course import Course
from medseg_pipelines.training.loop import Optimisation, Trainer
from medseg_pipelines.weights.cache import load_brought


class DistillationOptions(Optimisation):
    """The `training` section of a recipe that learns features."""

    teacher: str  # a name of `medseg weights`, or the folder of a model of the network sam
    epochs: int = Field(default=20, ge=1)
    batch: int = Field(default=4, ge=1)
    fade: float = Field(default=0.98, gt=0, le=1)  # of the learning rate, per epoch


class Squares(Dataset[Tensor]):
    """Batch number n of a training: every picture once per epoch, in an order drawn from the seed and the epoch.

    Args:
        files: Pictures.
        teacher: Whose size and colours the squares have.
        options: The training section.
    """

    def __init__(self, files: list[Path], teacher: Sam, options: DistillationOptions) -> None:
        self.files, self.options, self.side = files, options, teacher.config.img_size
        self.mean, self.deviation = teacher.pixel_mean.cpu(), teacher.pixel_std.cpu()

    @property
    def per_epoch(self) -> int:
        """Batches that hold every picture once; the last may be smaller."""
        return -(-len(self.files) // self.options.batch)

    def __len__(self) -> int:
        return self.per_epoch * self.options.epochs

    def __getitem__(self, step: int) -> Tensor:
        """(B, 3, side, side)."""
        epoch, place = divmod(step, self.per_epoch)
        generator = torch.Generator().manual_seed(self.options.seed * 1_000_003 + epoch)
        order = torch.randperm(len(self.files), generator=generator).tolist()
        chosen = order[place * self.options.batch : (place + 1) * self.options.batch]
        return torch.stack([self._square(self.files[number]) for number in chosen])

    def _square(self, file: Path) -> Tensor:
        picture = read_picture(file)
        size = scaled_size(picture.size, self.side / max(picture.size))
        colours = (torch.from_numpy(resized(picture.unit_planes(), size)) * 255 - self.mean) / self.deviation
        return F.pad(colours, (0, self.side - size[1], 0, self.side - size[0]))


class DistillationTrainer(Trainer):
    """Learns what the teacher makes of each square.

    Args:
        student: Starts from the weights it has.
        teacher: Stays as it is.
        options: The training section.
        total: Steps of the whole run.
        per_epoch: Steps of an epoch.
        device: A torch device.
    """

    def __init__(
        self,
        student: Student,
        teacher: Sam,
        options: DistillationOptions,
        *,
        total: int,
        per_epoch: int,
        device: str = "cpu",
    ) -> None:
        super().__init__(student, options, total=total, device=device)
        self.teacher, self.fade, self.per_epoch = (
            teacher.eval().requires_grad_(False).to(device),
            options.fade,
            per_epoch,
        )

    def learning_rate(self) -> float:
        """Lower from epoch to epoch."""
        return super().learning_rate() * self.fade ** (self.step // self.per_epoch)

    def loss(self, sample: Tensor) -> Tensor:
        """Mean squared error of the features."""
        image = sample.to(self.device)
        with self.autocast():
            with torch.no_grad():
                taught = self.teacher.encode(image)
            feature = self.network(image)
        return distillation_loss(feature, taught)


class DistillationCourse(Course[DistillationOptions]):
    """Pre-training of a network her-seg by a network sam."""

    OPTIONS: ClassVar = DistillationOptions

    def __init__(self, recipe: Any) -> None:
        super().__init__(recipe)
        self._files: list[Path] = []
        self._teacher: Sam | None = None

    def files(self, data: Path) -> list[Path]:
        """All pictures of the folder and the folders in it."""
        self._files = sorted(path for path in data.rglob("*") if path.suffix.lower() in ENDINGS and path.is_file())
        if not self._files:
            raise UsageError(f"data folder '{data.name}' must hold pictures ({', '.join(ENDINGS)}), found none")
        return self._files

    def trainer(self, device: str) -> DistillationTrainer:
        """The neck of the network must be as wide as the teacher's features."""
        network, teacher = self.network(), self.teacher()
        if not isinstance(network, HERSeg):
            raise UsageError(f"training 'distillation' needs the network her-seg, got '{self.recipe.network.name}'")
        student, wide = Student(network), teacher.config.out_chans
        width, channels = _channels(student)
        if (width, channels) != (wide, 3):
            raise UsageError(
                f"network.options must give a decoder.dim of {wide} like the teacher '{self.options.teacher}' and 3 "
                f"in_channels, got {width} and {channels}"
            )
        squares = Squares(self._files, teacher, self.options)
        return DistillationTrainer(
            student, teacher, self.options, total=len(squares), per_epoch=squares.per_epoch, device=device
        )

    def judged_lines(self) -> list[str]:
        """What the card says in place of scores."""
        return [
            f"Taught by '{Path(self.options.teacher).name}'; the loss above is the mean squared error of the features. "
            "It segments nothing: `medseg train her-seg --data FOLDER --from RUN` starts from it."
        ]

    def images(self, files: list[Path]) -> Squares:
        """Squares of all pictures."""
        return Squares(files, self.teacher(), self.options)

    def teacher(self) -> Sam:
        """The teacher with its weights, read once.

        Raises:
            UsageError: There is no such model.
            ModelMissing: There are no such weights, or they are not of a Segment Anything.
        """
        if self._teacher is None:
            self._teacher = _teacher_from(self.options.teacher)
        return self._teacher


def _teacher_from(name: str) -> Sam:
    folder = Path(name)
    if folder.is_dir():
        recipe = load_recipe(folder)
        network = nets.build(recipe.network.name, recipe.network.options)
        if not isinstance(network, Sam):
            raise UsageError(f"teacher '{folder.name}' must be a model of the network sam, got {recipe.network.name}")
        load_weights(network, recipe_folder(folder) / recipe.weights.file, sha256=recipe.weights.sha256)
        return network
    _, state = load_brought(name)
    try:
        network = Sam(preset_of(state))
        load_published(network, state)
    except ModelMissing as error:
        raise ModelMissing(f"teacher '{name}' must be a Segment Anything of `medseg weights`: {error}") from None
    return network


def _channels(student: Student) -> tuple[int, int]:
    """Of the feature, and of the image."""
    convolutions = [module for module in student.neck.modules() if isinstance(module, nn.Conv2d)]
    return convolutions[-1].out_channels, student.image_encoder.patch_embed.proj.in_channels
