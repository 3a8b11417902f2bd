"""What is wrong with a recipe, in one line."""

import difflib
from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel, ValidationError


def explain(error: ValidationError, kind: type[BaseModel]) -> str:
    """The first fault of a recipe in one line; an unknown key comes with the likely right one."""
    faults = error.errors()
    # A misspelt key is also a missing one: the spelling is what helps.
    first = next((fault for fault in faults if fault["type"] == "extra_forbidden"), faults[0])
    at = ".".join(str(part) for part in first["loc"])
    if first["type"] != "extra_forbidden":
        return f"{at or 'content'}: {first['msg'].removeprefix('Value error, ')}"
    *parents, key = first["loc"]
    return f"unknown key '{at}'{guess(str(key), _keys_at(kind, parents))}"


def _keys_at(kind: type[BaseModel], parents: Iterable[int | str]) -> list[str]:
    """The keys that a recipe allows below `parents`."""
    section: Any = kind
    for part in parents:
        if isinstance(part, int):  # the position within a list says nothing about its keys
            continue
        field = section.model_fields[part].annotation
        section = (
            field if hasattr(field, "model_fields") else next(a for a in field.__args__ if hasattr(a, "model_fields"))
        )
    return list(section.model_fields)


def guess(word: str, words: Iterable[str]) -> str:
    """The closest of some words, as the end of a message; nothing where none is close."""
    close = difflib.get_close_matches(word, list(words), n=1)
    return f", did you mean '{close[0]}'?" if close else ""
