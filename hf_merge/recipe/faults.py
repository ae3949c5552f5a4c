"""What is wrong with a recipe, in words for whoever wrote it: the place, the fault, and what to write instead."""

import re
import reprlib
from collections.abc import Iterator, Sequence
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from hf_merge.errors import nearest


_KEY = "[key]"  # what pydantic ends the location of an unknown key with, where a mapping knows its keys
_QUOTES = "'\""
_TYPES = {
    "string_type": "should be a text",
    "int_type": "should be a whole number",
    "int_parsing": "should be a whole number",
    "int_from_float": "should be a whole number",
    "float_type": "should be a number",
    "float_parsing": "should be a number",
    "string_too_short": "should not be empty",
    "string_pattern_mismatch": "should be letters, digits, '.', '_' and '-', at most 64, and not begin with a sign",
}


def faults(error: ValidationError, recipe: type[BaseModel]) -> list[str]:
    """Returns one line for each broken rule, its place first.

    Args:
        error: What pydantic found.
        recipe: The model that it checked, which tells the keys that a section knows.
    """
    details = error.errors(include_url=False)
    places = {detail["loc"] for detail in details}
    return [_line(detail, recipe) for detail in details if not _follows(detail, places)]


def _follows(detail: ErrorDetails, places: set[tuple[int | str, ...]]) -> bool:
    """Returns whether a list only counts as too short because what it holds is refused, which has lines of its own."""
    place = detail["loc"]
    inside = (other for other in places if other[: len(place)] == place != other)
    return detail["type"] == "too_short" and any(inside)


def _line(detail: ErrorDetails, recipe: type[BaseModel]) -> str:
    where, kind, given = detail["loc"], detail["type"], detail.get("input")
    if where[-1:] == (_KEY,):
        where, given = where[:-1], where[-2]
    if kind == "literal_error" and len(where) < len(detail["loc"]):
        return f"{_place(where)}: unknown key.{nearest(str(given), _expected(detail))}"
    if kind == "extra_forbidden":
        return f"{_place(where)}: unknown setting.{nearest(str(where[-1]), _known_keys(where[:-1], recipe))}"
    if kind == "missing":
        return f"{_place(where)}: is missing"
    if kind == "literal_error":
        shown = reprlib.repr(given)[:80]  # of what is nested or long, the beginning
        return f"{_place(where)}: should not be {shown}.{nearest(shown.strip(_QUOTES), _expected(detail))}"
    return f"{_place(where)}: {_complaint(detail, recipe)}{_shown(given, kind)}"


def _complaint(detail: ErrorDetails, recipe: type[BaseModel]) -> str:
    """Returns what is wrong, without its place."""
    kind, given = detail["type"], detail.get("input")
    if kind == "tuple_type":
        one = f": [{given}]" if isinstance(given, str) else ", each entry on a line that begins with '-'"
        return f"should be a list{one}"
    if kind in ("model_type", "dict_type"):
        known = _known_keys(detail["loc"], recipe) if kind == "model_type" else []
        named = f", with some of {', '.join(known)}" if known else ""
        return f"should be a mapping, 'key: value'{named}"
    if kind == "too_short":
        return f"holds {detail['ctx']['actual_length']} entries; give {detail['ctx']['min_length']} or more"
    if kind in _TYPES:
        return _TYPES[kind]
    return re.sub(r"^Input (?=should)", "", detail["msg"].removeprefix("Value error, "))


def _shown(given: object, kind: str) -> str:
    """Returns the value that was given, in brackets, where it is short; and how YAML came to it."""
    if isinstance(given, dict | list | tuple | BaseModel):
        return ""
    if isinstance(given, bool) and kind == "string_type":
        return f" (got {given}: YAML reads a bare yes, no, on or off as true or false, so quote it)"
    return " (got nothing)" if given is None else f" (got {given!r:.80})"


def _place(location: Sequence[object]) -> str:
    return ".".join(str(part) for part in location)


def _expected(detail: ErrorDetails) -> list[str]:
    """Returns the values that pydantic would have taken, which it tells in words."""
    return re.findall(r"'([^']*)'", str(detail.get("ctx", {}).get("expected")))


def _known_keys(location: Sequence[int | str], recipe: type[BaseModel]) -> list[str]:
    """Returns the keys that the section at a location knows."""
    section = recipe
    for part in location:
        if isinstance(part, str):
            section = next(_sections(section.model_fields[part].annotation), section)
    return list(section.model_fields)


def _sections(annotation: Any) -> Iterator[type[BaseModel]]:
    """Yields the sections that a field holds, by itself or in a list."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _sections(inner)
