"""Small whole numbers packed into bytes, and bytes looked up as weights.

The numbers of a row are the digits of its bytes in some base, as many as a byte holds, the first of them the lowest:
base 3 five to a byte, bits eight, base 4 four, base 16 two. Every row begins a byte of its own; where its last byte
has digits to spare, they hold a filler.

Reading looks a byte up in a table of the weights that each of its values stands for. That takes one pass, where
dividing digit by digit takes several for each digit.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]

_BLOCK = 1 << 17  # weights that are looked up at once: their indices, eight bytes each, stay in the cache


@dataclass(frozen=True)
class Packing:
    """How digits lie in bytes.

    Attributes:
        base: How many values a digit has.
        per_byte: How many digits a byte holds.
        filler: The digit that stands where a row has ended.
    """

    base: int
    per_byte: int
    filler: int = 0

    def width(self, columns: int) -> int:
        """Returns the bytes of a row."""
        return -(-columns // self.per_byte)

    def pack(self, digits: Bytes) -> Bytes:
        """Returns digits below `base`, uint8 [rows, columns], as bytes, uint8 [rows, width]."""
        rows, columns = digits.shape
        width = self.width(columns)
        if width * self.per_byte != columns:
            spare = ((0, 0), (0, width * self.per_byte - columns))
            digits = np.pad(digits, spare, constant_values=self.filler)
        places = digits.reshape(rows, width, self.per_byte)
        packed = places[:, :, -1].copy()
        for place in range(self.per_byte - 2, -1, -1):
            packed *= np.uint8(self.base)
            packed += places[:, :, place]
        return packed

    def table(self, levels: Floats) -> Floats:
        """Returns what each value of a byte stands for, float32 [256, per_byte].

        Args:
            levels: What each digit stands for, float32 [base].
        """
        powers = self.base ** np.arange(self.per_byte)
        return np.take(levels, np.arange(256)[:, None] // powers % self.base)

    def fault(self, packed: Tensor, columns: int) -> str | None:
        """Returns what `pack` cannot have written (the end of a sentence), or None.

        Args:
            packed: uint8 [rows, width], one row and one byte at least.
            columns: The digits of a row.
        """
        highest = self.base**self.per_byte - 1
        if highest < 255 and int(packed.numpy().max()) > highest:
            return f"holds a byte above {highest}, which {self.per_byte} digits of base {self.base} cannot make"
        used = columns % self.per_byte
        if not used:
            return None
        filled = sum(self.filler * self.base**place for place in range(self.per_byte - used))
        ends = packed.numpy()[:, -1] // self.base**used
        return None if bool((ends == filled).all()) else "does not end its rows in filler"


BITS, PAIRS, TRITS, HALVES = Packing(2, 8), Packing(4, 4), Packing(3, 5), Packing(16, 2)


def looked_up(packed: Tensor, table: Floats, scale: Tensor, columns: int) -> Tensor:
    """Returns the weights of packed rows times their scale, float32 [rows, columns], in memory of their own.

    Args:
        packed: uint8 [rows, width].
        table: What a byte stands for, float32 [256, per_byte].
        scale: float32 [rows].
        columns: The weights of a row.
    """
    stored, factors = packed.numpy(), scale.numpy()[:, None]
    weights = np.empty((len(stored), columns), dtype=np.float32)  # numpy asks for huge pages, torch does not
    step = max(1, _BLOCK // columns)
    for at in range(0, len(stored), step):
        rows = slice(at, at + step)
        found = table.take(stored[rows], axis=0)
        found = found.reshape(len(found), -1)[:, :columns]
        np.multiply(found, factors[rows], out=weights[rows])
    return torch.from_numpy(weights)
