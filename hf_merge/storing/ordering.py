"""The order in which documents are written, so that what is equal is equal bytes."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar


_Value = TypeVar("_Value")


def in_order(values: Mapping[str, _Value], tasks: Sequence[str]) -> dict[str, _Value]:
    """Returns values in the order of the tasks, and what is no task at the end, by its name."""
    place = {task: index for index, task in enumerate(tasks)}
    return dict(sorted(values.items(), key=lambda item: (place.get(item[0], len(tasks)), item[0])))


def named_first(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Returns settings with `name` first and the rest sorted."""
    return dict(sorted(settings.items(), key=lambda item: (item[0] != "name", item[0])))
