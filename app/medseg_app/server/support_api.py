"""Support sets over REST: made of one's own cases, listed, removed; a run names one by its id."""

from __future__ import annotations

import json
from typing import Any

from fastapi import APIRouter, HTTPException, Response

from medseg_app.jobs.table import Job
from medseg_app.server.answers import CaseWish, JobAnswer, SupportAnswer, SupportWish
from medseg_app.server.api import FAILURES, Here, Owner, begin, must_job, must_upload, require_room
from medseg_app.server.place import Place
from medseg_pipelines.folders import RESULT_MARK
from medseg_pipelines.results import LABELS_JSON

router = APIRouter(responses=FAILURES)


@router.post("/support-sets", status_code=201)
def make(wish: SupportWish, owner: Owner, place: Here) -> JobAnswer:
    """Make a support set of 3 to 10 cases of yours; the job's id is that of the set."""
    cases = [_case(place, owner, case, number) for number, case in enumerate(wish.cases, start=1)]
    require_room(place, owner)
    folder = place.table.add_upload(owner, wish.name)  # so that it is kept, shown and removed like all that is yours
    request = wish.model_dump(mode="json", exclude={"cases"}) | {"cases": cases}
    job = begin(place, owner, folder, "support", request)
    place.audit.record("support", owner, job=job.id, cases=len(cases))
    return job


@router.get("/support-sets")
def listing(owner: Owner, place: Here) -> list[SupportAnswer]:
    """Your support sets, the newest first, those that could not be made too."""
    return [_answer(place, job) for job in place.table.jobs(owner) if job.kind == "support"]


@router.delete("/support-sets/{job}", status_code=204, response_class=Response)
def remove(job: str, owner: Owner, place: Here) -> None:
    """Delete a support set, slices and outlines; results that were made with it stay."""
    found = must_job(place, owner, job)
    if found.kind != "support":
        raise HTTPException(404, "support set is not there; it may have been deleted")
    place.store.remove(found.upload)
    place.audit.record("delete", owner, job=job)


def _case(place: Place, owner: str, case: CaseWish, number: int) -> dict[str, Any]:
    """Where one case lies, all of it of the same owner."""
    if case.job is None:
        image, labels = (must_upload(place, owner, one or "") for one in (case.upload, case.labels))
        if not (image.files and labels.files):
            raise HTTPException(409, f"case {number}: an upload is empty; send its files first")
        return {"upload": image.id, "labels": labels.id}
    job = must_job(place, owner, case.job)
    folder = place.store.result(job.id)
    if folder is None or not (folder / LABELS_JSON).is_file():
        raise HTTPException(409, f"case {number}: job has no label map; see its state")
    asked = {key: job.request.get(key) for key in ("series", "time_point", "correct_geometry")}
    return {**asked, "upload": job.upload, "job": job.id}


def _answer(place: Place, job: Job) -> SupportAnswer:
    folder = place.store.result(job.id)
    told = json.loads((folder / RESULT_MARK).read_text(encoding="utf-8")) if folder else {}
    return SupportAnswer(
        id=job.id,
        name=job.request["name"],
        state=job.state,
        reason=job.reason,
        created=job.created,
        removed_after=place.removed_after(job.upload),
        card=told.get("card"),
    )
