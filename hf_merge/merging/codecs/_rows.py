"""Matrices packed row by row, with a scale for each row."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from hf_merge.merging.codecs._matrices import Layout, columns_of, scale_fault
from hf_merge.merging.codecs._packing import Bytes, Floats, Packing, looked_up
from hf_merge.merging.components import Shape
from hf_merge.merging.settings import Settings


_BLOCK = 1 << 15  # weights in the rows that are encoded together: float64 copies of them stay in the cache


@dataclass(frozen=True)
class PackedRows:
    """A layout of rows as digits with a scale.

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

    def pack(self, name: str, rows: Tensor, fitted: Callable[[Floats], tuple[Bytes, Floats]]) -> dict[str, Tensor]:
        """Returns packed rows uint8 [rows, width] as `name`, and their scales float32 [rows].

        Args:
            name: The tensor's name.
            rows: float32 [rows, columns], finite and contiguous.
            fitted: Returns the digits, uint8 [some rows, columns], and the scales [some rows] of some rows.
        """
        found = [fitted(block) for block in _blocks(rows.numpy())]
        return {
            name: torch.from_numpy(np.concatenate([self.packing.pack(digits) for digits, _ in found])),
            f"{name}.scale": torch.from_numpy(np.concatenate([scale for _, scale in found])),
        }

    def laid_out(self, pack: Callable[[str, Tensor, Settings], dict[str, Tensor]]) -> Layout:
        """Returns the layout of a codec that packs all rows of a matrix so."""
        return Layout(
            pack=pack,
            unpack=self.unpack,
            takes=lambda shape, settings: self.takes(shape[0], shape),
            misfit=lambda name, tensors, shape: self.misfit(name, tensors, shape, shape[0]),
        )

    def unpack(self, name: str, tensors: Mapping[str, Tensor], shape: Shape) -> Tensor:
        """Returns the rows that are stored, of which nothing is wrong, float32 [rows, columns]."""
        return looked_up(tensors[name], self._table, tensors[f"{name}.scale"], columns_of(shape))

    def takes(self, rows: int, shape: Shape) -> float:
        """Returns a quarter of the packed bytes of some rows, and a scale for each."""
        return rows * (self.packing.width(columns_of(shape)) / 4 + 1)

    def misfit(self, name: str, tensors: Mapping[str, Tensor], shape: Shape, rows: int) -> str | None:
        """Returns what is wrong with packed rows, so many of them, of a tensor of a shape, or None."""
        stored, scale, columns = tensors[name], tensors[f"{name}.scale"], columns_of(shape)
        if tuple(stored.shape) != (rows, self.packing.width(columns)) or tuple(scale.shape) != (rows,):
            return (
                f"of shape {list(shape)} is packed into {list(stored.shape)} with a scale of shape {list(scale.shape)}"
            )
        if self.positive and not bool((scale > 0).all()):
            return "has a scale that is not finite and above 0"
        return scale_fault(scale, self.highest) or self.packing.fault(stored, columns)


def _blocks(rows: Floats) -> Iterator[Floats]:
    """Yields rows in order, some at a time."""
    step = max(1, _BLOCK // max(1, rows.shape[1]))
    return (rows[at : at + step] for at in range(0, len(rows), step))
