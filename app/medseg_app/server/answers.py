"""What the REST interface says, as pydantic models; they are the schema in its OpenAPI description."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from medseg.io.prompts import FORMAT
from medseg_app.server.confidence import Confidence
from medseg_pipelines.support_store import FEWEST, MOST

_Number = Annotated[float, Field(allow_inf_nan=False)]
_Place = tuple[_Number, _Number, _Number]
_LabelId = Annotated[int, Field(ge=1, le=255)]
_Words = Annotated[str, Field(min_length=1, max_length=64)]
_Id = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]


class Wish(BaseModel):
    """A body of a request; an unknown field is an error."""

    model_config = ConfigDict(extra="forbid")


class NewUpload(Wish):
    """What is about to be sent."""

    name: str = Field(max_length=255, description="The name shown in the history; the file is stored under another.")


class CheckWish(Wish):
    """How to look at an upload."""

    series: str | None = Field(None, max_length=64, description="Number or UID of one of several DICOM series.")
    correct_geometry: bool = Field(False, description="Straighten a gantry tilt, fill gaps between slices.")
    time_point: int | None = Field(None, ge=0, description="Which volume of a 4D file, from 0.")


class PointWish(Wish):
    """A place inside or outside a structure."""

    kind: Literal["point"]
    at: _Place = Field(description="mm of the patient, in RAS; on a picture column, row and 0.")
    inside: bool = True
    label: _LabelId = 1


class BoxWish(Wish):
    """A rectangle around a structure on one slice, or a cuboid."""

    kind: Literal["box"]
    first: _Place = Field(description="One corner, as the place of a point.")
    last: _Place = Field(description="The corner across.")
    axes: tuple[_Place, _Place, _Place] | None = Field(None, description="Directions of the edges, unit vectors.")
    label: _LabelId = 1


class PromptsWish(Wish):
    """What marks the structures, as in the file of `medseg infer --prompts`, but without masks."""

    format: Literal["medseg-prompts-1"] = FORMAT
    space: Literal["mm", "px"] = "mm"
    names: dict[_LabelId, _Words] = Field({}, description="What the structures are called.")
    prompts: list[Annotated[PointWish | BoxWish, Field(discriminator="kind")]] = Field(min_length=1, max_length=500)


class RunWish(CheckWish):
    """A model to run on an upload that was checked."""

    upload: str
    model: str = Field(max_length=64)
    confirmed: bool = Field(False, description="Run on an image that the model was not made for; this is logged.")
    noise: float | None = Field(None, gt=0, description="Noise level, for models that remove it.")
    formats: list[Literal["seg", "rtstruct", "sr", "sc", "dicom"]] = Field([], max_length=5)
    prompts: PromptsWish | None = Field(None, description="For models that follow prompts, and for them alone.")
    propagate: bool = Field(True, description="Go on from slices with prompts to those beside them.")
    support: _Id | None = Field(None, description="Id of a support set, for models that follow examples.")


class ReviewWish(Wish):
    """Structures of a result that a person does not accept."""

    rejected: list[_LabelId] = Field(min_length=1, max_length=255)
    comment: str = Field("", max_length=500, description="Why; it goes into the result and its report.")


class CaseWish(Wish):
    """One example: an upload with its label map, or a job that made or corrected one."""

    upload: _Id | None = None
    labels: _Id | None = Field(None, description="The upload that holds the label map of `upload`.")
    job: _Id | None = Field(None, description="In place of both.")

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if (self.job is None) != (self.upload is not None and self.labels is not None) or (self.job and self.upload):
            raise ValueError("a case needs an upload and its labels, or a job instead of both")
        return self


class SupportWish(Wish):
    """A support set to be made."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$", description="For you; not that of a patient.")
    cases: list[CaseWish] = Field(min_length=FEWEST, max_length=MOST)
    names: dict[_LabelId, _Words] = Field({}, description="Which ids count, and what they mean; {} for all.")
    modality: str | None = Field(None, pattern=r"^[A-Za-z]{1,16}$", description="Where the files do not tell.")
    plane: Literal["axial", "coronal", "sagittal"] | None = None


class UploadAnswer(BaseModel):
    """An upload of yours."""

    id: str
    name: str
    files: int
    bytes: int
    created: float = Field(description="Seconds since 1970.")
    removed_after: float = Field(description="When it is removed with all results, unless work goes on.")


class JobAnswer(BaseModel):
    """A job of yours."""

    id: str
    upload: str
    kind: Literal["check", "run", "correct", "support"]
    request: dict[str, Any]
    state: Literal["queued", "running", "cancelling", "done", "failed", "refused", "cancelled"]
    place: int | None = Field(None, description="In the queue, from 1, while it waits.")
    stage: str
    done: int
    total: int
    seconds_left: float | None
    reason: str = Field(description="One sentence where it failed or was refused.")
    created: float
    started: float | None
    ended: float | None


class ResultAnswer(BaseModel):
    """What a job gave."""

    manifest: dict[str, Any]
    statistics: dict[str, Any] | None = None
    labels: list[dict[str, Any]] = []
    confidence: list[Confidence] = Field([], description="How sure the model was, where it tells.")
    files: list[str] = Field([], description="Names to download, each under `files/NAME`.")
    views: list[str] = Field([], description="Copies to look at, each under `files/NAME`.")


class SupportAnswer(BaseModel):
    """A support set of yours; its contact sheet is the file `sheet.png` of the job of the same id."""

    id: str
    name: str
    state: Literal["queued", "running", "cancelling", "done", "failed", "refused", "cancelled"]
    reason: str = Field(description="One sentence where it could not be made.")
    created: float
    removed_after: float = Field(description="When it is removed, unless it is used again.")
    card: dict[str, Any] | None = Field(description="Structures, cases, slices, plane, modality; null until made.")


class Problem(BaseModel):
    """Why a request was not met, in one sentence."""

    error: str
