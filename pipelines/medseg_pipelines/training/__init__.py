"""Training of a model from its recipe; `train` is the one door, a `Course` is one kind of it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from medseg.errors import UsageError
from medseg_pipelines.load import load_model
from medseg_pipelines.recipe import load_recipe
from medseg_pipelines.training.boxes import BoxCourse
from medseg_pipelines.training.course import Course
from medseg_pipelines.training.curves import CURVES, write_curves
from medseg_pipelines.training.distillation import DistillationCourse
from medseg_pipelines.training.episodes import SupportCourse
from medseg_pipelines.training.folder_course import FolderCourse, Score
from medseg_pipelines.training.folder_pairs import find_pairs
from medseg_pipelines.training.folder_pictures import FolderPictureCourse
from medseg_pipelines.training.folder_plan import NETWORKS, plan
from medseg_pipelines.training.folder_volumes import FolderVolumeCourse
from medseg_pipelines.training.instances import InstanceCourse
from medseg_pipelines.training.loop import Diverged, Progress, run_steps
from medseg_pipelines.training.outcome import WEIGHTS, write_card, write_model, write_recipe
from medseg_pipelines.training.patches_course import PictureCourse
from medseg_pipelines.training.picture_pairs import PicturePairCourse
from medseg_pipelines.training.restoration import RestorationCourse
from medseg_pipelines.training.start import begin_from, earlier, sizes_of
from medseg_pipelines.training.superresolution import SuperResolutionCourse
from medseg_pipelines.training.synthetic import SyntheticCourse
from medseg_pipelines.training.together import joined, own_device, rank_and_size

__all__ = ["Diverged", "TrainingReport", "course_of", "train"]

_COURSES: dict[str, type[Course]] = {
    "boxes": BoxCourse,
    "distillation": DistillationCourse,
    "folder-pictures": FolderPictureCourse,
    "folder-volumes": FolderVolumeCourse,
    "instances": InstanceCourse,
    "picture-pairs": PicturePairCourse,
    "pictures": PictureCourse,
    "restoration": RestorationCourse,
    "super-resolution": SuperResolutionCourse,
    "support-set": SupportCourse,
    "synthetic-segmentation": SyntheticCourse,
}


@dataclass(frozen=True)
class TrainingReport:
    """What a training run left behind."""

    steps: int
    loss: float  # mean of the last hundred steps
    weights: Path
    scores: tuple[Score, ...] = ()  # on what was held back, where that is done


def course_of(model: str | Path, patients: Path | None = None) -> Course:
    """The training that a recipe describes, its options checked.

    Args:
        model: Name of a model, or a folder that holds a recipe.
        patients: CSV table that says whose images are whose, for a training that holds some back.

    Raises:
        UsageError: The recipe has no training section, or a field of it is wrong, or it holds no patients back.
    """
    recipe = load_recipe(model)
    if not recipe.training:
        raise UsageError(f"model '{recipe.name}' has no training section in its recipe")
    kind = recipe.training.get("kind")
    if kind not in _COURSES:
        raise UsageError(f"recipe '{recipe.name}': training.kind must be one of {', '.join(_COURSES)}, got '{kind}'")
    if patients is None:
        return _COURSES[kind](recipe)
    if not issubclass(_COURSES[kind], FolderCourse):
        raise UsageError(f"training '{kind}' holds no patients back, got a table of patients; drop --patients")
    section = {**recipe.training, "patients": str(patients.resolve())}
    return _COURSES[kind](recipe.model_copy(update={"training": section}))


def train(
    model: str | Path,
    data: Path,
    out: Path,
    *,
    patients: Path | None = None,
    start: Path | None = None,
    teacher: str | None = None,
    resume: bool = False,
    device: str = "cpu",
    workers: int = 1,
    seconds: float | None = None,
    progress: Progress | None = None,
) -> TrainingReport:
    """Train a model from its recipe, or a network by a recipe that is found from the data.

    Args:
        model: Name of a model, a folder that holds a recipe, or one of `NETWORKS`.
        data: Folder that the recipe's patterns start from.
        out: Folder of the run: `state.pt`, `log.jsonl`, `curves.png`, and the model that came of it.
        patients: CSV table that says whose images are whose, where some are held back; see `find_pairs`.
        start: Folder of an earlier run whose encoder a network starts from.
        teacher: Name in `medseg weights`, or a model folder, for pre-training; that of the recipe if not given.
        resume: Go on from `state.pt` of `out`.
        device: "cpu", "cuda" or "cuda:N".
        workers: Processes that draw images.
        seconds: Stop after this long with everything saved; `resume` goes on.
        progress: Called after each step with step, all steps and the loss.

    Raises:
        UsageError: No files to learn from, or `out` holds a run and `resume` is off, or nothing to resume, or the
            recipe names a network that this training does not fit.
        InputRefused: A file cannot be used.
        Diverged: The loss is no longer finite.
    """
    state, log = out / "state.pt", out / "log.jsonl"
    if state.exists() != resume:
        problem = "holds no run to resume" if resume else "holds a run already; use --resume or another folder"
        raise UsageError(f"output folder '{out}' {problem}")
    model = _chosen(model, data, out, patients=patients, start=start, teacher=teacher, resume=resume)
    course = course_of(model, patients)
    files = course.files(data)
    rank, processes = rank_and_size()
    if processes > 1 and not course.TOGETHER:
        raise UsageError(f"training '{course.recipe.training['kind']}' runs in one process; start it without torchrun")
    with joined(device):
        trainer = course.trainer(own_device(device))
        if resume:
            trainer.load(state)
        elif start is not None:
            begin_from(trainer, start)
        images = course.images(files)
        out.mkdir(parents=True, exist_ok=True)
        try:
            run_steps(trainer, images, state, log, workers=workers, seconds=seconds, progress=progress)
        finally:  # the curves of a run that diverged tell why
            if rank == 0 and log.exists():
                write_curves(log, out / CURVES, f"Training of {course.recipe.name}")
    losses = [json.loads(line)["loss"] for line in log.read_text(encoding="utf-8").splitlines()[-100:]]
    loss = sum(losses) / max(1, len(losses))
    if rank > 0:
        return TrainingReport(trainer.step, loss, out / WEIGHTS)
    weights = write_model(course.recipe, trainer, out)
    scores: list[Score] = []
    judged: list[str] = []
    if isinstance(course, FolderCourse):
        scores = course.account(load_model(out, device=device))
        judged = course.judged_lines(scores)
    elif isinstance(course, DistillationCourse):
        judged = course.judged_lines()
    write_card(course.recipe, trainer, out, files=len(files), loss=loss, judged=judged)
    return TrainingReport(trainer.step, loss, weights, tuple(scores))


def _chosen(
    model: str | Path,
    data: Path,
    out: Path,
    *,
    patients: Path | None,
    start: Path | None,
    teacher: str | None,
    resume: bool,
) -> str | Path:
    """The model, or the folder of the run where its recipe depends on what the user said."""
    if str(model) in NETWORKS:
        if teacher is not None:
            raise UsageError("--teacher is for her-seg-pretrain; drop it")
        return out if resume else _planned(str(model), data, out, patients, start)
    if start is not None:
        raise UsageError(f"--from is for networks ({', '.join(NETWORKS)}); drop it")
    recipe = load_recipe(model)
    if recipe.task != "pretraining":
        if teacher is not None:
            raise UsageError("--teacher is for her-seg-pretrain; drop it")
        return model
    if not resume:
        content = recipe.model_dump(mode="json", exclude_none=True)
        content["training"]["teacher"] = teacher or content["training"].get("teacher")
        out.mkdir(parents=True, exist_ok=True)
        write_recipe(content, out)
    return out


def _planned(network: str, data: Path, out: Path, patients: Path | None, start: Path | None) -> Path:
    """Write the recipe that fits a folder of images and masks; returns the folder of the run."""
    before = None if start is None else earlier(start, network)
    recipe = plan(network, find_pairs(data, patients), data)
    content = recipe.model_dump(mode="json", exclude_none=True)
    if before is not None:
        content["network"]["options"] |= sizes_of(before)
        content["summary"] += f" Its encoder started from that of {before.name}."
    if patients is not None:
        content["training"]["patients"] = str(patients.resolve())
    out.mkdir(parents=True, exist_ok=True)
    write_recipe(content, out)
    return out
