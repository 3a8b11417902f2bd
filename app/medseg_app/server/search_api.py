"""Searching archives over REST: what is looked for travels in bodies only, never in an address."""

from __future__ import annotations

import datetime
from typing import Annotated, Literal

from fastapi import APIRouter, HTTPException
from pydantic import BaseModel, ConfigDict, Field

from medseg_app.server.answers import Wish
from medseg_app.server.api import FAILURES, Here, Owner, require_room
from medseg_app.server.place import Place

_Uid = Annotated[str, Field(pattern=r"^[0-9][0-9.]{0,63}$")]

router = APIRouter(responses={**FAILURES, 502: FAILURES[400]})


class SearchWish(Wish):
    """Which studies to look for; what is given must all fit, at least one is needed, wildcards are not taken."""

    archive: str = Field(max_length=40, description="One of the `searches` of GET /me.")
    patient_id: str = Field("", max_length=64)
    accession: str = Field("", max_length=16, description="Accession number.")
    date: datetime.date | None = Field(None, description="Of the study.")
    show_patient: bool = Field(False, description="Tell name and id of the patients, too; this is logged.")


class MatchAnswer(BaseModel):
    """One series that the archive holds."""

    model_config = ConfigDict(from_attributes=True)

    study: str
    series: str
    date: str = Field(description="Of the study, YYYYMMDD; empty where the archive does not tell.")
    modality: str
    description: str
    images: int | None
    patient: str = Field(description="Name and id; empty unless they were asked for.")


class SearchAnswer(BaseModel):
    """What was found."""

    matches: list[MatchAnswer]
    more: bool = Field(description="Whether there may be more than are told.")


class RetrieveWish(Wish):
    """A series to bring."""

    archive: str = Field(max_length=40)
    study: _Uid
    series: _Uid


class RetrievalAnswer(BaseModel):
    """A series on its way, or there."""

    model_config = ConfigDict(from_attributes=True)

    upload: str = Field(description="Of yours; ready to be checked once this is done, gone where it failed.")
    state: Literal["fetching", "done", "failed"]
    done: int
    total: int
    reason: str = Field(description="One sentence where it failed.")
    ended: float | None


@router.post("/archive-searches")
def find(wish: SearchWish, owner: Owner, place: Here) -> SearchAnswer:
    """Search an archive, where the operator allows it."""
    _require_open(place, wish.archive)
    criteria = {
        "PatientID": wish.patient_id,
        "AccessionNumber": wish.accession,
        "StudyDate": f"{wish.date:%Y%m%d}" if wish.date else "",
    }
    found, more = place.search.find(wish.archive, criteria, owner, show_patient=wish.show_patient)
    return SearchAnswer(matches=[MatchAnswer.model_validate(one) for one in found], more=more)


@router.post("/archive-retrievals", status_code=202)
def retrieve(wish: RetrieveWish, owner: Owner, place: Here) -> RetrievalAnswer:
    """Bring a series into a new upload of yours; the answer comes at once, GET tells how it goes."""
    _require_open(place, wish.archive)
    require_room(place, owner)
    return RetrievalAnswer.model_validate(place.search.begin(wish.archive, wish.study, wish.series, owner))


@router.get("/archive-retrievals/{upload}")
def retrieval(upload: str, owner: Owner, place: Here) -> RetrievalAnswer:
    """How it goes."""
    found = place.search.told(upload, owner)
    if found is None:
        raise HTTPException(404, "retrieval is not there; the server may have been started again, open it once more")
    return RetrievalAnswer.model_validate(found)


def _require_open(place: Place, archive: str) -> None:
    """Only archives that the operator opened.

    Raises:
        HTTPException: 404.
    """
    if archive not in place.search.names():
        raise HTTPException(404, "archive is not known here, or may not be searched; GET /me names those that may")
