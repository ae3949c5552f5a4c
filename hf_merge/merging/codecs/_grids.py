"""Scales by least squares: the scale s of a row w whose weights become `s * t` is `<w, t> / <t, t>`.

For levels t that are given that is the best scale there is. On a grid of several levels t depends on the scale in
turn, so several grids are tried, and of each, with the scale that least squares give for its t, the one of the least
squared error is taken. Sums are taken in float64, so that no square of a float32 weight overflows or vanishes.

Source: for signs these scales are those of XNOR-Net, arXiv 1603.05279, section 3.1.
"""

from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import NDArray

from hf_merge.merging.codecs._packing import Floats


Doubles = NDArray[np.float64]


def mean_magnitudes(magnitudes: Floats, counts: NDArray[np.int64]) -> Floats:
    """Returns the mean of each row over as many entries as are counted, float32 [rows]; 0 where there are none.

    Args:
        magnitudes: float32 [rows, columns], zero where an entry does not count.
        counts: [rows].
    """
    sums = magnitudes.sum(axis=1, dtype=np.float64)
    means = np.zeros(len(sums))
    np.divide(sums, counts, out=means, where=counts > 0)
    return means.astype(np.float32)


def best_grid(
    exact: Doubles,
    steps: Iterable[Doubles],
    nearest: Callable[[Doubles], Doubles],
    smallest: float = 0.0,
    largest: float = np.inf,
) -> tuple[Doubles, Doubles]:
    """Returns for each row the levels t [rows, columns] and the scale s [rows] for which `s * t` comes closest.

    Args:
        exact: The weights, [rows, columns].
        steps: The grids to try: the step of each row, above 0, [rows, 1].
        nearest: Returns the level nearest to each weight in steps; overwrites what it is given.
        smallest: The smallest scale to be given.
        largest: The largest.
    """
    best, scales, errors = np.zeros(exact.shape), np.ones(len(exact)), np.full(len(exact), np.inf)
    for step in steps:
        levels = nearest(exact / step)
        squares = (levels * levels).sum(axis=1)
        fitted = np.divide((exact * levels).sum(axis=1), squares, out=np.ones(len(exact)), where=squares > 0)
        scale = np.clip(fitted, smallest, largest).astype(np.float32).astype(np.float64)
        error = exact - levels * scale[:, None]
        error *= error
        summed = error.sum(axis=1)
        better = summed < errors
        best[better], scales[better], errors[better] = levels[better], scale[better], summed[better]
    return best, scales
