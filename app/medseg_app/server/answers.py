"""What the REST interface says, as pydantic models; they are the schema in its OpenAPI description."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field


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


class RunWish(CheckWish):
    """A model to run on an upload that was checked."""

    upload: str
    model: str = Field(max_length=64)
    confirmed: bool = Field(False, description="Run on an image that the model was not made for; this is logged.")
    noise: float | None = Field(None, gt=0, description="Noise level, for models that remove it.")
    formats: list[Literal["seg", "rtstruct", "sr", "sc", "dicom"]] = Field([], max_length=5)


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
    kind: Literal["check", "run", "correct"]
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
    files: list[str] = Field([], description="Names to download, each under `files/NAME`.")
    views: list[str] = Field([], description="Copies to look at, each under `files/NAME`.")


class Problem(BaseModel):
    """Why a request was not met, in one sentence."""

    error: str
