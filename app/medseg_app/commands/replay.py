"""`medseg replay`: repeat a run from its manifest."""

from dataclasses import asdict
from pathlib import Path

from medseg_app.output import print_json, print_line
from medseg_app.progress import ProgressView
from medseg_pipelines.manifest import read_manifest


def run(manifest: Path, *, image: Path | None, model: str | None, json: bool, quiet: bool) -> int:
    """Repeat and compare; returns 0 where the label map is equal bit for bit, else 1."""
    content = read_manifest(manifest)
    from medseg_pipelines.replay import replay  # torch costs seconds: a wrong manifest must not pay them

    with ProgressView(quiet=quiet) as view:
        found = replay(content, manifest.parent, image=image, model=model, progress=view)
    if json:
        print_json(asdict(found))
    else:
        print_line("identical: every voxel is equal" if found.identical else "different: the label maps are not equal")
        if found.files_intact is False:
            print_line("the files beside the manifest are not those it lists: they were changed since")
        for change in found.changed_versions:
            print_line(f"changed since: {change}")
    return 0 if found.identical and found.files_intact is not False else 1
