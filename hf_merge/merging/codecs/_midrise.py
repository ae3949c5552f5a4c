"""Symmetric grids without a zero, of 4 or 16 levels: how rows are fitted to them and how they are packed.

A digit q of 0 to 2^bits - 1 stands for `(2 q + 1 - 2^bits) / 2` times the scale of its row.

Source: J. Max, Quantizing for Minimum Distortion, 1960, table II: the steps that are best for normally distributed
weights. They are where the search for a row's scale starts.
"""

from functools import partial

import numpy as np
from torch import Tensor

from hf_merge.merging.codecs._grids import Ratios, best_grid
from hf_merge.merging.codecs._matrices import columns_of, largest_scale
from hf_merge.merging.codecs._packing import HALVES, PAIRS, Bytes, Floats, Packing
from hf_merge.merging.codecs._rows import PackedRows
from hf_merge.merging.components import Shape


FEWEST_COLUMNS = 3  # with fewer, a row is one byte with 2 bits a weight and with 4

_STEPS = {2: 0.9957, 4: 0.3352}  # for weights of deviation 1
_MULTIPLES = (0.6, 0.8, 1.0, 1.25, 1.6)  # of these steps: rows are seldom normally distributed


def _layout(packing: Packing) -> PackedRows:
    top = (packing.base - 1) / 2
    return PackedRows(packing, levels=tuple(digit - top for digit in range(packing.base)), highest=top)


LAYOUTS = {2: _layout(PAIRS), 4: _layout(HALVES)}


def bits_of(stored: Tensor, shape: Shape) -> int:
    """Returns the bits a weight of packed rows: 2 where the rows are as wide as that takes, else 4.

    Args:
        stored: uint8 [rows, width].
        shape: The tensor's own shape, of three columns or more.
    """
    return 2 if stored.shape[-1:] == (PAIRS.width(columns_of(shape)),) else 4


def packed(name: str, rows: Tensor, bits: int) -> dict[str, Tensor]:
    """Returns rows float32 [rows, columns] in 2 or 4 bits as `name` uint8 [rows, width], with `.scale` [rows]."""
    return LAYOUTS[bits].pack(name, rows, partial(midrise, bits=bits))


def midrise(rows: Floats, bits: int) -> tuple[Bytes, Floats]:
    """Returns the digits and scales of the grids that come closest to some rows.

    Each weight has the digit that is nearest at the scale found: it is off by half a scale at most, unless it lies
    beyond the grid.

    Args:
        rows: float32 [rows, columns].
        bits: 2 or 4.

    Returns:
        Digits uint8 [rows, columns], and scales float32 [rows], 0 for a row of zeros.
    """
    half, top = 2 ** (bits - 1), LAYOUTS[bits].highest
    nearest = partial(_nearest, half=half)
    exact = rows.astype(np.float64)
    deviation = np.sqrt((exact * exact).mean(axis=1, keepdims=True))
    spans = [deviation * (_STEPS[bits] * multiple) for multiple in _MULTIPLES]
    spans.append(np.abs(exact).max(axis=1, keepdims=True) / top)  # the grid that clips nothing
    steps = [np.where(span > 0, span, 1.0) for span in spans]
    _, scales = best_grid(exact, steps, nearest, largest=largest_scale(top))
    # The levels found are nearest in the steps that the scale was fitted to; at the scale itself others may be nearer.
    levels = nearest(exact / np.where(scales > 0, scales, 1.0)[:, None])
    levels += top
    return levels.astype(np.uint8), scales.astype(np.float32)


def _nearest(ratio: Ratios, half: int) -> Ratios:
    np.floor(ratio, out=ratio)
    np.clip(ratio, -half, half - 1, out=ratio)
    ratio += 0.5
    return ratio
