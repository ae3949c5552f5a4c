"""What a recipe says of merging: how components are cut, how groups are merged, and how experts are stored."""

import reprlib
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field, field_validator, model_validator

from hf_merge.recipe.data import NAME, Section


MAX_METHODS = 64
SEGMENTS, REST = "segments", "rest"  # the granularity of components that a user names, and the last of them
_TAKEN = {REST: "what no other takes", "base": "what adapters leave as it is"}


class MergeSpec(Section):
    """How components are cut, how a group is merged, and how an expert is stored.

    A method or codec is its name, or a mapping with `name` and hyperparameters: `{name: ties, density: 0.2}`. Of
    several methods or codecs the search chooses one for each component. `segments` names components by patterns of
    tensor names instead of a granularity.
    """

    methods: tuple[str | dict[str, Any], ...] = ("task_arithmetic",)
    granularity: str = "type"
    stages: int = Field(default=3, ge=1, le=64)
    segments: dict[Annotated[str, Field(pattern=NAME)], tuple[str, ...]] | None = Field(default=None, min_length=1)
    codecs: tuple[str | dict[str, Any], ...] = ("int8",)

    @model_validator(mode="before")
    @classmethod
    def _granularity_of_segments(cls, given: object) -> object:
        cut_by_name = isinstance(given, dict) and given.get("segments") is not None
        return {"granularity": SEGMENTS, **given} if cut_by_name and isinstance(given, dict) else given

    @model_validator(mode="after")
    def _segments_that_fit(self) -> "MergeSpec":
        if (self.granularity == SEGMENTS) != (self.segments is not None):
            raise ValueError(
                f"granularity '{self.granularity}' does not fit: '{SEGMENTS}' goes with merge.segments, no other does"
            )
        for name, taken in _TAKEN.items():
            if name in (self.segments or {}):
                raise ValueError(f"'{name}' is the segment of {taken}; give yours another name")
        return self

    @field_validator("methods", "codecs")
    @classmethod
    def _named(cls, value: tuple[str | dict[str, Any], ...]) -> tuple[str | dict[str, Any], ...]:
        if not 1 <= len(value) <= MAX_METHODS:
            raise ValueError(f"{len(value)} entries given; give 1 to {MAX_METHODS}")
        for entry in value:
            if isinstance(entry, dict) and not isinstance(entry.get("name"), str):
                raise ValueError(f"{reprlib.repr(entry):.80} has no 'name': write {{name: ties, density: 0.2}}")
        return value


def settings_of(entry: str | Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Returns name and hyperparameters of one entry of `merge.methods` or `merge.codecs`."""
    if isinstance(entry, str):
        return entry, {}
    return str(entry["name"]), {key: value for key, value in entry.items() if key != "name"}
