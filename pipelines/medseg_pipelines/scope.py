"""Which images a model was made for: judged before it runs, and said in words."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from medseg.errors import InputRefused
from medseg.volume import Volume
from medseg_pipelines.recipe import Recipe, Scope, load_recipe, recipe_names

_SAMPLE = 64  # voxels per axis at most, for judging grey values
_HU_TISSUE = -200.0  # MR has no values this far below zero; CT has air and lung there
_HU_SHARE = 0.01
_FEW_VALUES = 32
_FLAT_SHARE = 0.6  # neighbours that are equal: about a tenth in an 8 bit image, most of them in a label map
_DIRECTIONS = ("right-left", "back-front", "foot-head")


@dataclass(frozen=True)
class Finding:
    """One reason against using a model on an image.

    "doubtful" needs the model to be named; "outside" needs a second confirmation as well.
    """

    grade: Literal["doubtful", "outside"]
    text: str


@dataclass(frozen=True)
class Choice:
    """The model that fits an image, and why."""

    name: str
    reason: str


def judge(volume: Volume, scope: Scope) -> tuple[Finding, ...]:
    """Everything that speaks against the image, the gravest first; empty where it is what the model was made for."""
    findings = [*_grey_values(volume, scope), *_field_of_view(volume, scope), *_spacing(volume, scope)]
    return tuple(sorted(findings, key=lambda finding: finding.grade == "doubtful"))


def choose_model(volume: Volume) -> Choice:
    """The one shipped model that segments images like this; what changes grey values is never chosen by itself.

    Raises:
        InputRefused: None is, or several are.
    """
    recipes = [recipe for recipe in map(load_recipe, recipe_names()) if recipe.task == "segmentation"]
    verdicts = [(recipe, judge(volume, recipe.scope)) for recipe in recipes]
    fitting = [recipe for recipe, findings in verdicts if not findings]
    if len(fitting) == 1:
        return Choice(fitting[0].name, _reason(volume, fitting[0]))
    if fitting:
        names = ", ".join(recipe.name for recipe in fitting)
        raise InputRefused(f"image fits more than one model ({names}), expected one; choose with -m MODEL")
    reasons = "; ".join(f"{recipe.name}: {findings[0].text}" for recipe, findings in verdicts)
    advice = "name the model with -m" if _only_doubtful(verdicts) else "name the model with -m and add --force-scope"
    raise InputRefused(f"image fits no model ({reasons}); if you know better, {advice}")


def require_in_scope(findings: Sequence[Finding], model: str, *, force: bool) -> tuple[str, ...]:
    """The findings as warnings, where the user may go on with a model that was named.

    Args:
        findings: From `judge`.
        model: Its name, for the message.
        force: The second confirmation.

    Raises:
        InputRefused: The image lies outside the scope and nobody confirmed.
    """
    outside = [finding for finding in findings if finding.grade == "outside"]
    if outside and not force:
        raise InputRefused(
            f"image is not what {model} was made for: {outside[0].text}; --force-scope runs it all the same"
        )
    return tuple(f"outside the scope of {model}: {finding.text}" for finding in findings)


def implausible_size(total_ml: float, scope: Scope) -> str | None:
    """A warning where everything segmented together is too small or too large to be the anatomy; else None."""
    if scope.plausible_volume is None:
        return None
    low, high = scope.plausible_volume
    if low <= total_ml <= high:
        return None
    return f"all structures together measure {total_ml:.0f} ml, expected {low:.0f} to {high:.0f} ml: check the result"


def _only_doubtful(verdicts: Sequence[tuple[Recipe, tuple[Finding, ...]]]) -> bool:
    return any(all(finding.grade == "doubtful" for finding in findings) for _, findings in verdicts)


def _reason(volume: Volume, recipe: Recipe) -> str:
    size = " x ".join(f"{extent:.0f}" for extent in _extents(volume))
    spacing = " x ".join(f"{step:.2g}" for step in volume.spacing)
    kinds = "/".join(recipe.scope.modalities)
    return f"grey values like {kinds}, {size} mm as for a {recipe.scope.anatomy}, voxels of {spacing} mm"


def _grey_values(volume: Volume, scope: Scope) -> list[Finding]:
    sample = _sample(volume)
    if volume.kind == "labels" or _looks_like_labels(volume, sample):
        return [Finding("outside", "it looks like a label map or a mask, not like an image")]
    kinds = "/".join(scope.modalities)
    if looks_like_ct(volume) and "CT" not in scope.modalities:
        return [Finding("outside", f"values down to {float(sample.min()):.0f} look like CT, expected {kinds}")]
    if scope.modalities == ("CT",) and float(sample.min()) >= 0:  # even a crop without air holds fat, below 0 HU
        return [Finding("outside", f"no value lies below 0, expected {kinds} in HU")]
    return []


def looks_like_ct(volume: Volume) -> bool:
    """Whether enough grey values lie as far below zero as only air and lung do, in HU."""
    return float(np.mean(_sample(volume) < _HU_TISSUE)) >= _HU_SHARE


def _sample(volume: Volume) -> np.ndarray:
    """A view of some of the voxels, evenly."""
    return volume.voxels[tuple(slice(None, None, max(1, size // _SAMPLE)) for size in volume.shape)]


def _looks_like_labels(volume: Volume, sample: np.ndarray) -> bool:
    values = np.unique(sample)
    if not np.array_equal(values, np.rint(values)):
        return False
    if len(values) <= _FEW_VALUES:
        return True
    core = volume.voxels[tuple(slice(size // 4, size - size // 4) for size in volume.shape)]
    tissue = (core[1:] > values[0]) & (core[:-1] > values[0])
    return bool(tissue.any()) and float(np.mean(core[1:][tissue] == core[:-1][tissue])) >= _FLAT_SHARE


def _extents(volume: Volume) -> tuple[float, float, float]:
    """mm of the image along right-left, back-front and foot-head."""
    world, _ = volume.grid.axes
    along = dict(zip(world, (n * step for n, step in zip(volume.shape, volume.spacing, strict=True)), strict=True))
    return along[0], along[1], along[2]


def _field_of_view(volume: Volume, scope: Scope) -> list[Finding]:
    findings = []
    limits = zip(_extents(volume), scope.field_of_view, scope.field_of_view_limit, _DIRECTIONS, strict=True)
    for extent, least, most, direction in limits:
        if extent > most:
            text = f"it covers {extent:.0f} mm {direction}, a {scope.anatomy} takes at most {most:.0f} mm"
            findings.append(Finding("outside", text))
        elif extent < least:
            text = f"it covers only {extent:.0f} mm {direction}, a whole {scope.anatomy} needs {least:.0f} mm"
            findings.append(Finding("outside" if extent < least / 2 else "doubtful", text))
    return findings


def _spacing(volume: Volume, scope: Scope) -> list[Finding]:
    low, high = scope.spacing
    wrong = [step for step in volume.spacing if not low <= step <= high]
    return [
        Finding("doubtful", f"voxels measure {step:.2g} mm, trained on {low:g} to {high:g} mm") for step in wrong[:1]
    ]
