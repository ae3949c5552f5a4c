"""Fronts of two objectives: a cost to keep low and a performance to keep high."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np


def dominates(first: tuple[float, float], second: tuple[float, float]) -> bool:
    """Returns whether `first` is nowhere worse than `second` and somewhere better.

    Args:
        first: A point (cost, performance).
        second: A point (cost, performance).
    """
    return first[0] <= second[0] and first[1] >= second[1] and first != second


def non_dominated(costs: Sequence[float], performances: Sequence[float]) -> list[int]:
    """Returns the indices of the points that no other dominates, by rising cost.

    Of points equal in both objectives the first is kept. A point with NaN is never on the front.

    Args:
        costs: Costs to minimise, `[points]`.
        performances: Performances to maximise, `[points]`.
    """
    points = list(zip(costs, performances, strict=True))
    comparable = [index for index, point in enumerate(points) if not any(map(math.isnan, point))]
    front: list[int] = []
    for index in sorted(comparable, key=lambda i: (points[i][0], -points[i][1], i)):
        if not front or points[index][1] > points[front[-1]][1]:
            front.append(index)
    return front


def thin(costs: Sequence[float], performances: Sequence[float], keep: int) -> list[int]:
    """Returns the indices of at most `keep` points of a front that stay well spread along it, by rising cost.

    The most crowded point is removed and the crowding computed anew, until `keep` are left. The two ends stay longest;
    a single point is the best-performing one.

    Args:
        costs: Costs of the front's points, `[points]`.
        performances: Their performances, `[points]`.
        keep: How many to keep, 0 or more.

    Source: NSGA-II (Deb et al., 2002), crowding distance; removal one at a time as in Kukkonen & Deb, 2006.
    """
    kept = sorted(range(len(costs)), key=lambda index: (costs[index], performances[index], index))
    points = np.array([(costs[index], performances[index]) for index in kept], dtype=np.float64).reshape(-1, 2)
    extent = np.ptp(points, axis=0) if len(points) else np.ones(2)
    points = points / np.where(extent > 0.0, extent, 1.0)
    while len(kept) > keep:
        distance = np.full(len(kept), np.inf)
        distance[1:-1] = np.abs(points[2:] - points[:-2]).sum(axis=1)
        crowded = int(np.argmin(distance))
        kept.pop(crowded)
        points = np.delete(points, crowded, axis=0)
    return kept


@dataclass(frozen=True)
class Reference:
    """The box in which hypervolumes are measured; the same box for all runs that are compared.

    Attributes:
        cost: The worst cost that still counts, in the unit of C.
        performance: The worst performance that still counts.
        ideal_cost: The cost at the ideal corner.
        ideal_performance: The performance at the ideal corner.
    """

    cost: float
    performance: float
    ideal_cost: float = 0.0
    ideal_performance: float = 1.0

    @classmethod
    def from_extremes(cls, all_separate_cost: float, pretrained_performance: float) -> Self:
        """Returns the box from 1.1 times the cost of all experts kept apart and the base model's performance.

        The ideal corner is fixed at cost 0 and performance 1, so that it depends on no run.

        Source: MERGE (arXiv 2602.06552), hypervolume indicator; its reference point is not stated and is settled here.
        """
        return cls(1.1 * all_separate_cost, pretrained_performance)


def hypervolume(points: Sequence[tuple[float, float]], reference: Reference) -> float:
    """Returns the share of the reference box that `points` dominate, in [0, 1].

    A point that is not better than the reference in both objectives adds nothing; a point beyond the ideal corner
    counts as if on its edge. A box without area has the hypervolume 0.

    Args:
        points: Pairs (cost, performance), in any order, dominated ones allowed.
        reference: The box.

    Source: Zitzler & Thiele, 1999, as computed by `pymoo.indicators.hv`.
    """
    width = reference.cost - reference.ideal_cost
    height = reference.ideal_performance - reference.performance
    if not (width > 0.0 and height > 0.0):
        return 0.0
    scaled = [((c - reference.ideal_cost) / width, (reference.ideal_performance - p) / height) for c, p in points]
    inside = [(max(x, 0.0), max(y, 0.0)) for x, y in scaled if x < 1.0 and y < 1.0]
    if not inside:
        return 0.0
    # Loading pymoo takes half a second, which `best_within` and the rest can do without.
    from pymoo.indicators.hv import HV

    return float(HV(ref_point=np.ones(2))(np.array(inside)))


def best_within(points: Sequence[tuple[float, float]], budget: float) -> int | None:
    """Returns the index of the best-performing point with cost <= `budget`, or None where every point costs more.

    Ties go to the lower cost, then to the earlier point.

    Args:
        points: Pairs (cost, performance).
        budget: The largest cost allowed, in the unit of C.
    """
    affordable = [index for index, (cost, _) in enumerate(points) if cost <= budget]
    return min(affordable, key=lambda index: (-points[index][1], points[index][0], index), default=None)
