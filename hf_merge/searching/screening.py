"""The choice of the candidates that deserve a real evaluation, from guesses at performance and exact costs."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from hf_merge.searching.pareto import Reference, non_dominated, thin


def screen(
    mean: NDArray[np.float64],
    spread: NDArray[np.float64],
    costs: Sequence[float] | NDArray[np.float64],
    *,
    least: int = 4,
    most: int = 10,
    explore: float = 0.1,
    rng: np.random.Generator,
) -> list[int]:
    """Returns the indices of the candidates to evaluate for real, the promising by front and cost, the uncertain last.

    The first front of predicted performance and exact cost is thinned by crowding to `most`, or topped up from the
    next fronts to `least`. A share `explore` of the picks, rounded up or down at random so that it holds on average,
    goes to the most uncertain of the other candidates, so that the surrogate does not only confirm itself.

    Args:
        mean: Predicted performances, `[candidates]`.
        spread: Their spreads, `[candidates]`.
        costs: Exact costs, `[candidates]`.
        least: The fewest picks, where there are as many candidates.
        most: The most picks; it wins over a larger `least`.
        explore: The share of uncertain candidates, in [0, 1].
        rng: Rounds that share.

    Raises:
        ValueError: A predicted performance or a cost is not finite.

    Source: MERGE (arXiv 2602.06552), Algorithm 1; the counts and the exploring share, which it leaves open, are ours.
    """
    if not (np.isfinite(mean).all() and np.isfinite(costs).all()):
        raise ValueError(f"Predicted performances {mean} and costs {costs} must be finite.")
    remaining = list(range(len(mean)))
    front = non_dominated(_at(costs, remaining), _at(mean, remaining))
    count = min(max(len(front), least), most, len(remaining))
    uncertain = min(count, int(explore * count + rng.random()))
    picked: list[int] = []
    while len(picked) < count - uncertain:
        front = [remaining[index] for index in non_dominated(_at(costs, remaining), _at(mean, remaining))]
        kept = thin(_at(costs, front), _at(mean, front), count - uncertain - len(picked))
        picked += [front[index] for index in kept]
        remaining = sorted(set(remaining) - set(front))
    others = set(range(len(mean))) - set(picked)
    return picked + sorted(others, key=lambda index: (-spread[index], index))[:uncertain]


def screen_by_improvement(
    mean: NDArray[np.float64],
    spread: NDArray[np.float64],
    costs: Sequence[float] | NDArray[np.float64],
    points: Sequence[tuple[float, float]],
    reference: Reference,
    count: int,
) -> list[int]:
    """Returns the indices of the candidates that promise to enlarge the hypervolume most, one after the other.

    Each candidate is hoped to perform one spread above its guess. The one that would then add most is picked, counts
    as if it had kept its promise, and the next is picked beside it. Where none promises anything more, the most
    uncertain are picked. Where all cost the same there is no front, and one kept promise would leave nothing to gain:
    then those are picked of which most is hoped.

    Args:
        mean: Guessed performances, [candidates].
        spread: Their spreads, [candidates].
        costs: Exact costs, [candidates].
        points: The pairs (cost, performance) evaluated so far.
        reference: The box of the hypervolume.
        count: How many to pick; all where there are fewer candidates.

    Source: the S-metric selection of SMS-EGO (Ponweiser et al., 2008) by an optimistic bound, with the spread of a
        forest in place of a Gaussian process's.
    """
    hoped, cost = mean + spread, np.asarray(costs, dtype=np.float64)
    if not np.ptp(cost):
        return [int(index) for index in np.argsort(-hoped, kind="stable")[:count]]
    front, picked = list(points), list[int]()
    while len(picked) < min(count, len(mean)):
        gains = improvements(cost, hoped, front, reference)
        gains[picked] = -1.0
        best = int(np.argmax(gains))
        if gains[best] <= 0.0:
            others = sorted(set(range(len(mean))) - set(picked), key=lambda index: (-spread[index], index))
            return picked + others[: count - len(picked)]
        picked.append(best)
        front.append((float(cost[best]), float(hoped[best])))
    return picked


def improvements(
    costs: NDArray[np.float64],
    performances: NDArray[np.float64],
    points: Sequence[tuple[float, float]],
    reference: Reference,
) -> NDArray[np.float64]:
    """Returns how much area each candidate would add to what `points` dominate of the box, alone, [candidates].

    In two dimensions that is the integral over the costs, from the candidate's to the box's edge, of what it performs
    above the best point of at most that cost; all candidates at once, which `pareto.hypervolume` cannot.

    Args:
        costs: Costs, [candidates].
        performances: Performances, [candidates].
        points: Pairs (cost, performance).
        reference: The box; its ideal corner does not bound.
    """
    inside = [(cost, value) for cost, value in points if cost < reference.cost and value > reference.performance]
    front = [inside[index] for index in non_dominated([c for c, _ in inside], [p for _, p in inside])]
    edges = np.array([-np.inf, *(cost for cost, _ in front), reference.cost])
    levels = np.array([reference.performance, *(performance for _, performance in front)])
    widths = np.clip(edges[None, 1:] - np.maximum(edges[None, :-1], costs[:, None]), 0.0, None)
    heights = np.clip(performances[:, None] - levels[None, :], 0.0, None)
    added: NDArray[np.float64] = (widths * heights).sum(axis=1)
    return added


def _at(values: Sequence[float] | NDArray[np.float64], indices: Sequence[int]) -> list[float]:
    return [float(values[index]) for index in indices]
