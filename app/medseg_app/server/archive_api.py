"""Sending results to an archive over REST: where to, of whom, and only when that was confirmed."""

from __future__ import annotations

from typing import Any, Literal

from fastapi import APIRouter, HTTPException
from pydantic import BaseModel, Field

from medseg_app.server.answers import Wish
from medseg_app.server.api import FAILURES, Here, Owner, must_job
from medseg_app.server.place import Place

router = APIRouter(responses=FAILURES)


class SendWish(Wish):
    """A result to be sent."""

    destination: str = Field(max_length=40, description="One that GET names; addresses are not taken.")
    confirmed: bool = Field(False, description="Somebody has seen patient and destination, and agreed.")


class Sending(BaseModel):
    """One result on its way to one destination, or there."""

    number: int
    destination: str
    state: Literal["sending", "sent", "failed"]
    files: int
    stored: int = Field(description="How many of the files the archive has confirmed.")
    reasons: list[str] = Field(description="Why others were not stored, each reason once.")
    begun: float
    ended: float | None


class SendingsAnswer(BaseModel):
    """What can be sent, and what was."""

    destinations: dict[str, str] = Field(description="Name of each, and where it is.")
    obstacle: str = Field(description="Why this result cannot be sent, in one sentence; empty where it can.")
    sendings: list[Sending]


class QuestionAnswer(BaseModel):
    """What has to be confirmed before a result is sent."""

    destination: str
    at: str
    patient: str = Field(description="Name and id as the images have them.")
    objects: dict[str, int] = Field(description="Modality to number of DICOM objects.")


@router.get("/jobs/{job}/sendings")
def sendings(job: str, owner: Owner, place: Here) -> SendingsAnswer:
    """Where a result can go, and where it went."""
    found, sends = must_job(place, owner, job).id, place.sends
    told = {"destinations": sends.destinations(), "obstacle": sends.obstacle(found), "sendings": sends.told(found)}
    return SendingsAnswer.model_validate(told)


@router.get("/jobs/{job}/sendings/{destination}")
def question(job: str, destination: str, owner: Owner, place: Here) -> QuestionAnswer:
    """What would be sent, of whom, and where to: to be shown to the person who confirms it."""
    found, at = must_job(place, owner, job).id, _must_know(place, destination)
    patient, objects = place.sends.content(found)
    return QuestionAnswer(destination=destination, at=at, patient=patient, objects=objects)


@router.post("/jobs/{job}/sendings", status_code=202)
def send(job: str, wish: SendWish, owner: Owner, place: Here) -> Sending:
    """Send the DICOM objects of a result; the answer comes at once, GET tells how it goes."""
    found, _ = must_job(place, owner, job).id, _must_know(place, wish.destination)
    if not wish.confirmed:
        raise HTTPException(409, f"sending must be confirmed; show GET sendings/{wish.destination}, set `confirmed`")
    number = place.sends.begin(found, wish.destination, owner)
    begun: dict[str, Any] = next(one for one in place.sends.told(found) if one["number"] == number)
    return Sending.model_validate(begun)


def _must_know(place: Place, destination: str) -> str:
    """Where a destination is.

    Raises:
        HTTPException: 404; the operator named none like that.
    """
    known = place.sends.destinations()
    if destination not in known:
        raise HTTPException(404, "destination is not known here; GET sendings names them")
    return known[destination]
