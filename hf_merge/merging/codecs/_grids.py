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
    """Returns for each row the step [rows, 1] of the best grid, and the scale s [rows], a float32, that goes with it.

    Best is the grid on whose levels t, those nearest to the weights in steps, `s * t` comes closest to the weights; of
    equally good ones the earlier.

    Args:
        exact: The weights, [rows, columns].
        steps: The grids to try: the step of each row, above 0, [rows, 1].
        nearest: Puts the nearest levels in place of weights in steps, and returns them.
        smallest: The smallest scale to be given.
        largest: The largest.
    """
    chosen, scales, errors = np.ones((len(exact), 1)), np.ones(len(exact)), np.full(len(exact), np.inf)
    levels, products = np.empty_like(exact), np.empty_like(exact)
    for step in steps:
        nearest(np.divide(exact, step, out=levels))
        squares = np.einsum("ij,ij->i", levels, levels)
        crossed = np.multiply(exact, levels, out=products).sum(axis=1)
        fitted = np.divide(crossed, squares, out=np.ones(len(exact)), where=squares > 0)
        scale = np.clip(fitted, smallest, largest).astype(np.float32).astype(np.float64)
        levels *= scale[:, None]
        np.subtract(exact, levels, out=products)
        error = np.square(products, out=products).sum(axis=1)
        better = error < errors
        chosen[better], scales[better], errors[better] = step[better], scale[better], error[better]
    return chosen, scales
