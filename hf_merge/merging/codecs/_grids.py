"""Scales by least squares: the scale s of a row w whose weights become `s * t` is `<w, t> / <t, t>`.

For levels t that are given that is the best scale there is. On a grid of several levels t depends on the scale in
turn, so several grids are tried, and of each, with the scale that least squares give for its t, the one of the least
squared error is taken. Sums are taken in float64, or of rows scaled before, so that no square overflows or vanishes.

Source: for signs these scales are those of XNOR-Net, arXiv 1603.05279, section 3.1.
"""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hf_merge.merging.codecs._packing import Floats


Doubles = NDArray[np.float64]
Ratios = NDArray[np.floating[Any]]


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
    nearest: Callable[[Ratios], Ratios],
    smallest: float = 0.0,
    largest: float = np.inf,
) -> tuple[Doubles, Doubles]:
    """Returns for each row the step [rows, 1] of the best grid, and the scale s [rows], a float32, that goes with it.

    Best is the grid on whose levels t, those nearest to the weights in steps, `s * t` comes closest to the weights:
    where `<w, t>^2 / <t, t>` is largest, for that is what the best s takes off the squared norm. Of equally good ones
    it is the earlier. Grids are compared in float32, on rows scaled to a mean square of 1; the scale is exact.

    Args:
        exact: The weights, [rows, columns].
        steps: The grids to try: the step of each row, above 0, [rows, 1].
        nearest: Puts the nearest levels in place of weights in steps, of either precision, and returns them.
        smallest: The smallest scale to be given.
        largest: The largest.
    """
    deviation = np.sqrt(_products(exact, exact) / exact.shape[1])[:, None]
    unit = np.where(deviation > 0, deviation, 1.0)
    rows = (exact / unit).astype(np.float32)
    chosen, gains, levels = np.ones((len(exact), 1)), np.full(len(exact), -np.inf), np.empty_like(rows)
    for step in steps:
        gain = _gains(rows, nearest(np.multiply(rows, (unit / step).astype(np.float32), out=levels)))
        better = gain > gains
        chosen[better], gains[better] = step[better], gain[better]
    final = nearest(exact / chosen)
    squares = _products(final, final)
    fitted = np.divide(_products(exact, final), squares, out=np.ones(len(exact)), where=squares > 0)
    return chosen, np.clip(fitted, smallest, largest).astype(np.float32).astype(np.float64)


def _gains(rows: Floats, levels: Floats) -> Doubles:
    """Returns what the best scale of some levels takes off the squared norm of each row."""
    squares = _products(levels, levels).astype(np.float64)
    crossed = _products(rows, levels).astype(np.float64)
    return np.divide(crossed * crossed, squares, out=np.zeros(len(rows)), where=squares > 0)


def _products(first: Ratios, second: Ratios) -> Ratios:
    """Returns the scalar product of each two rows, in their own precision."""
    found: Ratios = np.einsum("ij,ij->i", first, second)
    return found
