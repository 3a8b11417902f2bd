"""The page: a Gradio app with our screens in it, and the same jobs for `gradio_client` as `/segment`.

The screens work through the REST interface. Our script fetches them and puts them into a column: Gradio's own HTML
component builds code from text, which the content security policy forbids, and rightly.
Annotations stay objects in this file: Gradio reads them to know where to put the request.
"""

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.responses import HTMLResponse
from jinja2 import Environment

from medseg.errors import UsageError
from medseg_app.jobs.offered import offered_names
from medseg_app.jobs.store import kept_name
from medseg_app.jobs.table import Job
from medseg_app.server.place import Place
from medseg_app.server.quiet import hush
from medseg_app.server.report import PAGE, strings
from medseg_app.server.results import zipped
from medseg_pipelines.words import RADIOLOGICAL, RESEARCH_USE, RESTORED, RESTORED_MARK, UNTRAINED_BANNER

_COLUMN = "medseg-place"
_HEAD = """
<link rel="stylesheet" href="/medseg-assets/page.css">
<script src="/medseg-assets/niivue.umd.js"></script>
<script type="module" src="/medseg-assets/main.js"></script>
"""
_LOOK_EVERY = 0.25  # seconds


def mount_page(app: FastAPI, place: Place) -> None:
    """Put the page at `/`, after every other route.

    Args:
        app: The application.
        place: Does the work.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "0"  # before the import: Gradio asks its vendor's server otherwise
    os.environ["GRADIO_TEMP_DIR"] = str(place.store.passing)
    import gradio as gr
    from gradio import queueing, routes

    hush(queueing, routes)
    age = int(3600 * place.settings.limits.keep_hours)
    words = strings()
    screens = _markup(words)

    @app.get("/medseg-screens", include_in_schema=False)
    def _() -> HTMLResponse:
        """Our part of the page, in words of its language."""
        return HTMLResponse(screens)

    with gr.Blocks(title=words["page"]["title"], analytics_enabled=False, delete_cache=(3600, age)) as blocks:
        with gr.Column(elem_id=_COLUMN):
            gr.Markdown(RESEARCH_USE)
        with gr.Column(visible=False):
            image, model, confirmed = gr.File(type="filepath"), gr.Textbox(), gr.Checkbox()
            progress, result = gr.JSON(), gr.File()
            gr.Button().click(
                _segmenter(place), [image, model, confirmed], [progress, result], api_name="segment", queue=True
            )
    blocks.queue(max_size=100, default_concurrency_limit=8)
    gr.mount_gradio_app(
        app,
        blocks,
        path="/",
        head=_HEAD,
        footer_links=[],
        run_history=False,
        ssr_mode=False,
        mcp_server=False,
        pwa=False,
        show_error=True,
        max_file_size=place.settings.limits.upload_bytes,
    )
    # A mounted app leaves the check of paths off: any visitor could name a file of the server and get its content.
    blocks.has_launched = True


def _markup(words: dict[str, Any]) -> str:
    template = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(
        (PAGE / "page.html").read_text(encoding="utf-8")
    )
    return template.render(
        t=words,
        research_use=RESEARCH_USE,
        restored=RESTORED,
        restored_mark=RESTORED_MARK,
        convention=RADIOLOGICAL,
        untrained=UNTRAINED_BANNER,
    )


def _segmenter(place: Place) -> Any:
    """What `gradio_client` calls as `/segment`: a generator that tells the progress and ends with the archive."""
    import gradio as gr

    def segment(
        image: str, model: str, confirmed: bool, request: gr.Request
    ) -> Iterator[tuple[dict[str, Any], str | None]]:
        owner = request.request.state.owner if request.request else ""
        if model not in offered_names():
            raise gr.Error(f"model '{model}' is not known")
        try:
            job = _begun(place, owner or "gradio", Path(image), model, confirmed)
        except UsageError as error:
            raise gr.Error(str(error)) from None
        try:
            while (now := place.table.find(job.id)) is not None and now.ended is None:
                yield {"state": now.state, "stage": now.stage, "done": now.done, "total": now.total}, None
                time.sleep(_LOOK_EVERY)
        finally:
            place.table.cancel(job.owner, job.id)  # the caller has gone away, or it has ended anyway
        folder = place.store.result(job.id)
        if now is None or folder is None:
            raise gr.Error(now.reason if now and now.reason else "the job was cancelled")
        archive = place.store.passing_folder(job.owner) / "medseg-result.zip"
        archive.write_bytes(b"".join(zipped(folder)))
        yield {"state": now.state, "stage": now.stage, "done": now.total, "total": now.total}, str(archive)

    return segment


def _begun(place: Place, owner: str, image: Path, model: str, confirmed: bool) -> Job:
    """A run of a file that Gradio has received.

    Raises:
        UsageError: The disk is full.
    """
    if place.store.is_full():
        raise UsageError("disk: the space of this server is used up; delete old work")
    upload = place.table.add_upload(owner, image.name)
    folder = place.store.upload_folder(upload.id)
    folder.mkdir(mode=0o700)
    kept = folder / kept_name(0, image.name)
    shutil.move(image, kept)  # Gradio keeps a file under the name it came with, which may be that of a patient
    place.table.grow_upload(upload.id, kept.stat().st_size)
    request = {"model": model, "confirmed": confirmed, "device": place.settings.device}
    job = place.table.add_job(owner, upload.id, "run", request)
    place.audit.record("run", owner, job=job.id, upload=upload.id, model=model, scope_confirmed=confirmed)
    return job
