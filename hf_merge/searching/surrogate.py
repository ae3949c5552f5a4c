"""A cheap guess at performance, and the choice of the candidates that deserve a real evaluation."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from sklearn.ensemble import RandomForestRegressor
from sklearn.utils.validation import check_is_fitted

from hf_merge.searching.pareto import non_dominated, thin


class Surrogate:
    """A random forest from a configuration's features to its performance; the same data give the same forest.

    Source: MERGE (arXiv 2602.06552), Algorithm 1: a random forest predicts performance, cost is exact.
    """

    def __init__(self, seed: int, trees: int = 200) -> None:
        """Prepares an unfitted forest.

        Args:
            seed: Seed of the bootstrap samples and the splits.
            trees: The number of trees, 1 or more.
        """
        self._forest = RandomForestRegressor(
            n_estimators=trees, max_features=1 / 3, min_samples_leaf=1, random_state=seed, n_jobs=1
        )

    def fit(self, features: NDArray[np.float64], performances: Sequence[float] | NDArray[np.float64]) -> None:
        """Learns from what was evaluated, forgetting what it learned before.

        Args:
            features: One row per configuration, `[configurations, features] float64`.
            performances: Their performances, `[configurations]`.
        """
        self._forest.fit(features, np.asarray(performances, dtype=np.float64))

    def predict(self, features: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Returns each configuration's predicted performance and its spread (standard deviation over the trees).

        Args:
            features: One row per configuration, `[configurations, features] float64`.

        Raises:
            sklearn.exceptions.NotFittedError: `fit` was not called.
        """
        check_is_fitted(self._forest)
        # The trees compare in float32, as they were fitted.
        rows = np.ascontiguousarray(features, dtype=np.float32)
        guesses = np.stack([tree.predict(rows, check_input=False) for tree in self._forest.estimators_])
        return guesses.mean(axis=0), guesses.std(axis=0)


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


def _at(values: Sequence[float] | NDArray[np.float64], indices: Sequence[int]) -> list[float]:
    return [float(values[index]) for index in indices]
