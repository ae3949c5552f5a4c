"""Which shard each expert and head of a member lies in, so that whoever serves a few tasks fetches few bytes.

Shards are fetched whole. So what serves the same tasks lies together: a shard ends where the set of tasks changes, and
only sets that come to little share one. See docs/format.md, section 5.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from types import MappingProxyType
from typing import Generic, TypeVar

from hf_merge.storing.limits import MIB


SHARD_BYTES, POOL_BYTES = 64 * MIB, 1 * MIB

_Item = TypeVar("_Item")


@dataclass(frozen=True)
class Piece(Generic[_Item]):
    """What is never cut in two: an expert or a head.

    Attributes:
        tasks: The tasks that it serves, in their order.
        bytes: What it takes.
        item: The expert or head.
    """

    tasks: tuple[str, ...]
    bytes: int
    item: _Item


def tasks_of_experts(
    chains: Mapping[str, Sequence[str]], references: Mapping[str, str] = MappingProxyType({})
) -> dict[str, tuple[str, ...]]:
    """Returns the tasks that each expert serves, by its id, component by component and then by first task.

    Args:
        chains: For each task the ids of its experts, one per component.
        references: The shared experts of those that are stored as differences, by id; each comes before its users.
    """
    served: dict[str, tuple[str, ...]] = {}
    for column in zip(*chains.values(), strict=True):
        for task, identifier in zip(chains, column, strict=True):
            shared = references.get(identifier)
            for needed in ([] if shared is None else [shared]) + [identifier]:
                served[needed] = (*served.get(needed, ()), task)
    return served


def in_order(served: Mapping[str, tuple[str, ...]], tasks: Sequence[str]) -> list[str]:
    """Returns the keys of `served` in the order of shards: what serves most tasks first, then in the tasks' order.

    Args:
        served: The tasks that each expert or head serves.
        tasks: All tasks in their order.
    """
    place = {task: index for index, task in enumerate(tasks)}
    return sorted(served, key=lambda key: (-len(served[key]), [place[task] for task in served[key]]))


def cut(pieces: Iterable[Piece[_Item]]) -> Iterator[list[_Item]]:
    """Yields the content of one shard after the other, holding no more than one of each kind.

    A shard holds pieces that serve the same tasks, at most SHARD_BYTES of them or a single one that is larger. Sets of
    tasks whose pieces come to less than POOL_BYTES share shards of at most that.

    Args:
        pieces: The pieces, those that serve the same tasks one after the other.
    """
    most = min(POOL_BYTES, SHARD_BYTES)
    pool = _Batch[_Item]()
    for _, alike in groupby(pieces, key=lambda piece: piece.tasks):
        batch = _Batch[_Item]()
        for piece in alike:
            if batch.items and batch.bytes + piece.bytes > SHARD_BYTES:
                yield batch.empty()
            batch.add([piece.item], piece.bytes)
        if batch.bytes >= most:
            yield batch.items
            continue
        if pool.bytes + batch.bytes > most:
            yield pool.empty()
        pool.add(batch.items, batch.bytes)
    if pool.items:
        yield pool.items


class _Batch(Generic[_Item]):
    """Items that go into one shard, and their bytes."""

    def __init__(self) -> None:
        self.items: list[_Item] = []
        self.bytes = 0

    def add(self, items: list[_Item], size: int) -> None:
        self.items += items
        self.bytes += size

    def empty(self) -> list[_Item]:
        """Returns the items and starts anew."""
        items, self.items, self.bytes = self.items, [], 0
        return items
