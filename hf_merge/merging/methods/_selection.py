"""Selection by magnitude: which entries of a task vector stay.

Entries are ranked by magnitude, largest first, equal magnitudes by index. So every count is met exactly and the choice
is the same on every machine. The magnitude at a rank is bracketed with a sample, and only the entries inside the
bracket are looked at closely; where the sample misleads, all entries are. Either way the answer is exact, and nothing
is ever sorted.

Source: R. W. Floyd and R. L. Rivest, "Expected time bounds for selection", CACM 18(3), 1975 (selection by sampling).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from math import ceil, floor, inf, sqrt

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hf_merge.merging.methods._task_vectors import BLOCK


_SAMPLE = 1 << 15
FEW = 4 * _SAMPLE  # values: of so few a sample would save nothing
_Floats = NDArray[np.float32]


def portion(length: int, fraction: float) -> int:
    """Returns `floor(fraction * length)` for the decimal that the user wrote: 0.29 of 100 is 29, not 28."""
    return int(Fraction(str(fraction)) * length)


def keep_ranks_(vector: Tensor, skip: int, count: int) -> Tensor:
    """Returns `vector` [n] float32, zero but for the `count` entries that follow the `skip` largest in magnitude.

    It is changed in place. Where fewer than `count` entries follow, all of them stay.
    """
    entries = vector.numel()
    if count == 0 or skip >= entries:
        return vector.zero_()
    if skip + count < entries:
        for part, bound in _halves(vector, skip + count):
            torch.hardshrink(part, lambd=bound, out=part)
    if skip > 0:
        for part, bound in _halves(vector, skip):
            for block in _blocks(part.numpy()):
                block[np.abs(block) > bound] = 0
    return vector


def magnitude_at(values: _Floats, rank: int) -> np.float32:
    """Returns the magnitude at a rank of values [n] float32; the largest has rank 1, the smallest rank n."""
    if rank == values.size:
        return np.float32(min(np.abs(block).min() for block in _blocks(values)))
    return _cutoff(values, rank).magnitude


@dataclass(frozen=True)
class _Cutoff:
    """Where the first entries by rank end: those above `magnitude`, and those equal to it before index `position`."""

    magnitude: np.float32
    position: int


def _halves(vector: Tensor, rank: int) -> Iterator[tuple[Tensor, float]]:
    """Yields both parts of a vector, each with the bound that its entries of the first `rank` exceed in magnitude."""
    cutoff = _cutoff(vector.numpy(), rank)
    yield vector[: cutoff.position], float(np.nextafter(cutoff.magnitude, np.float32(-1)))
    yield vector[cutoff.position :], float(cutoff.magnitude)


def _cutoff(values: _Floats, rank: int) -> _Cutoff:
    """Returns where the first `rank` of `values` [n] end; `rank` lies in [1, n)."""
    low, high = _bracket(values, rank)
    above, band = _between(values, low, high)
    if not above < rank <= above + band.size:
        above, band = 0, np.abs(values)
    index = band.size - (rank - above)
    band.partition(index)
    magnitude = band[index]
    wanted = rank - above - int(np.count_nonzero(band[index:] > magnitude))
    everywhere = magnitude == 0 or wanted == np.count_nonzero(band == magnitude)  # a zero stays a zero, kept or not
    return _Cutoff(magnitude, values.size if everywhere else _after(values, magnitude, wanted))


def _bracket(values: _Floats, rank: int) -> tuple[float, float]:
    """Returns two magnitudes that very probably enclose the one at `rank`, from a sample."""
    if values.size <= FEW:
        return 0.0, inf
    return bracket(np.abs(values[sampled(values.size)]), rank, values.size)


def sampled(size: int) -> slice:
    """Returns which of `size` values, more than `FEW`, serve as a sample."""
    return slice(None, None, size // _SAMPLE | 1)  # odd, so that it does not walk down the columns of a matrix


def bracket(sample: _Floats, rank: int, size: int) -> tuple[float, float]:
    """Returns two values that very probably enclose the one at `rank`; the highest has rank 1.

    Args:
        sample: Of `size` values, [n] float32; its order is lost.
        rank: In [1, size].
        size: How many values there are in all.
    """
    expected = rank * sample.size / size
    slack = 5 * sqrt(expected * (1 - expected / sample.size)) + 5
    first, last = floor(expected - slack), ceil(expected + slack)
    sample.partition([sample.size - 1 - min(last, sample.size - 1), sample.size - 1 - max(first, 0)])
    low = float(sample[sample.size - 1 - last]) if last < sample.size else -inf
    return low, float(sample[sample.size - 1 - first]) if first >= 0 else inf


def _between(values: _Floats, low: float, high: float) -> tuple[int, _Floats]:
    """Returns how many magnitudes exceed `high`, and the magnitudes in [low, high]."""
    above, found = 0, []
    for block in map(np.abs, _blocks(values)):
        above += int(np.count_nonzero(block > high))
        found.append(block[(block >= low) & (block <= high)])
    return above, np.concatenate(found)


def _after(values: _Floats, magnitude: np.float32, wanted: int) -> int:
    """Returns the index after the `wanted`-th entry of exactly this magnitude."""
    for index, block in enumerate(_blocks(values)):
        equal = np.flatnonzero(np.abs(block) == magnitude)
        if equal.size >= wanted:
            return index * BLOCK + int(equal[wanted - 1]) + 1
        wanted -= equal.size
    return values.size  # only NaN, which equals nothing, comes here


def _blocks(values: _Floats) -> Iterator[_Floats]:
    return (values[start : start + BLOCK] for start in range(0, values.size, BLOCK))
