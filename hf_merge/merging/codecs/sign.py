"""The codec `sign`: the difference from the shared expert as -s or +s, one bit a weight.

Of each weight of a row (whatever follows the first axis, flattened) the sign stays, zero counting as positive, and s,
float32, is the row's mean magnitude: the scale of least squares, `<w, t> / <t, t>` for t in -1, 1. So the squared
error of a row is its squared norm less `columns * s^2`: never above the norm, and nothing where all magnitudes are
equal.

On disk a row is `ceil(columns / 8)` bytes, the first weight in the lowest bit: 0 for +s, 1 for -s, and 0 where the row
has ended. `name.shape` holds the tensor's own shape. A row without a difference has the scale 0.

Source: BitDelta, arXiv 2402.10193, which has one scale a tensor.
"""

import numpy as np
from torch import Tensor

from hf_merge.merging.codecs._grids import mean_magnitudes
from hf_merge.merging.codecs._packing import BITS, Bytes, Floats
from hf_merge.merging.codecs._rows import PackedRows
from hf_merge.merging.settings import Settings


_ROWS = PackedRows(BITS, levels=(1, -1), highest=1)


def _pack(name: str, matrix: Tensor, settings: Settings) -> dict[str, Tensor]:
    return _ROWS.pack(name, matrix, _fitted)


def _fitted(rows: Floats) -> tuple[Bytes, Floats]:
    every = np.full(len(rows), rows.shape[1])
    return (rows < 0).view(np.uint8), mean_magnitudes(np.abs(rows), every)


CODEC = _ROWS.laid_out(_pack).codec(
    name="sign",
    summary="Matrices as the signs of the differences from the shared expert, in 1 bit a weight.",
    residual=True,
)
