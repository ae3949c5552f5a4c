"""A cheap guess at performance: a random forest from features."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from sklearn.ensemble import RandomForestRegressor
from sklearn.utils.validation import check_is_fitted


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
