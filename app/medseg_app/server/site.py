"""The application as uvicorn runs it: REST interface first, the Gradio page last, the guard around both."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse, RedirectResponse
from fastapi.staticfiles import StaticFiles
from jinja2 import Environment

from medseg import __version__
from medseg.errors import MedsegError
from medseg_app.jobs.store import TooLarge
from medseg_app.server import api, archive_api, results, search_api, support_api
from medseg_app.server.accounts import Throttled
from medseg_app.server.guard import COOKIE, Guard, cookie
from medseg_app.server.page import mount_page
from medseg_app.server.place import Place, Settings
from medseg_app.server.report import PAGE, strings
from medseg_pipelines.pacs.address import ArchiveFailed
from medseg_pipelines.words import RESEARCH_USE

_API = "/api/v1"


def build_site(settings: Settings) -> tuple[Guard, Place]:
    """The application and its parts; work on jobs begins when a server starts it.

    Raises:
        InputRefused: The audit log is broken.
    """
    place = Place(settings)

    @asynccontextmanager
    async def running(app: FastAPI) -> AsyncIterator[None]:
        place.open()
        place.audit.record("start", "server", version=__version__)
        yield
        place.audit.record("stop", "server")
        place.close()

    app = FastAPI(
        title="medseg",
        version=__version__,
        description=RESEARCH_USE,
        lifespan=running,
        docs_url=None,
        redoc_url=None,
        openapi_url=f"{_API}/openapi.json",
    )
    app.state.place = place
    app.include_router(api.router, prefix=_API)
    app.include_router(results.router, prefix=_API)
    app.include_router(archive_api.router, prefix=_API)
    app.include_router(search_api.router, prefix=_API)
    app.include_router(support_api.router, prefix=_API)
    _add_health(app, place)
    _add_login(app, place)
    _add_errors(app)
    app.mount("/medseg-assets", StaticFiles(directory=str(PAGE / "static")))
    mount_page(app, place)
    return Guard(app, settings.hosts, place.accounts, place.metrics, place.store), place


def _add_health(app: FastAPI, place: Place) -> None:
    @app.get("/healthz", include_in_schema=False)
    def health() -> PlainTextResponse:
        """The server answers."""
        return PlainTextResponse("ok\n")

    @app.get("/readyz", include_in_schema=False)
    def ready() -> PlainTextResponse:
        """The server takes work."""
        if not place.supervisor.alive():
            return PlainTextResponse("workers are not running\n", 503)
        return PlainTextResponse("disk is full\n", 503) if place.store.is_full() else PlainTextResponse("ok\n")

    @app.get("/metrics", include_in_schema=False)
    def figures() -> PlainTextResponse:
        """For Prometheus."""
        text = place.metrics.text(place.table, place.store, place.supervisor)
        return PlainTextResponse(text, media_type="text/plain; version=0.0.4")


def _add_login(app: FastAPI, place: Place) -> None:
    page = Environment(autoescape=True).from_string((PAGE / "login.html").read_text(encoding="utf-8"))
    words = strings()

    def form(problem: str = "", status: int = 200) -> HTMLResponse:
        return HTMLResponse(page.render(t=words["login"], problem=problem, research_use=RESEARCH_USE), status)

    @app.get("/login", include_in_schema=False)
    def login() -> Response:
        """The form, where there is somebody to be."""
        return form() if place.accounts else RedirectResponse("/", 303)

    @app.post("/login", include_in_schema=False)
    async def enter(request: Request) -> Response:
        """A new session, or the form again."""
        if place.accounts is None:
            return RedirectResponse("/", 303)
        given = await request.form(max_files=0, max_fields=4)
        name, password = str(given.get("name", "")), str(given.get("password", ""))
        try:
            token = place.accounts.log_in(name, password, request.client.host if request.client else "")
        except Throttled as error:
            return form(str(error), 429)
        if token is None:
            place.audit.record("login refused", "nobody")
            return form(words["login"]["wrong"], 401)
        place.audit.record("login", name)
        answer = RedirectResponse("/", 303)
        answer.headers.append("Set-Cookie", cookie(token, secure=request.url.scheme == "https"))
        return answer

    @app.post("/logout", include_in_schema=False)
    def leave(request: Request) -> Response:
        """The session ends."""
        if place.accounts is not None:
            place.accounts.log_out(request.cookies.get(COOKIE, ""))
        return RedirectResponse("/login", 303)


def _add_errors(app: FastAPI) -> None:
    """Every refusal is one sentence under `error`."""

    @app.exception_handler(HTTPException)
    def refused(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        return JSONResponse({"error": error.detail}, error.status_code)

    @app.exception_handler(MedsegError)
    def user_error(request: Request, error: Exception) -> JSONResponse:
        status = {TooLarge: 413, ArchiveFailed: 502}.get(type(error), 400)
        return JSONResponse({"error": str(error)}, status)

    @app.exception_handler(RequestValidationError)
    def malformed(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        first: dict[str, Any] = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"][1:]) or "body"
        return JSONResponse({"error": f"{where}: {first['msg'].lower()}; see {_API}/openapi.json"}, 422)
