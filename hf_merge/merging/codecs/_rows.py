"""Matrices packed row by row: what the codecs that do so take, write and refuse to read.

A row is whatever follows the first axis. Beside the packed rows stand a scale for each and the tensor's own shape.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod

import numpy as np
import torch
from torch import Tensor

from hf_merge.errors import UntrustedContentError
from hf_merge.merging.codecs._packing import Bytes, Floats, Packing, looked_up
from hf_merge.merging.components import Shape, keeps_full_precision
from hf_merge.merging.ranges import extremes
from hf_merge.merging.settings import Settings


PARTS = (".scale", ".shape")

_LARGEST = float(np.finfo(np.float32).max)
_MOST_AXES = 8
_BLOCK = 1 << 15  # weights in the rows that are encoded together: float64 copies of them stay in the cache


@dataclass(frozen=True)
class PackedRows:
    """A layout of rows as digits with a scale: its methods are what a codec of this layout needs.

    Attributes:
        packing: How the digits lie in bytes.
        levels: What each digit stands for, times the scale of its row.
        highest: The largest level that is written: a scale must leave it finite.
        positive: Whether a scale of 0 is refused, too.
    """

    packing: Packing
    levels: tuple[float, ...]
    highest: float
    positive: bool = False

    @cached_property
    def _table(self) -> Floats:
        return self.packing.table(np.array(self.levels, dtype=np.float32))

    def encode(
        self, name: str, weight: Tensor, settings: Settings, fitted: Callable[[Floats], tuple[Bytes, Floats]]
    ) -> dict[str, Tensor]:
        """Returns packed rows uint8 [rows, width] with scale float32 [rows] and shape int32, or the weight itself.

        Args:
            name: The tensor's name.
            weight: float32 of any shape, only read.
            settings: The codec's.
            fitted: Returns the digits, uint8 [some rows, columns], and the scales [some rows] of some rows.

        Raises:
            NonFiniteWeights: A weight is NaN or infinite.
        """
        shape = tuple(weight.shape)
        extremes(name, weight)
        if not self.quantises(name, shape, settings):
            return {name: weight}
        return self.stored(name, weight, shape, fitted)

    def stored(
        self, name: str, rows: Tensor, shape: Shape, fitted: Callable[[Floats], tuple[Bytes, Floats]]
    ) -> dict[str, Tensor]:
        """Returns `name`, `.scale` and `.shape` for rows that are quantised, of a tensor of a shape."""
        found = [fitted(block) for block in _blocks(rows)]
        return {
            name: torch.from_numpy(np.concatenate([self.packing.pack(digits) for digits, _ in found])),
            f"{name}.scale": torch.from_numpy(np.concatenate([scale for _, scale in found])),
            f"{name}.shape": torch.tensor(shape, dtype=torch.int32),
        }

    def decode(self, name: str, tensors: Mapping[str, Tensor]) -> Tensor:
        """Returns scale times level, float32 of the tensor's own shape, or the tensor itself where stored in full.

        Raises:
            UntrustedContentError: The parts are not what `encode` writes.
        """
        if tensors[name].dtype != torch.uint8:
            return tensors[name]
        refuse(name, self.fault(name, tensors))
        return self.rows(name, tensors).view(shape_of(name, tensors))

    def rows(self, name: str, tensors: Mapping[str, Tensor]) -> Tensor:
        """Returns the rows that are stored, of which nothing is wrong, float32 [rows, columns]."""
        columns = columns_of(shape_of(name, tensors))
        return looked_up(tensors[name], self._table, tensors[f"{name}.scale"], columns)

    def quantises(self, name: str, shape: Shape, settings: Settings) -> bool:
        """Returns whether such a tensor is quantised: if it may be, and becomes cheaper."""
        return may_pack(name, shape) and self.cost(shape, True, settings) < prod(shape)

    def cost(self, shape: Shape, quantised: bool, settings: Settings) -> float:
        """Returns a quarter of the packed bytes, a scale a row and the shape, or all elements where not quantised."""
        return shape[0] * self.row_cost(columns_of(shape)) + len(shape) if quantised else float(prod(shape))

    def row_cost(self, columns: int) -> float:
        """Returns what a row takes with its scale, in full-precision parameters."""
        return self.packing.width(columns) / 4 + 1

    def fault(self, name: str, tensors: Mapping[str, Tensor]) -> str | None:
        """Returns what is wrong with a stored tensor (the end of a sentence), or None where it may have been written.

        Args:
            name: The tensor's name.
            tensors: Encoded tensors by stored name.
        """
        why = incomplete(name, tensors, PARTS)
        if why is not None or tensors[name].dtype != torch.uint8:
            return why
        return self.misfit(name, tensors, shape_of(name, tensors)[0])

    def misfit(self, name: str, tensors: Mapping[str, Tensor], rows: int) -> str | None:
        """Returns what is wrong with complete packed rows, so many of them, or None."""
        stored, scale, shape = tensors[name], tensors[f"{name}.scale"], shape_of(name, tensors)
        columns = columns_of(shape)
        if tuple(stored.shape) != (rows, self.packing.width(columns)) or tuple(scale.shape) != (rows,):
            return (
                f"of shape {list(shape)} is packed into {list(stored.shape)} with a scale of shape {list(scale.shape)}"
            )
        if self.positive and not bool((scale > 0).all()):
            return "has a scale that is not finite and above 0"
        return scale_fault(scale, self.highest) or self.packing.fault(stored, columns)


def may_pack(name: str, shape: Shape) -> bool:
    """Returns whether a tensor is a matrix (or has up to eight axes) that need not be kept in full."""
    return 1 < len(shape) <= _MOST_AXES and not keeps_full_precision(name, shape)


def shape_of(name: str, tensors: Mapping[str, Tensor]) -> Shape:
    """Returns the tensor's own shape, as stored beside it."""
    return tuple(tensors[f"{name}.shape"].tolist())


def columns_of(shape: Shape) -> int:
    """Returns how many weights a row has."""
    return prod(shape[1:])


def _blocks(weight: Tensor) -> Iterator[Floats]:
    """Yields the rows of a tensor in order, some at a time, float32 [some rows, columns]."""
    # Other strides than these would sum a row in another order, and round otherwise.
    rows = weight.reshape(weight.shape[0], -1).contiguous().numpy()
    step = max(1, _BLOCK // max(1, rows.shape[1]))
    return (rows[at : at + step] for at in range(0, len(rows), step))


def refuse(name: str, why: str | None) -> None:
    """Refuses a stored tensor of which something is wrong.

    Raises:
        UntrustedContentError: `why` is not None.
    """
    if why is not None:
        raise UntrustedContentError(f"Tensor '{name}' {why}.")


def incomplete(name: str, tensors: Mapping[str, Tensor], parts: tuple[str, ...]) -> str | None:
    """Returns what is wrong with a stored tensor before its numbers are looked at (the end of a sentence), or None.

    None means: it is float32, finite and alone, or it is uint8, has every part, and a shape of two axes or more.

    Args:
        name: The tensor's name.
        tensors: Encoded tensors by stored name.
        parts: What must stand beside a tensor in uint8, `.scale` and `.shape` among it.
    """
    stored, beside = tensors.get(name), [tensors.get(name + part) for part in parts]
    words = [part.removeprefix(".") for part in parts]
    if stored is None:
        return "is missing"
    if stored.dtype != torch.uint8:
        if stored.dtype != torch.float32 or any(part is not None for part in beside):
            return f"is {stored.dtype}, where float32 without {' and '.join(words)} is stored in full"
        return None if bool(torch.isfinite(stored).all()) else "holds NaN or infinity"
    if any(part is None for part in beside):
        return f"is uint8 without {' or '.join(words)}"
    scale, shape = tensors[f"{name}.scale"], tensors[f"{name}.shape"]
    if (scale.dtype, shape.dtype, shape.ndim) != (torch.float32, torch.int32, 1) or not 1 < len(shape) <= _MOST_AXES:
        return "has not a float32 scale and an int32 shape of two axes or more"
    return None if min(shape.tolist()) > 0 else f"of shape {shape.tolist()} is packed into {list(stored.shape)}"


def scale_fault(scale: Tensor, highest: float) -> str | None:
    """Returns what is wrong with scales: one is below 0, or not finite when multiplied with the largest level."""
    fits = (scale >= 0) & (scale.double() * highest <= _LARGEST)
    return None if bool(fits.all()) else "has a scale that is not finite, or below 0"


def largest_scale(highest: float) -> float:
    """Returns a float32 scale whose product with the largest level is finite, if only just."""
    return float(np.nextafter(np.float32(_LARGEST / highest), np.float32(0)))
