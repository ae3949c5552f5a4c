"""Drawing: which rows of a split are used, such that no two sets of rows share content."""

import logging
from collections.abc import Callable, Hashable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from hf_merge.errors import DatasetError


_log = logging.getLogger(__name__)
Item = TypeVar("Item")


@dataclass(frozen=True, eq=False)
class Draw(Generic[Item]):
    """The rows drawn from one split.

    Attributes:
        items: What was read of each drawn row, by its number in the split, ascending.
        keys: The contents drawn.
        doubles: How many rows were looked at and left out, their content being taken.
        unseen: The row numbers that were not looked at, in drawing order.
    """

    items: Mapping[int, Item]
    keys: Set[Hashable]
    doubles: int
    unseen: NDArray[np.int64]


def draw(
    read: Callable[[NDArray[np.int64]], Sequence[tuple[Hashable, Item]]],
    order: NDArray[np.int64],
    limit: int,
    taken: Set[Hashable] = frozenset(),
) -> Draw[Item]:
    """Returns the first `limit` rows in `order` whose content is not `taken`; no more rows are read than that takes.

    Args:
        read: Returns key and content of the given rows; keys are equal exactly where contents are.
        order: [rows] int64, the row numbers in the order in which they may be drawn.
        limit: At most so many rows are drawn.
        taken: Keys of the contents that other sets hold.
    """
    found: dict[int, tuple[Hashable, Item]] = {}
    position = 0
    while position < len(order) and len(found) < limit:
        part = order[position : position + limit - len(found)]
        fresh = zip(part.tolist(), read(part), strict=True)
        found.update((row, item) for row, item in fresh if item[0] not in taken)
        position += len(part)
    items = {row: found[row][1] for row in sorted(found)}
    return Draw(items, frozenset(key for key, _ in found.values()), position - len(found), order[position:])


def report_doubles(drawn: Draw[Item], task: str, role: str, others: str) -> None:
    """Logs how many rows were left out because they equal one of the others.

    Raises:
        DatasetError: No rows are left, for this reason or because the split was too small to share.
    """
    if drawn.doubles:
        _log.warning("Task '%s': left out %d %s rows that equal %s.", task, drawn.doubles, role, others)
    if not drawn.items:
        raise DatasetError(
            f"Task '{task}': no {role} rows are left ({drawn.doubles} were looked at, and each equals {others}). "
            "Give more rows, or splits that do not overlap."
        )


def search_share(rows: int, validation_rows: int, router_rows: int) -> int:
    """Returns how many rows of a split the search draws where the router draws from the same split.

    The search gets its `validation_rows` and the router the rest; where the rest is less than a quarter of the split
    (and less than `router_rows`), each gets half of it.
    """
    if rows - validation_rows >= min(router_rows, max(rows // 4, 1)):
        return validation_rows
    return min(validation_rows, (rows + 1) // 2)
