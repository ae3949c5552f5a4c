"""What one expert is made from: base and members read tensor by tensor, their ranges gathered while they stream by.

The mean range of the members is the right-hand side of a codec's criterion (MERGE, arXiv 2602.06552, Eq. 6). Whatever
is not finite is refused here, before any method sees it.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from math import prod
from types import MappingProxyType
from typing import Protocol

import torch
from torch import Tensor

from hf_merge.errors import NonFiniteWeights
from hf_merge.merging import codecs, factors
from hf_merge.merging.codecs import CodecSpec
from hf_merge.merging.components import Shape
from hf_merge.merging.methods import Gathered, Member
from hf_merge.merging.ranges import bounds, extremes, is_within


class TensorSource(Protocol):
    """Something that reads backbone tensors by their name in the base."""

    def read(self, name: str, out: Tensor | None = None) -> Tensor:
        """Returns the tensor as float32, in `out` where it is given."""


class GatheredSource(Protocol):
    """Something that holds what was gathered of one fine-tune, by the tensors' names in the base."""

    def find(self, name: str) -> Gathered | None:
        """Returns what was gathered of a tensor, or None where there is nothing of the kind."""


class GroupReader:
    """Reads base and members of one expert; while they stream by, it gathers their ranges and refuses NaN."""

    def __init__(
        self,
        tasks: Sequence[str],
        codec: CodecSpec,
        shapes: Mapping[str, Shape],
        base: TensorSource,
        members: Mapping[str, TensorSource],
        gathered: Mapping[str, GatheredSource] = MappingProxyType({}),
    ) -> None:
        """Prepares to read the members `tasks` of a group that is to be stored by `codec`.

        Args:
            tasks: The members, in the recipe's order.
            codec: How their expert will be stored.
            shapes: The shape of every backbone tensor.
            base: Reads the pre-trained weights.
            members: Reads the fine-tuned weights, by task name.
            gathered: What was gathered of the fine-tunes, by task name, where the merge method needs it.
        """
        self._tasks, self._codec = tuple(tasks), codecs.get(codec.name)
        self._shapes, self._base, self._members, self._gathered = shapes, base, members, gathered
        self._settings = codec.mapping
        self._has_ranges = len(tasks) > 1 and self._settings.get("policy") in ("criterion", "always")
        self._sums: dict[str, Tensor] = {}
        self._counted: set[tuple[str, str]] = set()
        self._kept: dict[str, Tensor] = {}

    def buffer(self, names: Sequence[str]) -> Tensor:
        """Returns memory for the tensors `names` one after the other, [n] float32."""
        return torch.empty(self._length(names), dtype=torch.float32)

    def scratch(self, names: Sequence[str], use: str) -> Tensor:
        """Returns such memory that the next call with the same `use` hands out again: fresh memory costs more time."""
        length = self._length(names)
        if use not in self._kept or self._kept[use].numel() < length:
            self._kept[use] = torch.empty(length, dtype=torch.float32)
        return self._kept[use][:length]

    def _length(self, names: Sequence[str]) -> int:
        return sum(prod(self._shapes[name]) for name in names)

    def split(self, flat: Tensor, names: Sequence[str]) -> tuple[Tensor, ...]:
        """Returns views of the tensors `names` in a buffer that holds them one after the other."""
        return torch.split(flat, [prod(self._shapes[name]) for name in names])

    def shape(self, name: str) -> Shape:
        """Returns a tensor's shape."""
        return self._shapes[name]

    def is_quantised(self, name: str) -> bool:
        """Returns whether the codec quantises the tensor when its values allow it."""
        return self._codec.quantises(name, self._shapes[name], self._settings)

    def read_base(self, names: Sequence[str], out: Tensor) -> Tensor:
        """Reads the base's tensors into `out` [n] float32 and returns it."""
        for name, flat in zip(names, self.split(out, names), strict=True):
            _finite_extremes(self._base.read(name, flat), "The base", name)
        return out

    def read_member(self, task: str, names: Sequence[str], out: Tensor) -> Tensor:
        """Reads a member's tensors into `out` [n] float32 and returns it."""
        for name, flat in zip(names, self.split(out, names), strict=True):
            extreme = _finite_extremes(self._members[task].read(name, flat), f"Task '{task}'", name)
            self._add_range(task, name, flat, extreme)
        return out

    def read_gathered(self, task: str, name: str) -> Gathered | None:
        """Returns what was gathered of a member for a tensor, or None where nothing was."""
        source = self._gathered.get(task)
        return None if source is None else source.find(name)

    def read_factors(self, task: str, names: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Returns a member's factors A [rank, in] and B [out, rank], balanced, float32."""
        read = []
        for name in names:
            flat = self._members[task].read(name, torch.empty(prod(self._shapes[name])))
            _finite_extremes(flat, f"Task '{task}'", name)
            read.append(flat.view(self._shapes[name]))
        pair = factors.balanced(read[0], read[1])
        for name, factor in zip(names, pair, strict=True):
            self._add_range(task, name, factor.reshape(-1), bounds(factor))
        return pair

    def _add_range(self, task: str, name: str, flat: Tensor, extreme: tuple[Tensor, Tensor]) -> None:
        """Adds a member's range to the sum of a tensor, once; `extreme` is its smallest and its largest value."""
        if not self._has_ranges or not self.is_quantised(name) or (task, name) in self._counted:
            return
        self._counted.add((task, name))
        low, high = extreme
        if self._settings.get("unit") == "row":
            low, high = bounds(flat.view(self._shapes[name]), by_row=True)
        span = high.double() - low.double()
        self._sums[name] = self._sums[name] + span if name in self._sums else span

    def is_wider(self, name: str, flat: Tensor) -> bool:
        """Returns whether a merged tensor fails the criterion of Eq. 6, which is logged under every policy."""
        mean = self.mean_range(name)
        if mean is None:
            return False
        by_row = self._settings.get("unit") == "row"
        low, high = extremes(name, flat.view(self._shapes[name]), by_row=by_row)
        return not is_within(low, high, mean)

    def mean_range(self, name: str) -> Tensor | None:
        """Returns the mean range, a scalar or [rows] float64, or None where no criterion applies."""
        return self._sums[name] / len(self._tasks) if name in self._sums else None


class Members:
    """The members of a group as a merge method sees them, read anew each time they are gone through."""

    def __init__(
        self,
        read: Callable[[str], Tensor],
        seeds: Mapping[str, int],
        gathered: Callable[[str], Gathered | None] = lambda _: None,
    ) -> None:
        self._read, self._seeds, self._gathered = read, seeds, gathered

    def __iter__(self) -> Iterator[Member]:
        return (Member(task, self._read(task), seed, self._gathered(task)) for task, seed in self._seeds.items())


def _finite_extremes(weights: Tensor, owner: str, name: str) -> tuple[Tensor, Tensor]:
    """Returns the smallest and the largest weight, scalars; zeros where there are none."""
    low, high = bounds(weights)
    if not bool(torch.isfinite(low) & torch.isfinite(high)):
        raise NonFiniteWeights(
            f"{owner}: tensor '{name}' holds NaN or infinity; merging would spread it. "
            "Repair or leave out the checkpoint."
        )
    return low, high
