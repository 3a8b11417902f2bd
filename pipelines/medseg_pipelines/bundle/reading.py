"""A bundle's configuration as data: references are followed, nothing is ever evaluated."""

from __future__ import annotations

import ast
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from medseg.errors import InputRefused

_MOST_BYTES = 1 << 20  # a configuration is a few kilobytes
_MOST_VALUES = 100_000  # aliases of YAML can stand for far more than they take
_DEEPEST = 50
_NAMES = ("inference.json", "inference.yaml", "inference.yml")
_OWN_KEYS = frozenset({"_target_", "_requires_", "_disabled_", "_desc_", "_mode_"})


class NotUnderstoodError(Exception):
    """A part of a configuration has a meaning that only running it would tell; it becomes one line of a list."""


@dataclass(frozen=True)
class Component:
    """What `_target_` names, with its arguments as plain data.

    Attributes:
        target: As it stands in the file.
        arguments: Without the keys that configure MONAI's parser.
    """

    target: str
    arguments: dict[str, Any]

    @property
    def name(self) -> str:
        """The class without its module."""
        return self.target.rpartition(".")[2]

    @property
    def stock(self) -> bool:
        """Whether MONAI itself is meant: a bare name, or a path within monai."""
        return "." not in self.target or self.target.startswith("monai.")


@dataclass
class Config:
    """The content of an inference configuration.

    Attributes:
        content: As parsed from the file.
        faults: What was not understood so far, one line each.
    """

    content: dict[str, Any]
    faults: list[str] = field(default_factory=list)
    _visited: int = 0

    def attempt(self, where: str, step: Callable[[], None]) -> None:
        """Do a step; what it does not understand becomes a line of `faults`."""
        try:
            step()
        except NotUnderstoodError as fault:
            self.faults.append(f"{where}: {fault}")

    def component(self, value: Any) -> Component | None:
        """A component, or None where it is switched off.

        Raises:
            NotUnderstoodError: It is none, or an argument is an expression.
        """
        value = self._followed(value, _DEEPEST)
        if not isinstance(value, dict) or not isinstance(value.get("_target_"), str):
            raise NotUnderstoodError(f"expected something with _target_, got {_short(value)}")
        if value.get("_disabled_") in (True, "true", "True"):
            return None
        if value.get("_mode_", "default") != "default":
            raise NotUnderstoodError(f"{value['_target_']} has the mode {_short(value['_mode_'])}")
        arguments = {}
        for key, argument in value.items():
            if key not in _OWN_KEYS:
                # "transform" names the chain to undo; as data it would be that whole chain once more
                arguments[key] = argument if key == "transform" else self.plain(argument)
        return Component(value["_target_"], arguments)

    def parts(self, name: str) -> list[Any]:
        """The transforms of a chain by its id, unparsed.

        Raises:
            NotUnderstoodError: There is no such chain.
        """
        chain = self._followed(self.content.get(name), _DEEPEST)
        if isinstance(chain, dict) and chain.get("_target_") in ("Compose", "monai.transforms.Compose"):
            chain = self._followed(chain.get("transforms"), _DEEPEST)
        if not isinstance(chain, list):
            raise NotUnderstoodError(f"expected a list of transforms, got {_short(chain)}")
        return chain

    def plain(self, value: Any, depth: int = _DEEPEST) -> Any:
        """A value with its references followed and literal expressions read.

        Raises:
            NotUnderstoodError: Something in it would have to be evaluated.
        """
        value = self._followed(value, depth)
        if isinstance(value, dict):
            if "_target_" in value:
                raise NotUnderstoodError(f"an argument is the object {_short(value['_target_'])}")
            return {str(key): self.plain(inner, depth - 1) for key, inner in value.items()}
        if isinstance(value, list):
            return [self.plain(inner, depth - 1) for inner in value]
        return value

    def _followed(self, value: Any, depth: int) -> Any:
        self._visited += 1
        if depth < 0 or self._visited > _MOST_VALUES:
            raise NotUnderstoodError("its references run in circles, or multiply")
        if not isinstance(value, str) or not value.startswith(("@", "$", "%")):
            return value
        if value.startswith("$@"):
            value = value[1:]
        if value.startswith("@"):
            return self._followed(self._at(value[1:]), depth - 1)
        try:
            return ast.literal_eval(value[1:].strip()) if value.startswith("$") else _refuse(value)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            return _refuse(value)

    def _at(self, path: str) -> Any:
        found: Any = self.content
        for part in path.replace("::", "#").split("#"):
            if isinstance(found, list) and part.isdigit() and int(part) < len(found):
                found = found[int(part)]
            elif isinstance(found, dict) and part in found:
                found = found[part]
            else:
                raise NotUnderstoodError(f"reference @{_short(path)} leads nowhere or needs evaluation")
        return found


def read_config(bundle: Path) -> Config:
    """The inference configuration of a bundle.

    Raises:
        InputRefused: There is none, or it is no object in JSON or YAML.
    """
    path = next((bundle / "configs" / name for name in _NAMES if (bundle / "configs" / name).is_file()), None)
    if path is None:
        raise InputRefused(f"bundle must hold one of configs/{', configs/'.join(_NAMES)}, found none")
    if path.stat().st_size > _MOST_BYTES:
        raise InputRefused(
            f"bundle file {path.name} must be smaller than {_MOST_BYTES >> 20} MiB; it is no configuration"
        )
    try:
        text = path.read_text(encoding="utf-8")
        content = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (ValueError, yaml.YAMLError, RecursionError) as error:
        raise InputRefused(f"bundle file {path.name} cannot be parsed: {' '.join(str(error).split())[:200]}") from None
    if not isinstance(content, dict):
        raise InputRefused(f"bundle file {path.name} must be an object, got {type(content).__name__}")
    return Config(content)


def _refuse(value: str) -> Any:
    raise NotUnderstoodError(f"expression {_short(value)} would have to be evaluated")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
