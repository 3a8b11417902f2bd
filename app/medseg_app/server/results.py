"""The results of jobs over REST: figures, single files, everything as one archive, the report."""

from __future__ import annotations

import json
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fastapi import APIRouter, HTTPException, Response
from fastapi.responses import FileResponse, HTMLResponse, StreamingResponse

from medseg_app.jobs.views import VIEWS
from medseg_app.server.answers import ResultAnswer
from medseg_app.server.api import FAILURES, Here, Owner, must_job, must_upload
from medseg_app.server.confidence import confidence
from medseg_app.server.place import Place
from medseg_app.server.report import report
from medseg_pipelines.folders import RESULT_MARK
from medseg_pipelines.results import LABELS_JSON

_CHUNK = 1 << 20
_SHOWN = (".png", ".json", ".csv")  # what a browser may show in place; the rest it saves

router = APIRouter(responses=FAILURES)


def _folder(place: Place, job: str, owner: str) -> Path:
    """The result of a job of this owner."""
    folder = place.store.result(must_job(place, owner, job).id)
    if folder is None:
        raise HTTPException(409, "job has no result; see its state")
    return folder


@router.get("/jobs/{job}/result")
def result(job: str, owner: Owner, place: Here) -> ResultAnswer:
    """Manifest, figures and the names of the files; of a check, what was found."""
    folder = _folder(place, job, owner)
    names, manifest = _files(folder), _json(folder / RESULT_MARK) or {}
    return ResultAnswer(
        manifest=manifest,
        confidence=confidence(manifest),
        statistics=_json(folder / "statistics.json"),
        labels=(_json(folder / LABELS_JSON) or {}).get("labels", []),
        files=[name for name in names if not name.startswith((f"{VIEWS}/", "view."))],
        views=[name for name in names if name.startswith((f"{VIEWS}/", "view."))],
    )


@router.get("/jobs/{job}/files/{name:path}", response_class=FileResponse)
def file(job: str, name: str, owner: Owner, place: Here) -> Response:
    """One file of the result."""
    folder = _folder(place, job, owner)
    if name not in _files(folder):
        raise HTTPException(404, "file is not part of the result; GET result lists them")
    path = folder / name
    if not name.startswith((f"{VIEWS}/", "view.")):
        place.audit.record("download", owner, job=job, file=name)
    return FileResponse(path, filename=None if name.endswith(_SHOWN) else path.name)


@router.get("/jobs/{job}/archive", response_class=StreamingResponse)
def archive(job: str, owner: Owner, place: Here) -> Response:
    """All files of the result in one zip archive."""
    folder = _folder(place, job, owner)
    place.audit.record("download", owner, job=job, file="archive")
    headers = {"Content-Disposition": 'attachment; filename="medseg-result.zip"'}
    return StreamingResponse(zipped(folder), media_type="application/zip", headers=headers)


@router.get("/jobs/{job}/report", response_class=HTMLResponse)
def printed(job: str, owner: Owner, place: Here) -> HTMLResponse:
    """The report as one self-contained page that prints well."""
    found = must_job(place, owner, job)
    if found.kind in ("check", "support"):
        raise HTTPException(409, f"a {found.kind} job has no report; run a model first")
    folder = _folder(place, job, owner)
    must_upload(place, owner, found.upload)
    return HTMLResponse(report(folder))


def zipped(folder: Path) -> Iterator[bytes]:
    """A result as the bytes of a zip archive, without the copies made for the browser."""
    with tempfile.TemporaryFile(dir=folder.parent) as draft:
        with zipfile.ZipFile(draft, "w", zipfile.ZIP_STORED) as archive:
            for name in _files(folder):
                if not name.startswith(f"{VIEWS}/"):
                    archive.write(folder / name, name)
        draft.seek(0)
        while piece := draft.read(_CHUNK):
            yield piece


def _files(folder: Path) -> list[str]:
    """The names of the files of a result, the only ones that can be asked for."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def _json(path: Path) -> dict[str, Any] | None:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
