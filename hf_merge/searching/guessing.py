"""What a search expects of configurations that it has not evaluated: a performance, and how unsure it is of it."""

from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from hf_merge.searching.configuration import Configuration
from hf_merge.searching.evaluation import weighted_score
from hf_merge.searching.space import SearchSpace
from hf_merge.searching.surrogate import Surrogate


Guess: TypeAlias = Callable[[Sequence[Configuration]], tuple[NDArray[np.float64], NDArray[np.float64]]]
_SEEDS = 2**32  # scikit-learn takes no larger seed
_TASK_TREES = 60


def guess_performance(
    space: SearchSpace,
    known: Sequence[Configuration],
    scores: Sequence[Mapping[str, float]],
    seed: int,
    deviation: float = 0.0,
) -> Guess:
    """Returns a guess by one forest from the whole configuration to its performance.

    Args:
        space: The configurations.
        known: What was evaluated.
        scores: The score of every task under each of them.
        seed: Seed of the forest.
        deviation: How much more tasks count that are far from the mean, as in `weighted_score`.

    Source: MERGE (arXiv 2602.06552), Algorithm 1.
    """
    forest = Surrogate(seed % _SEEDS)
    performances = [weighted_score(row, deviation) for row in scores]
    forest.fit(np.stack([space.features(configuration) for configuration in known]), performances)
    return lambda wanted: forest.predict(np.stack([space.features(configuration) for configuration in wanted]))


def guess_by_task(
    space: SearchSpace,
    known: Sequence[Configuration],
    scores: Sequence[Mapping[str, float]],
    seed: int,
    deviation: float = 0.0,
) -> Guess:
    """Returns a guess by one forest per task, from the task's own chain to its score, and the mean over the tasks.

    A task's score depends on its own chain only (Eq. 7), which is a small part of the configuration, and a chain that
    came up in several configurations is one example. The spreads of the tasks' forests add up as if independent.

    Args:
        space: The configurations.
        known: What was evaluated.
        scores: The score of every task under each of them.
        seed: Seed of the forests.
        deviation: How much more tasks count whose guess is far from the mean, as in `weighted_score`.
    """
    forests = []
    for index, task in enumerate(space.tasks):
        features, first = np.unique(_chains(space, known, index), axis=0, return_index=True)
        forest = Surrogate((seed + index) % _SEEDS, trees=_TASK_TREES)
        forest.fit(features, [scores[number][task] for number in first])
        forests.append(forest)

    def guess(wanted: Sequence[Configuration]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        each, variance = np.zeros((len(forests), len(wanted))), np.zeros(len(wanted))
        for index, forest in enumerate(forests):
            features, places = np.unique(_chains(space, wanted, index), axis=0, return_inverse=True)
            guessed, spread = forest.predict(features)
            each[index] = guessed[places.ravel()]
            variance += spread[places.ravel()] ** 2
        if deviation:
            performances = [
                weighted_score(dict(zip(space.tasks, column, strict=True)), deviation) for column in each.T
            ]
            return np.asarray(performances), np.sqrt(variance) / len(forests)
        return each.sum(axis=0) / len(forests), np.sqrt(variance) / len(forests)

    return guess


def _chains(space: SearchSpace, configurations: Sequence[Configuration], task: int) -> NDArray[np.float64]:
    return np.stack([space.chain_features(configuration, task) for configuration in configurations])
