"""The codec `ternary`: the difference from the shared expert as -s, 0 or +s, five weights to a byte.

Of a row (whatever follows the first axis, flattened) the share `density` of the weights of largest magnitude is kept,
one at least; of equal magnitudes the earlier. What stays of them is the sign, and s, float32, is their mean magnitude,
which is the scale of least squares: `<w, t> / <t, t>` for t in -1, 0, 1. A weight of zero is never kept. So the
squared error of a row is its squared norm less `k s^2` for k kept weights: never above the norm.

On disk a row is `ceil(columns / 5)` bytes of digits in base 3, the first the lowest: 0 for 0, 1 for +s, 2 for -s, and
0 where the row has ended. `name.shape` holds the tensor's own shape. A row without a difference has the scale 0.

Source: task vectors as a mask, a sign and one scale are those of T-Switch, arXiv 2412.00054.
"""

from functools import partial

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from hf_merge.merging.codecs._grids import mean_magnitudes
from hf_merge.merging.codecs._packing import TRITS, Bytes, Floats
from hf_merge.merging.codecs._rows import PackedRows
from hf_merge.merging.settings import Hyperparameter, Settings


_ROWS = PackedRows(TRITS, levels=(0, 1, -1), highest=1)


def _pack(name: str, matrix: Tensor, settings: Settings) -> dict[str, Tensor]:
    kept = max(1, round(float(settings["density"]) * matrix.shape[1]))
    return _ROWS.pack(name, matrix, partial(_fitted, kept=kept))


def _fitted(rows: Floats, kept: int) -> tuple[Bytes, Floats]:
    magnitudes = np.abs(rows)
    chosen = _largest(magnitudes, kept)
    digits = chosen.view(np.uint8) << (rows < 0).view(np.uint8)  # 1 where it is positive, 2 where it is negative
    magnitudes *= chosen
    return digits, mean_magnitudes(magnitudes, np.count_nonzero(chosen, axis=1))


def _largest(magnitudes: Floats, kept: int) -> NDArray[np.bool_]:
    """Returns where the largest magnitudes of each row are, at most `kept` of them, the earlier of equal ones."""
    cut = magnitudes.shape[1] - kept
    border = np.partition(magnitudes, cut, axis=1)[:, cut, None]
    chosen = (magnitudes >= border) & (magnitudes > 0)
    for row in np.flatnonzero(np.count_nonzero(chosen, axis=1) > kept):
        equal = np.flatnonzero(magnitudes[row] == border[row])
        chosen[row, equal[kept - np.count_nonzero(chosen[row]) :]] = False
    return chosen


CODEC = _ROWS.laid_out(_pack).codec(
    name="ternary",
    summary="Matrices as the signs of each row's largest differences from the shared expert, in 1.6 bits a weight.",
    hyperparameters=(
        Hyperparameter(
            "density",
            0.5,
            low=0.0,
            high=1.0,
            exclusive=True,
            help="The share of each row's weights that is kept, those of largest magnitude.",
        ),
    ),
    residual=True,
)
