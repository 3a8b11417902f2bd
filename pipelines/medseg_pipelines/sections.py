"""Parts of a recipe that say how an image is prepared, cut into windows and judged."""

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, model_validator

Triple = tuple[PositiveFloat, PositiveFloat, PositiveFloat]


class Section(BaseModel):
    """A part of a recipe: frozen, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Body(Section):
    """The structures form one connected body; what lies apart from it is no part of it (`components.keep_largest`)."""

    loose: tuple[int, ...] = ()  # label ids of what only surrounds the body
    reach: int = Field(default=0, ge=0)  # voxels from the body within which they stay


class Intensity(Section):
    """One linear step on grey values, as `preparation.rescale` does it."""

    kind: Literal["range", "percentiles", "extremes", "z-score"]
    source: tuple[float, float] | None = None  # grey values or percentiles that become `target`
    target: tuple[float, float] = (0.0, 1.0)
    clip: bool = False
    nonzero: bool = False  # z-score only of voxels that are not 0

    @model_validator(mode="after")
    def _source_fits(self) -> Self:
        if self.kind in ("range", "percentiles") and (self.source is None or self.source[0] >= self.source[1]):
            raise ValueError(f"source of {self.kind} must be two rising numbers, got {self.source}")
        return self


class Preparation(Section):
    """The grid and grey values that the network sees."""

    orientation: Literal["RAS"] | None = "RAS"  # None: the axes stay as they are
    foreground_margin: float | None = Field(default=10.0, ge=0)  # mm kept around the image's content; None: all of it
    spacing: Triple | None = (1.0, 1.0, 1.0)  # mm, RAS order; None: it stays as it is
    percentiles: tuple[float, float] = (1.0, 99.0)  # of all voxels; they become 0 and 1
    intensity: tuple[Intensity, ...] | None = None  # steps of imported models, in place of the percentiles

    @model_validator(mode="after")
    def _rising(self) -> Self:
        low, high = self.percentiles
        if not 0 <= low < high <= 100:
            raise ValueError(f"percentiles must rise within 0 to 100, got {self.percentiles}")
        return self


class Inference(Section):
    """The sliding window, on the prepared grid."""

    window: tuple[PositiveInt, PositiveInt, PositiveInt]  # voxels, RAS order
    overlap: float = Field(ge=0, lt=1)  # share of the window
    whole_window: bool = False  # the network takes no smaller size: a smaller image is filled up
    bytes_per_voxel: int = Field(default=200, ge=0)  # memory of the network for each voxel of the window, measured


class PictureScope(Section):
    """The pictures a model was made for."""

    modalities: tuple[str, ...]
    anatomy: str
    kind: Literal["fundus", "any"]  # "fundus": a round field of view that shows the back of an eye
    diameter: tuple[PositiveFloat, PositiveFloat]  # px across the field of view, least and most
    plausible_share: tuple[float, float] | None = None  # of the field that is labelled, least and most


class PicturePreparation(Section):
    """What the network sees of a picture."""

    field: Literal["fundus", "whole"] = "whole"  # "fundus": what lies outside the round field is 0
    diameter: PositiveInt | None = None  # px across the field as the network sees it; None: as it comes
    mix: tuple[tuple[float, float, float], ...] = ((1, 0, 0), (0, 1, 0), (0, 0, 1))  # of red, green, blue per channel
    zoom: PositiveFloat = 1.0  # px that the network sees per px of the picture, where `diameter` does not say
    stretch: tuple[float, float] | None = None  # percentiles of all values that become 0 and 1; None: as they are
    flatten: float | None = Field(default=None, gt=0)  # uneven light is taken out beyond this share of the diameter
    mean: tuple[float, ...] = (0.0,)  # taken from the channels, which else run from 0 to 1
    deviation: tuple[PositiveFloat, ...] = (1.0,)  # and what they are divided by


class PictureInference(Section):
    """The tiles, on the prepared picture."""

    window: PositiveInt  # px of both sides
    overlap: float = Field(ge=0, lt=1)  # share of the window
    flips: bool = False  # also of the picture mirrored both ways, averaged
    threshold: float = Field(default=0.5, gt=0, lt=1)  # a pixel is labelled where its probability is above
    smallest: float = Field(default=0.0, ge=0)  # pieces of a label below this share of the squared diameter are dropped
    rim: float = Field(default=0.0, ge=0)  # and pieces nowhere farther than this share of it from the edge of the field
    bytes_per_pixel: int = Field(default=2000, ge=0)  # memory of the network for each pixel of a tile, measured


class PictureInstances(Section):
    """How the masks of things and of their cores become separate things (`medseg.instances`)."""

    core: float = Field(default=0.5, gt=0, lt=1)  # a pixel seeds a thing where the probability of its core is above
    smallest: int = Field(default=0, ge=0)  # px; smaller things are dropped
    reach: PositiveInt = 128  # px; no thing is larger


class SupportInference(Section):
    """How a network that segments by examples sees slices, and how often it is asked."""

    side: PositiveInt  # px of both sides of a slice as the network sees it, a multiple of 32
    examples: PositiveInt = 4  # that each slice reads: those most like it
    resamples: int = Field(default=4, ge=0)  # further runs, each without one of the cases: their agreement is told
    threshold: float = Field(default=0.5, gt=0, lt=1)  # a pixel is labelled where its mean probability is above
    bytes_per_pixel: int = Field(default=2000, ge=0)  # memory of the network for each pixel of a slice and run


class PromptOptions(Section):
    """How a network that follows prompts sees a slice, and how it goes on to the next one."""

    accepts: tuple[Literal["points", "boxes", "masks"], ...] = ("points", "boxes", "masks")  # what it has learned
    colours: Literal["sam", "unit"] = "sam"  # "sam": mean and deviation of its photographs; "unit": 0 to 1
    fit: Literal["longest", "square"] = "longest"  # "square": stretched to both sides of what the network sees
    smoothing: Literal["bilinear", "bicubic"] = "bilinear"  # of that enlargement
    hounsfield: tuple[float, float] = (-160.0, 240.0)  # grey values of CT that become black and white
    percentiles: tuple[float, float] = (0.5, 99.5)  # of the voxels above 0 of any other image that do
    carry_mask: bool = True  # a slice without prompt gets its neighbour's mask beside the box around it
    margin: float = Field(default=0.02, ge=0, lt=1)  # share of the longer side by which that box grows on each side
    presence: float = Field(default=0.4, ge=0, le=1)  # the walk ends where the score is below (`follow.presence`)
    estimates: bool = False  # the network has learned how well it did, 0 where nothing is: the score is made of that
    bytes: int = Field(default=1_500_000_000, ge=0)  # memory that encoding a slice takes, measured
