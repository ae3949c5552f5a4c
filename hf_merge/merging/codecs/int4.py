"""The codec `int4`: four bits a weight, one scale a row, two weights to a byte.

A row w of a matrix (whatever follows the first axis, flattened) is stored as whole numbers q in -8..7 with a float32
scale s and means `s * q`. The scale is the best that is tried, not a guess: of grids that clip the row's largest
magnitudes more and more, each with the s that least squares give for its q (`<w, q> / <q, q>`), the one of the least
squared error. So each weight is off by s / 2 at most, or was clipped.

On disk a row is `ceil(columns / 2)` bytes, q + 8 of the first of two weights in the lower half; a last weight alone
has 8 above it, which is zero. `name.shape` holds the tensor's own shape.

Source: MERGE, arXiv 2602.06552, Eq. 8 for what it takes; per-row scales by least squares are common for few bits.
"""

import numpy as np
from torch import Tensor

from hf_merge.merging.codecs._grids import Ratios, best_grid
from hf_merge.merging.codecs._packing import Bytes, Floats, Packing
from hf_merge.merging.codecs._rows import PackedRows
from hf_merge.merging.settings import Settings


_LOW, _HIGH = -8, 7
_CLIPS = (1.0, 0.95, 0.9, 0.85, 0.8, 0.7, 0.6)  # of a row's largest magnitude
_SMALLEST_SCALE = float(np.finfo(np.float32).tiny)
_ROWS = PackedRows(
    Packing(base=16, per_byte=2, filler=-_LOW), levels=tuple(range(_LOW, _HIGH + 1)), highest=1, positive=True
)


def _pack(name: str, matrix: Tensor, settings: Settings) -> dict[str, Tensor]:
    return _ROWS.pack(name, matrix, _fitted)


def _fitted(rows: Floats) -> tuple[Bytes, Floats]:
    """Returns q + 8 [rows, columns] uint8 and scales [rows] float32 that come closest to some rows."""
    exact = rows.astype(np.float64)
    largest = np.abs(exact).max(axis=1, keepdims=True)
    steps = (np.maximum(largest * clip / _HIGH, _SMALLEST_SCALE) for clip in _CLIPS)
    _, scales = best_grid(exact, steps, _nearest, smallest=_SMALLEST_SCALE)
    # The levels found are nearest in the steps that the scale was fitted to; at the scale itself others may be nearer.
    return (_nearest(exact / scales[:, None]) - _LOW).astype(np.uint8), scales.astype(np.float32)


def _nearest(ratio: Ratios) -> Ratios:
    return np.clip(np.rint(ratio, out=ratio), _LOW, _HIGH, out=ratio)


CODEC = _ROWS.laid_out(_pack).codec(
    name="int4", summary="Matrices in 4 bits with a scale for each row, the rest in float32.", residual=False
)
