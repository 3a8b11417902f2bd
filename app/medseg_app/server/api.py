"""The REST interface: bring an image, have it checked, run models on it, take the results home.

The page itself uses nothing else. Names of files travel in bodies and headers only, never in an address.
"""

from __future__ import annotations

from typing import Annotated, Any, TypeVar
from urllib.parse import unquote

from fastapi import APIRouter, Depends, HTTPException, Request, Response

from medseg_app.jobs.offered import BY_EXAMPLE, PROMPTING, offered_names
from medseg_app.jobs.table import OPEN, Job, Upload
from medseg_app.server.answers import CheckWish, JobAnswer, NewUpload, Problem, ReviewWish, RunWish, UploadAnswer
from medseg_app.server.place import Place
from medseg_pipelines.recipe import load_recipe
from medseg_pipelines.words import RESEARCH_USE

_Found = TypeVar("_Found", Upload, Job)

FAILURES: dict[int | str, dict[str, Any]] = {code: {"model": Problem} for code in (400, 401, 404, 409, 413, 429)}


def owner_of(request: Request) -> str:
    """Who asks; the guard has found it out."""
    return request.state.owner


def place_of(request: Request) -> Place:
    """The server that is asked."""
    return request.app.state.place


Owner = Annotated[str, Depends(owner_of)]
Here = Annotated[Place, Depends(place_of)]

router = APIRouter(responses=FAILURES)


@router.get("/me")
def me(owner: Owner, place: Here) -> dict[str, Any]:
    """Who you are here, and what this server allows."""
    limits, named = place.settings.limits, place.accounts is not None
    return {
        "user": owner if named else None,
        "notice": RESEARCH_USE,
        "upload_bytes": limits.upload_bytes,
        "keep_hours": limits.keep_hours,
        "searches": place.search.names(),
    }


@router.get("/models")
def models(place: Here) -> list[dict[str, Any]]:
    """The models of this server."""
    kept = {"name", "title", "task", "summary", "intended_use", "licence", "scope"}
    recipes = map(load_recipe, offered_names())
    return [
        {
            **r.model_dump(mode="json", include=kept),
            "trained": r.weights.trained,
            "seconds": place.table.seconds_of(r.name),
        }
        for r in recipes
    ]


@router.post("/uploads", status_code=201)
def new_upload(wish: NewUpload, owner: Owner, place: Here) -> UploadAnswer:
    """Announce an upload; its files follow with `PUT /uploads/{id}/files`."""
    if place.store.is_full():
        raise HTTPException(413, "disk: the space of this server is used up; delete old work under History")
    made = place.table.add_upload(owner, wish.name)
    place.audit.record("upload", owner, upload=made.id)
    return _upload(place, made)


@router.put("/uploads/{upload}/files", status_code=204, response_class=Response)
async def add_file(upload: str, request: Request, owner: Owner, place: Here) -> None:
    """Send one file as the body; the header `X-File-Name` holds its percent-encoded name."""
    found = must_upload(place, owner, upload)
    if any(job.state in OPEN for job in place.table.jobs(upload=found.id)):
        raise HTTPException(409, "upload is being worked on; wait, or bring the file as a new upload")
    name = unquote(request.headers.get("x-file-name", ""))
    await place.store.receive(found.id, name, request.stream())


@router.get("/uploads")
def history(owner: Owner, place: Here) -> list[UploadAnswer]:
    """Your uploads, the newest first."""
    return [_upload(place, found) for found in place.table.uploads(owner)]


@router.get("/uploads/{upload}/jobs")
def jobs_of(upload: str, owner: Owner, place: Here) -> list[JobAnswer]:
    """What was done with an upload, the newest first."""
    return [job_answer(place, job) for job in place.table.jobs(upload=must_upload(place, owner, upload).id)]


@router.delete("/uploads/{upload}", status_code=204, response_class=Response)
def remove(upload: str, owner: Owner, place: Here) -> None:
    """Delete an upload with every result of it."""
    place.store.remove(must_upload(place, owner, upload).id)
    place.audit.record("delete", owner, upload=upload)


@router.post("/uploads/{upload}/check", status_code=201)
def check(upload: str, wish: CheckWish, owner: Owner, place: Here) -> JobAnswer:
    """Look at what was sent: its geometry, its problems, the models that it is for."""
    return begin(place, owner, must_upload(place, owner, upload), "check", wish.model_dump())


@router.post("/jobs", status_code=201)
def run(wish: RunWish, owner: Owner, place: Here) -> JobAnswer:
    """Restore or segment an upload."""
    found = must_upload(place, owner, wish.upload)
    if wish.model not in offered_names():
        raise HTTPException(404, f"model '{wish.model}' is not known; GET /models lists them")
    _require_fitting(place, owner, wish)
    request = wish.model_dump(mode="json", exclude={"upload"}, exclude_none=True) | {"device": place.settings.device}
    job = begin(place, owner, found, "run", request)
    place.audit.record("run", owner, job=job.id, upload=found.id, model=wish.model, scope_confirmed=wish.confirmed)
    return job


@router.get("/jobs/{job}")
def state(job: str, owner: Owner, place: Here) -> JobAnswer:
    """How a job stands."""
    return job_answer(place, must_job(place, owner, job))


@router.post("/jobs/{job}/cancel")
def cancel(job: str, owner: Owner, place: Here) -> JobAnswer:
    """Stop a job; what it held is freed and nothing is kept."""
    place.table.cancel(owner, must_job(place, owner, job).id)
    place.audit.record("cancel", owner, job=job)
    return job_answer(place, must_job(place, owner, job))


@router.post("/jobs/{job}/corrections", status_code=201)
async def correct(job: str, request: Request, owner: Owner, place: Here) -> JobAnswer:
    """Send a corrected label map, a NIfTI file on the same grid, as the body; it becomes a result of its own."""
    source = _labelled(place, owner, job)
    name = await place.store.receive_drawing(source.upload, request.stream())
    return _corrected(place, owner, source, {"drawing": name})


@router.post("/jobs/{job}/review", status_code=201)
def review(job: str, wish: ReviewWish, owner: Owner, place: Here) -> JobAnswer:
    """Reject structures; the label map without them becomes a result of its own that says so."""
    return _corrected(place, owner, _labelled(place, owner, job), wish.model_dump())


def must_upload(place: Place, owner: str, upload: str) -> Upload:
    """An upload of this owner.

    Raises:
        HTTPException: 404; that of another owner is not there either.
    """
    return _there(place.table.upload(owner, upload), "upload")


def must_job(place: Place, owner: str, job: str) -> Job:
    """A job of this owner.

    Raises:
        HTTPException: 404; that of another owner is not there either.
    """
    return _there(place.table.job(owner, job), "job")


def job_answer(place: Place, job: Job) -> JobAnswer:
    """A job as it is told to its owner."""
    return JobAnswer.model_validate({**vars(job), "place": place.turn(job)})


def begin(place: Place, owner: str, upload: Upload, kind: str, request: dict[str, Any]) -> JobAnswer:
    """A job in the queue.

    Raises:
        HTTPException: 409, 413, 429; the upload is empty, or there is no room.
    """
    if upload.files == 0 and kind != "support":  # a support set lies in an upload without files
        raise HTTPException(409, "upload is empty; send its files first")
    require_room(place, owner)
    return job_answer(place, place.table.add_job(owner, upload.id, kind, request))


def require_room(place: Place, owner: str) -> None:
    """Refuse more work than one user may have waiting, and any where the disk is full.

    Raises:
        HTTPException: 413, 429.
    """
    if sum(job.state in OPEN for job in place.table.jobs(owner)) >= place.settings.open_jobs:
        raise HTTPException(429, f"at most {place.settings.open_jobs} jobs may wait at once; wait for some to end")
    if place.store.is_full():
        raise HTTPException(413, "disk: the space of this server is used up; delete old work under History")


def _there(found: _Found | None, what: str) -> _Found:
    if found is None:
        raise HTTPException(404, f"{what} is not there; it may have been deleted")
    return found


def _require_fitting(place: Place, owner: str, wish: RunWish) -> None:
    """Prompts and examples are there where the model follows them, and nowhere else."""
    task = load_recipe(wish.model).task
    for what, given, follows in (("prompts", wish.prompts, PROMPTING), ("support", wish.support, BY_EXAMPLE)):
        if task == follows and given is None:
            raise HTTPException(400, f"model '{wish.model}' needs {what}, got none; see RunWish in openapi.json")
        if task != follows and given is not None:
            raise HTTPException(400, f"model '{wish.model}' takes no {what}; drop it, or choose another model")
    if wish.support is not None:
        made = must_job(place, owner, wish.support)
        if made.kind != "support" or made.state != "done":
            raise HTTPException(409, "support set is not made yet; see its state")


def _labelled(place: Place, owner: str, job: str) -> Job:
    """A job of this owner with a result that can be corrected."""
    found = must_job(place, owner, job)
    if place.store.result(found.id) is None or found.kind not in ("run", "correct"):
        raise HTTPException(409, "job has no label map to correct; see its state")
    return found


def _corrected(place: Place, owner: str, source: Job, change: dict[str, Any]) -> JobAnswer:
    asked = {key: source.request.get(key) for key in ("series", "time_point", "correct_geometry", "model", "formats")}
    upload = must_upload(place, owner, source.upload)
    begun = begin(place, owner, upload, "correct", {**asked, **change, "of": source.id})
    place.audit.record("correct", owner, job=begun.id, of=source.id, rejected=len(change.get("rejected", [])))
    return begun


def _upload(place: Place, upload: Upload) -> UploadAnswer:
    kept = {key: value for key, value in vars(upload).items() if key != "owner"}
    return UploadAnswer.model_validate({**kept, "removed_after": place.removed_after(upload.id)})
