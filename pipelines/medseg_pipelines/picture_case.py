"""A picture as it came, the facts by which a later run recognises it, and which model it is for."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medseg.errors import InputRefused
from medseg.fundus import diameter, field_of_view
from medseg.io.pictures import read_picture
from medseg.picture import Picture
from medseg_pipelines.case import InputRecord, hash_file
from medseg_pipelines.recipe import PictureRecipe, load_recipe, recipe_names
from medseg_pipelines.scope import Choice, Finding
from medseg_pipelines.sections import PictureScope

_ROUND = 0.965  # overlap of a field of view with its disc, cut where a camera cuts it; 0.97 up in fundus cameras
_NOT_ROUND = 0.9  # endoscopes with their cut corners lie between
_FLAT = 0.6  # height over width, or width over height, that no camera cuts the disc down to


@dataclass(frozen=True, kw_only=True)
class PictureCase:
    """One picture with its record."""

    picture: Picture
    record: InputRecord
    seconds: float = 0.0  # that reading took


def read_picture_case(image: Any, *, memory_limit: int | None = None) -> PictureCase:
    """A case from a path, a Picture, or pixels (H, W) or (H, W, 3) of uint8 or uint16.

    Args:
        image: What to segment.
        memory_limit: Bytes that reading may take.

    Raises:
        InputRefused: The picture cannot be used.
        UsageError: There is no such file.
        TypeError: `image` is none of these.
    """
    if isinstance(image, PictureCase):
        return image
    started = monotonic()
    if isinstance(image, (str, Path)):
        path = Path(image)
        picture = read_picture(path, memory_limit=memory_limit)
        digest, size = hash_file(path)
        record = InputRecord(name=path.name, size=size, sha256=digest)
        return PictureCase(picture=picture, record=record, seconds=monotonic() - started)
    if isinstance(image, np.ndarray):
        image = Picture(image if image.ndim == 3 else image[..., None])
    if not isinstance(image, Picture):
        raise TypeError(f"image must be a path, a Picture or an array of pixels, got {type(image).__name__}")
    record = InputRecord(name=None, size=image.pixels.nbytes, sha256=hash_pixels(image.pixels))
    return PictureCase(picture=image, record=record)


def picture_facts(case: PictureCase) -> dict[str, Any]:
    """What a manifest says of the picture."""
    source, spacing = case.picture.source, case.picture.spacing
    return {
        **asdict(case.record),
        "kind": "picture",
        "shape": list(case.picture.pixels.shape),
        "dtype": str(case.picture.pixels.dtype),
        "spacing_mm": None if spacing is None else [round(step, 6) for step in spacing],
        "turned": bool(source and source.turned),
    }


def hash_pixels(pixels: NDArray[Any]) -> str:
    """The sha256 of type, shape and values."""
    digest = hashlib.sha256(f"{pixels.dtype.str}{pixels.shape}".encode())
    digest.update(np.ascontiguousarray(pixels).tobytes())
    return digest.hexdigest()


def judge_picture(picture: Picture, scope: PictureScope) -> tuple[Finding, ...]:
    """Everything that speaks against the picture, the gravest first; empty where it is what the model was made for."""
    findings = []
    field = np.ones(picture.size, bool)
    if scope.kind == "fundus":
        field = field_of_view(picture)
        findings = _not_a_fundus(picture, field)
    low, high = scope.diameter
    across = diameter(field)
    if not low <= across <= high:
        findings.append(Finding("doubtful", f"it is {across:.0f} pixels across, made for {low:g} to {high:g}"))
    return tuple(sorted(findings, key=lambda finding: finding.grade == "doubtful"))


def choose_picture_model(picture: Picture) -> Choice:
    """The one shipped model that segments pictures like this; models whose pictures cannot be recognised must be named.

    Raises:
        InputRefused: None is, or several are.
    """
    recipes = [recipe for recipe in map(load_recipe, recipe_names()) if isinstance(recipe, PictureRecipe)]
    verdicts = {recipe.name: judge_picture(picture, recipe.scope) for recipe in recipes}
    for recipe in recipes:
        if recipe.scope.kind == "any":
            verdicts[recipe.name] += (
                Finding("doubtful", f"no picture shows by itself whether it is of {recipe.scope.anatomy}"),
            )
    fitting = [recipe for recipe in recipes if not verdicts[recipe.name]]
    if len(fitting) == 1:
        scope = fitting[0].scope
        reason = f"it looks like a {'/'.join(scope.modalities)}, {picture.size[1]} x {picture.size[0]} pixels"
        return Choice(fitting[0].name, reason)
    if fitting:
        names = ", ".join(recipe.name for recipe in fitting)
        raise InputRefused(f"picture fits more than one model ({names}), expected one; choose with -m MODEL")
    reasons = "; ".join(f"{name}: {findings[0].text}" for name, findings in verdicts.items()) or "there is none"
    doubtful = any(all(finding.grade == "doubtful" for finding in findings) for findings in verdicts.values())
    advice = "name the model with -m" if doubtful else "name the model with -m and add --force-scope"
    raise InputRefused(f"picture fits no model ({reasons}); if you know better, {advice}")


def _not_a_fundus(picture: Picture, field: NDArray[np.bool_]) -> list[Finding]:
    """What speaks against a photograph of the back of an eye."""
    if field.all():
        return [Finding("doubtful", "it shows no dark border around a round field of view")]
    found = roundness(field)
    if found < _ROUND:
        grade = "outside" if found < _NOT_ROUND else "doubtful"
        return [Finding(grade, "what it shows is not round like the field of a fundus camera")]
    step = max(1, max(picture.size) // 256)
    inside = picture.pixels[::step, ::step][field[::step, ::step]]
    red, green, blue = np.median(np.broadcast_to(inside, (len(inside), 3)), axis=0)
    if not red >= green >= blue:
        return [Finding("doubtful", "its colours are not those of the back of an eye, which is red")]
    return []


def roundness(field: NDArray[np.bool_]) -> float:
    """Overlap of a field with a disc of its diameter, cut to the rows and columns it has; 0 for a mere band.

    Overlap is intersection over union, 0 to 1.
    """
    step = max(1, max(field.shape) // 512)
    rows, columns = np.nonzero(field[::step, ::step])
    top, bottom, left, right = rows.min(), rows.max(), columns.min(), columns.max()
    radius = (max(bottom - top, right - left) + 1) / 2
    shown = field[::step, ::step][top : bottom + 1, left : right + 1]
    if min(shown.shape) < _FLAT * max(shown.shape):
        return 0.0
    y, x = np.mgrid[: shown.shape[0], : shown.shape[1]]
    best = 0.0
    for row in (shown.shape[0] / 2, radius, shown.shape[0] - radius):
        for column in (shown.shape[1] / 2, radius, shown.shape[1] - radius):
            disc = (y + 0.5 - row) ** 2 + (x + 0.5 - column) ** 2 <= radius**2
            best = max(best, float((disc & shown).sum() / (disc | shown).sum()))
    return best
