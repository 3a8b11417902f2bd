"""Parts of a recipe that say how a picture is prepared, cut into tiles and judged."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt


class Section(BaseModel):
    """A part of a recipe: frozen, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


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
