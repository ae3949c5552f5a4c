"""Where rows sorted by length are cut into batches: so that padding and the batches themselves cost least together."""

import numpy as np
from numpy.typing import NDArray


# What a batch costs beside its tokens, in tokens: calls and small kernels, measured on MiniLM, where it weighs most.
BATCH_TOKENS = 48


def cut(lengths: NDArray[np.int64], batch_size: int) -> list[tuple[int, int]]:
    """Returns the batches of rows sorted by length, as pairs (first row, row after the last).

    Every batch is padded to its longest row, and costs `BATCH_TOKENS` beside its padded tokens; of all ways to cut
    the rows into batches of at most `batch_size`, this is the cheapest (by dynamic programming over the rows).

    Args:
        lengths: Tokens of each row, ascending, [rows] int64.
        batch_size: The most rows of a batch, 1 or more.
    """
    rows = len(lengths)
    cost, cuts = np.zeros(rows + 1), np.zeros(rows + 1, dtype=np.int64)
    for stop in range(1, rows + 1):
        starts = np.arange(max(0, stop - batch_size), stop)
        costs = cost[starts] + BATCH_TOKENS + (stop - starts) * lengths[stop - 1]
        cheapest = int(np.argmin(costs))
        cost[stop], cuts[stop] = costs[cheapest], starts[cheapest]
    batches, stop = [], rows
    while stop:
        batches.append((int(cuts[stop]), stop))
        stop = int(cuts[stop])
    return batches[::-1]
