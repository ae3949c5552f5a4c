"""What a front tells about its tasks: what storage buys along it, and which tasks share experts; no model is run.

The paper gives no formulas for these analyses; what is settled here stands with each function.

Source: MERGE, arXiv 2602.06552, Fig. 4, Table VIII and Fig. 5.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from hf_merge.merging.grouping import Grouping


_LEAST = 3
_EXACT = 8  # 8! = 40 320 orders; beyond them Student's t is near enough


@dataclass(frozen=True)
class Correlation:
    """A rank correlation, or why there is none.

    Attributes:
        pairs: How many pairs it is over.
        rho: Spearman's, in [-1, 1]; None where there is none.
        p: Two-sided; None with `rho`.
        note: Why there is no number; None where there is.
    """

    pairs: int
    rho: float | None = None
    p: float | None = None
    note: str | None = None


def marginal_utilities(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Returns what each step along a front buys: pairs (cost halfway, rise of performance per unit of cost).

    Args:
        points: Pairs (cost, performance), in any order. Steps between equal costs have no slope and are left out.

    Source: MERGE, arXiv 2602.06552, Fig. 4, without a formula; the difference quotient is ours.
    """
    ordered = sorted(points, key=lambda point: point[0])
    return [
        ((cost + dearer) / 2, (better - value) / (dearer - cost))
        for (cost, value), (dearer, better) in pairwise(ordered)
        if dearer > cost
    ]


def rank_correlation(pairs: Sequence[tuple[float, float]]) -> Correlation:
    """Returns Spearman's correlation of pairs, with a two-sided p.

    Up to 8 pairs p counts all orders, because Student's t, which stands for them beyond, gives three pairs in order
    p = 0 where one order in three is as extreme.

    Args:
        pairs: The pairs; of fewer than 3, or with one side all equal, there is none, and the note says so.

    Source: Spearman, 1904; Table VIII of MERGE, arXiv 2602.06552.
    """
    if len(pairs) < _LEAST:
        return Correlation(len(pairs), note=f"{len(pairs)} steps: at least {_LEAST} are needed")
    first, second = (stats.rankdata(column) for column in zip(*pairs, strict=True))
    if np.ptp(first) == 0 or np.ptp(second) == 0:
        return Correlation(len(pairs), note="all are equal")
    found = stats.spearmanr(first, second)
    p = float(found.pvalue) if len(pairs) > _EXACT else _exact(first, second)
    return Correlation(len(pairs), float(found.statistic), p)


def _exact(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    """Returns the two-sided p of ranks [pairs] over all orders; over fixed ranks their product orders as rho does."""
    found = stats.permutation_test(
        (first,), lambda ranks, axis: (ranks * second).sum(axis=axis), permutation_type="pairings", vectorized=True,
        n_resamples=np.inf,
    )  # fmt: skip
    return float(found.pvalue)


def associations(groupings: Sequence[Grouping]) -> NDArray[np.float64]:
    """Returns in which share of configurations two tasks are in one group, `[components, tasks, tasks] float64`.

    Symmetric, in [0, 1], with ones on the diagonal.

    Args:
        groupings: Those of the fronts of all runs, at least one; a configuration that two runs found counts twice.

    Source: MERGE, arXiv 2602.06552, Fig. 5.
    """
    labels = np.array(groupings, dtype=np.int64)
    shares: NDArray[np.float64] = (labels[..., :, None] == labels[..., None, :]).mean(axis=0)
    return shares
