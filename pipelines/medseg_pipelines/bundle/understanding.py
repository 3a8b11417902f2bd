"""What the parts of a foreign configuration mean in our words: MONAI's transforms to the sections of a recipe."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from medseg.networks import network_names
from medseg_pipelines.bundle.reading import Component, Config, NotUnderstoodError
from medseg_pipelines.bundle.vendor import PACKAGE
from medseg_pipelines.nets import MONAI_NETWORKS, MONAI_PREFIX

_OURS = f"{PACKAGE}.medseg_pipelines.portable."
_HARMLESS = frozenset(
    {"LoadImaged", "EnsureChannelFirstd", "EnsureTyped", "ToTensord", "ToDeviced", "CastToTyped", "SelectItemsd"}
)
_UNIMPORTANT = frozenset({"keys", "allow_missing_keys", "dtype", "channel_wise"})  # there is one channel
_SLIDING = frozenset(
    {"sw_batch_size", "padding_mode", "sw_device", "device", "progress", "cache_roi_weight_map", "sigma_scale"}
)


@dataclass
class Understood:
    """A foreign configuration in the words of a recipe.

    Attributes:
        network: Name and options.
        preparation: The section of that name.
        inference: The section of that name.
        table: Of `decode`, where the bundle is one of ours; else one class per channel.
        body: Of `decode`, where the bundle is one of ours.
        notes: Where our step is not to the last digit what MONAI's is.
    """

    network: dict[str, Any] = field(default_factory=dict)
    preparation: dict[str, Any] = field(default_factory=dict)
    inference: dict[str, Any] = field(default_factory=dict)
    table: list[list[int]] | None = None
    body: dict[str, Any] | None = None
    notes: list[str] = field(default_factory=list)


def understand(config: Config, *, trusted_network: bool = False) -> Understood:
    """Read what the configuration does; whatever is not understood ends up in `config.faults`.

    Args:
        config: Of a bundle.
        trusted_network: Do not look at the network, its code will be run.
    """
    found = Understood()
    found.preparation = {"orientation": None, "foreground_margin": None, "spacing": None, "intensity": []}
    if not trusted_network:
        config.attempt("network_def", lambda: _network(config, found))
    config.attempt("inferer", lambda: _inferer(config, found))
    _each(config, "preprocessing", partial(_prepare, found))
    decided: list[str] = []
    _each(config, "postprocessing", partial(_finish, decided))
    if found.table is None and "argmax" not in decided:
        config.faults.append("postprocessing: no AsDiscreted with argmax, only label maps of classes can be served")
    return found


def _each(config: Config, chain: str, handle: Callable[[Component], None]) -> None:
    """Hand every transform of a chain to its reader."""
    parts: list[Any] = []
    config.attempt(chain, lambda: parts.extend(config.parts(chain)))
    for number, part in enumerate(parts):

        def read(part: Any = part) -> None:
            component = _saving(part) or config.component(part)
            if component is not None:
                handle(component)

        config.attempt(f"{chain}[{number}]", read)


def _saving(part: Any) -> Component | None:
    """Where a bundle would write its files is no matter here, and often an expression."""
    if isinstance(part, dict) and part.get("_target_") in ("SaveImaged", "monai.transforms.SaveImaged"):
        return Component("SaveImaged", {})
    return None


def _network(config: Config, found: Understood) -> None:
    component = config.component(config.content.get("network_def"))
    if component is None:
        raise NotUnderstoodError("it is switched off")
    options = component.arguments
    place = f"{PACKAGE}.medseg.networks."
    own = component.target.removeprefix(place).split(".")[0].replace("_", "-")
    if component.target.startswith(place) and own in network_names():
        found.network = {"name": own, "options": options}
        return
    if component.stock and component.name in MONAI_NETWORKS:
        if options.get("in_channels", 1) != 1:
            raise NotUnderstoodError(f"it takes {options['in_channels']} channels, images here have one")
        if options.get("spatial_dims", 3) != 3:
            raise NotUnderstoodError(f"it works in {options['spatial_dims']} dimensions, volumes have three")
        found.network = {"name": MONAI_PREFIX + component.name, "options": options}
        return
    raise NotUnderstoodError(f"network {component.target} is not on the list ({', '.join(sorted(MONAI_NETWORKS))})")


def _inferer(config: Config, found: Understood) -> None:
    component = config.component(config.content.get("inferer"))
    if component is not None and component.target == f"{_OURS}labels.LabelInferer":
        given = component.arguments
        found.table, found.body = _table(given.get("table")), given.get("body")
        found.inference = {key: given[key] for key in ("window", "overlap", "whole_window") if key in given}
        return
    if component is None or not component.stock or component.name != "SlidingWindowInferer":
        raise NotUnderstoodError("only SlidingWindowInferer can be served")
    options = _only(component, {"roi_size", "overlap", "mode", "cval"}, ignored=_SLIDING)
    window, overlap = options.get("roi_size"), options.get("overlap", 0.25)
    if not isinstance(window, list) or len(window) != 3 or not all(isinstance(n, int) and n > 0 for n in window):
        raise NotUnderstoodError(f"roi_size must be three positive integers, got {window}")
    if not isinstance(overlap, int | float) or not 0 <= overlap < 1:
        raise NotUnderstoodError(f"overlap must be one number from 0 to below 1, got {overlap}")
    if options.get("cval", 0) != 0:
        raise NotUnderstoodError("images are filled up with 0, not with another value")
    found.inference = {"window": window, "overlap": overlap, "whole_window": True}
    found.notes.append("windows are laid evenly and blended with weights that fall towards their borders")


def _prepare(found: Understood, component: Component) -> None:
    """One transform before the network."""
    section = found.preparation
    if component.target == f"{_OURS}labels.PrepareVolumed":
        given = {key: value for key, value in component.arguments.items() if key != "keys"}
        section.clear()
        section.update({"foreground_margin": given.pop("margin", None), **given})
        return
    if component.target == f"{_OURS}volumes.LoadVolumed":
        return
    _require_key(component, "image")
    if component.name in _HARMLESS:
        return
    if component.name == "Orientationd":
        given = _only(component, {"axcodes"}, ignored={"labels", "as_closest_canonical"})
        if given.get("axcodes") != "RAS":
            raise NotUnderstoodError(f"orientation {given.get('axcodes')}, only RAS can be served")
        section["orientation"] = "RAS"
    elif component.name == "Spacingd":
        section["spacing"] = _spacing(component, section["intensity"])
        found.notes.append("images are resampled with our own exact step; MONAI's differs in the last digits")
    elif component.name in _INTENSITY:
        section["intensity"].append(_INTENSITY[component.name](component))
    else:
        raise NotUnderstoodError(f"transform {component.name} is not known here")


def _spacing(component: Component, before: list[dict[str, Any]]) -> list[float]:
    if any(step["kind"] != "range" or step.get("clip") for step in before):
        raise NotUnderstoodError(
            "Spacingd after grey values were measured or clipped; only the other order can be served"
        )
    ignored = {"align_corners", "padding_mode", "diagonal", "scale_extent", "recompute_affine", "ensure_same_shape"}
    given = _only(component, {"pixdim", "mode"}, ignored=ignored)
    spacing, mode = given.get("pixdim"), given.get("mode", "bilinear")
    if mode not in ("bilinear", ["bilinear"], 1):
        raise NotUnderstoodError(f"interpolation {mode}, only bilinear can be served")
    if not isinstance(spacing, list) or len(spacing) != 3 or not all(_positive(step) for step in spacing):
        raise NotUnderstoodError(f"pixdim must be three positive lengths, got {spacing}")
    return [float(step) for step in spacing]


def _range(component: Component) -> dict[str, Any]:
    given = _only(component, {"a_min", "a_max", "b_min", "b_max", "clip"})
    source = _numbers(component, given.get("a_min"), given.get("a_max"))
    target = _numbers(component, given.get("b_min"), given.get("b_max"))
    return {"kind": "range", "source": source, "target": target, "clip": bool(given.get("clip", False))}


def _percentiles(component: Component) -> dict[str, Any]:
    given = _only(component, {"lower", "upper", "b_min", "b_max", "clip", "relative"})
    if given.get("relative"):
        raise NotUnderstoodError(f"{component.name} with relative")
    source = _numbers(component, given.get("lower"), given.get("upper"))
    target = _numbers(component, given.get("b_min"), given.get("b_max"))
    return {"kind": "percentiles", "source": source, "target": target, "clip": bool(given.get("clip", False))}


def _extremes(component: Component) -> dict[str, Any]:
    given = _only(component, {"minv", "maxv", "factor"})
    if given.get("factor") is not None:
        raise NotUnderstoodError(f"{component.name} with factor")
    return {"kind": "extremes", "target": _numbers(component, given.get("minv", 0.0), given.get("maxv", 1.0))}


def _standard(component: Component) -> dict[str, Any]:
    given = _only(component, {"nonzero", "subtrahend", "divisor"})
    mean, width = given.get("subtrahend"), given.get("divisor")
    if mean is None and width is None:
        return {"kind": "z-score", "nonzero": bool(given.get("nonzero", False))}
    if given.get("nonzero") or not _positive(width):
        raise NotUnderstoodError(f"{component.name} with these fixed numbers")
    low, width = _numbers(component, mean or 0.0, width)
    return {"kind": "range", "source": [low, low + width], "target": [0.0, 1.0]}


_INTENSITY: dict[str, Callable[[Component], dict[str, Any]]] = {
    "NormalizeIntensityd": _standard,
    "ScaleIntensityRangePercentilesd": _percentiles,
    "ScaleIntensityRanged": _range,
    "ScaleIntensityd": _extremes,
}


def _finish(decided: list[str], component: Component) -> None:
    """One transform after the network."""
    if component.name == "SaveImaged" and component.stock:
        return
    _require_key(component, "pred")
    if component.name == "Invertd":
        if component.arguments.get("transform") != "@preprocessing":
            raise NotUnderstoodError("Invertd must undo @preprocessing")
    elif component.name == "Activationsd":
        if not _only(component, {"softmax"}, ignored={"sigmoid"} - _set(component, "sigmoid")).get("softmax"):
            raise NotUnderstoodError("only softmax can be served")
    elif component.name == "AsDiscreted":
        if not _only(component, {"argmax"}).get("argmax"):
            raise NotUnderstoodError("AsDiscreted must take the argmax")
        decided.append("argmax")
    elif component.name not in _HARMLESS:
        raise NotUnderstoodError(f"transform {component.name} is not known here")


def _table(value: Any) -> list[list[int]]:
    rows = value if isinstance(value, list) else []
    if not rows or not all(isinstance(row, list) and [type(entry) for entry in row] == [int, int] for row in rows):
        raise NotUnderstoodError("table must hold a pair of label ids per class")
    return rows


def _require_key(component: Component, key: str) -> None:
    if not component.stock:
        raise NotUnderstoodError(f"{component.target} is code of the bundle")
    if component.arguments.get("keys") not in (key, [key]):
        raise NotUnderstoodError(f"{component.name} works on {component.arguments.get('keys')}, expected '{key}' alone")


def _only(component: Component, known: Collection[str], *, ignored: Collection[str] = ()) -> dict[str, Any]:
    """The arguments that matter; any other that is set is not understood."""
    others = _set(component) - set(known) - set(ignored) - _UNIMPORTANT
    if others:
        raise NotUnderstoodError(f"{component.name} with {', '.join(sorted(others))}")
    return {key: value for key, value in component.arguments.items() if key in known}


def _set(component: Component, *names: str) -> set[str]:
    """The arguments that are given and neither None nor False."""
    given = {key for key, value in component.arguments.items() if value is not None and value is not False}
    return given & set(names) if names else given


def _numbers(component: Component, *values: Any) -> list[float]:
    if not all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        raise NotUnderstoodError(f"{component.name} needs plain numbers, got {list(values)}")
    return [float(value) for value in values]


def _positive(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value > 0
