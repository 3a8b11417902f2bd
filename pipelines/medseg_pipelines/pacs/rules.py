"""What a listener does with what it is sent: a YAML file, checked before anything is listened to."""

from __future__ import annotations

import fnmatch
import re
from pathlib import Path
from typing import Self

import yaml
from pydantic import BaseModel, ByteSize, ConfigDict, Field, ValidationError, field_validator, model_validator

from medseg.errors import UsageError
from medseg_pipelines.formats import parse_formats, require_for_task
from medseg_pipelines.pacs.address import parse_destination
from medseg_pipelines.recipe import load_recipe


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Rule(_Section):
    """Which series a model gets, and where its results go; every rule that fits a series makes a job of its own."""

    name: str = Field(pattern=r"^[A-Za-z0-9_-]{1,40}$")
    modality: tuple[str, ...] = Field(min_length=1)
    description: tuple[str, ...] = ("*",)  # patterns of the series description; * stands for anything
    model: str
    formats: tuple[str, ...] = ("seg",)  # as `medseg infer --format` has them
    send: tuple[str, ...] = ()  # names of destinations
    device: str = "auto"

    def fits(self, modality: str, description: str) -> bool:
        """Whether a series is one for this rule; letters count the same in both cases."""
        patterns = (fnmatch.translate(pattern.casefold()) for pattern in self.description)
        return modality.upper() in {each.upper() for each in self.modality} and any(
            re.match(pattern, description.casefold()) for pattern in patterns
        )


class Retention(_Section):
    """How long files stay after they were needed last, and how much disk all of them may take."""

    sources_hours: float = Field(default=24, ge=0)  # received images, once segmented; late slices may still join
    results_days: float = Field(default=7, ge=0)  # results, once sent
    failed_days: float = Field(default=30, ge=0)  # everything of a job that failed for good
    forget_days: float = Field(default=365, ge=0)  # the memory that a series was here: it is not segmented again
    disk: ByteSize = ByteSize(50_000_000_000)


class Listening(_Section):
    """The whole file."""

    host: str = "127.0.0.1"  # "" for every interface
    port: int = Field(default=11112, ge=0, le=65535)
    callers: tuple[str, ...] = ()  # titles that may send to us; none: anybody
    quiet_seconds: float = Field(default=60, gt=0)  # after which a series counts as complete
    limit_minutes: float = Field(default=120, gt=0)  # of one segmentation
    attempts: int = Field(default=3, ge=1)  # of one segmentation
    retry_seconds: float = Field(default=10, gt=0)  # doubled after every failure
    retry_longest: float = Field(default=3600, gt=0)  # seconds
    destinations: dict[str, str] = {}  # name to address
    rules: tuple[Rule, ...] = Field(min_length=1)
    retention: Retention = Retention()

    @field_validator("destinations")
    @classmethod
    def _addresses(cls, destinations: dict[str, str]) -> dict[str, str]:
        for name, address in destinations.items():
            try:
                parse_destination(name, address)
            except UsageError as fault:
                raise ValueError(str(fault)) from None
        return destinations

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        names = [rule.name for rule in self.rules]
        if len(set(names)) != len(names):
            raise ValueError("rules must differ in name")
        for rule in self.rules:
            for name in rule.send:
                if name not in self.destinations:
                    raise ValueError(f"rule {rule.name} sends to {name}, which is no destination")
        return self

    def back_off(self, attempts: int) -> float:
        """Seconds to wait after so many failures."""
        return min(self.retry_longest, self.retry_seconds * 2.0 ** min(attempts - 1, 30))


def load_rules(path: Path) -> Listening:
    """The rules in a file, with every model they name.

    Raises:
        UsageError: The file is not there, is no YAML, says something unknown, or sends results of an untrained model.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        rules = Listening.model_validate(content)
    except OSError:
        raise UsageError(f"rules '{path.name}' must be a readable file, it is not; check the path") from None
    except (yaml.YAMLError, UnicodeDecodeError):
        raise UsageError(f"rules '{path.name}' must be YAML, it is not; correct it") from None
    except ValidationError as fault:
        first = fault.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "file"
        raise UsageError(f"rules '{path.name}', {place}: {first['msg']}; correct it") from None
    for rule in rules.rules:
        recipe = load_recipe(rule.model)
        formats = parse_formats(",".join(rule.formats))
        require_for_task(formats, recipe.task)
        if rule.send and not formats:
            raise UsageError(
                f"rule {rule.name}: formats must name a DICOM one to be sent, they do not; add seg or dicom"
            )
        if rule.send and not recipe.weights.trained:
            raise UsageError(
                f"rule {rule.name}: results are sent of trained models only, {recipe.name} is not trained; drop `send`"
            )
    return rules
