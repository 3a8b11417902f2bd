"""Repeat the run of a manifest and compare bit for bit."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from medseg.errors import InputRefused, ModelMissing, UsageError
from medseg.io import read
from medseg.io.prompts import read_prompts
from medseg_pipelines.case import Case, hash_file, hash_volume, read_case
from medseg_pipelines.events import Callback
from medseg_pipelines.load import load_model
from medseg_pipelines.manifest import version_changes
from medseg_pipelines.picture_case import PictureCase, read_picture_case
from medseg_pipelines.picture_frames import FramesCase, read_frames_case
from medseg_pipelines.prompting.results import PROMPTS_FILE, digest_of


@dataclass(frozen=True, kw_only=True)
class Replay:
    """What came of it."""

    identical: bool  # the repeated volume equals the recorded one, voxel by voxel
    files_intact: bool | None  # the files beside the manifest are those it lists; None where there are none
    changed_versions: tuple[str, ...]


def replay(
    manifest: dict[str, Any],
    folder: Path,
    *,
    image: Path | None = None,
    model: str | Path | None = None,
    progress: Callback | None = None,
) -> Replay:
    """Run again what a manifest describes.

    Args:
        manifest: From `read_manifest`.
        folder: The result folder that it lies in.
        image: The input, where it lies neither beside the result folder nor in it.
        model: The model folder, where it does not ship with the package.
        progress: Gets every event.

    Raises:
        UsageError: The input is not found.
        InputRefused: The input or the regions are not those of the run.
        ModelMissing: The model is not that of the run.
    """
    path = image or _find_input(folder, manifest["input"]["name"])
    case = _read(path, manifest["input"])
    if case.record.sha256 != manifest["input"]["sha256"]:
        raise InputRefused(
            f"input '{path.name}' must have sha256 {manifest['input']['sha256'][:12]}..., "
            f"got {case.record.sha256[:12]}...; it is another file or was changed"
        )
    machine = manifest["machine"]
    threads = torch.get_num_threads()
    torch.set_num_threads(machine["threads"])  # sums in another order differ in the last bit
    try:
        where = {"device": machine["device"], "engine": machine["engine"]}
        runner = load_model(model or manifest["model"]["name"], weights=manifest["options"].get("weights"), **where)
        if runner.recipe.weights.sha256 != manifest["model"]["weights_sha256"]:
            raise ModelMissing(
                f"model '{runner.recipe.name}' has other weights than the manifest; install that version"
            )
        options = _options(manifest, folder)
        if isinstance(case, FramesCase):
            result = runner.frames(case, progress=progress, **options)  # pyright: ignore[reportAttributeAccessIssue] # models of pictures alone have frames
        else:
            result = runner(case, progress=progress, **options)
    finally:
        torch.set_num_threads(threads)
    return Replay(
        identical=result.digest == manifest["output"]["voxels_sha256"],
        files_intact=_files_intact(folder, manifest.get("files", {})),
        changed_versions=tuple(version_changes(manifest)),
    )


def _read(path: Path, record: dict[str, Any]) -> Case | PictureCase | FramesCase:
    """The input as the run read it."""
    if record.get("kind") == "frames":
        return read_frames_case(path, record["frames"])
    if record.get("kind") == "picture":
        return read_picture_case(path)
    chosen = {name: record.get(name) for name in ("time_point", "series")}
    return read_case(path, correct_geometry=record.get("correct_geometry", False), **chosen)


def _options(manifest: dict[str, Any], folder: Path) -> dict[str, Any]:
    """What the user asked for then; regions and prompts are read from the result folder."""
    options = {name: value for name, value in manifest["options"].items() if name not in ("weights", "partition")}
    said = options.pop("prompts_sha256", None)
    if said is not None:
        options["prompts"] = read_prompts(folder / PROMPTS_FILE)
        if digest_of(options["prompts"]) != said:
            raise InputRefused("prompts of the run must lie in the result folder as they were, they do not; run anew")
    wanted = options.pop("regions_sha256", None)
    if wanted is not None:
        found = next(iter(sorted(folder.glob("regions.*[!g]"))), None)
        regions = read(found, kind="labels") if found else None
        if regions is None or hash_volume(regions) != wanted:
            raise InputRefused("regions of the run must lie in the result folder as they were, they do not; run anew")
        options["regions"] = regions
    return options


def _find_input(folder: Path, name: str | None) -> Path:
    if name is None:
        raise UsageError("manifest is of an image from memory, expected a file; give it with --input")
    for place in (folder.resolve().parent, folder, Path.cwd()):
        if (place / name).exists():  # DICOM may be a folder
            return place / name
    raise UsageError(f"input '{name}' is not beside the result; give it with --input")


def _files_intact(folder: Path, files: dict[str, Any]) -> bool | None:
    present = {name: digest for name, digest in files.items() if (folder / name).is_file()}
    if not present:
        return None
    return all(hash_file(folder / name)[0] == digest for name, digest in present.items())
