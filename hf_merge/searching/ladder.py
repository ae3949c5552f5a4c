"""A greedy ladder of configurations, from every task alone down to one group for all, without a single evaluation.

Source: greedy pairwise merging of blocks as in FlexMerge (ICLR 2026); here the most similar pair of all components is
merged next, by the cosine between the groups' summed task vectors.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from hf_merge.merging.grouping import canonical
from hf_merge.searching.configuration import Configuration
from hf_merge.searching.space import SearchSpace


def ladder(space: SearchSpace, grams: Sequence[NDArray[np.float64]], size: int) -> list[Configuration]:
    """Returns at most `size` configurations, evenly spread over the ladder's steps, both ends included.

    Args:
        space: The configurations to choose among.
        grams: One Gram matrix of task vectors [tasks, tasks] float64 per component.
        size: How many to return, 2 or more.
    """
    columns = [_Column(grams[index]) for index in space.searched]
    steps = [_configuration(space, columns)]
    while any(len(column.groups) > 1 for column in columns):
        closest = max(columns, key=lambda column: column.similarity)
        closest.merge()
        steps.append(_configuration(space, columns))
    chosen = np.unique(np.linspace(0, len(steps) - 1, num=size).round().astype(int))
    return [steps[index] for index in chosen]


def _configuration(space: SearchSpace, columns: Sequence["_Column"]) -> Configuration:
    return space.configuration([column.partition() for column in columns])


class _Column:
    """The groups of one component, and the two of them that are most alike.

    Attributes:
        groups: Task numbers by group.
        similarity: The cosine between the summed task vectors of the closest two; minus infinity where one is left.
    """

    def __init__(self, gram: NDArray[np.float64]) -> None:
        self._tasks = len(gram)
        self._sums = np.array(gram, dtype=np.float64)  # inner products of the groups' sums
        self.groups = [[task] for task in range(self._tasks)]
        self._find()

    def merge(self) -> None:
        """Joins the closest two groups."""
        first, second = self._pair
        self.groups[first] += self.groups.pop(second)
        self._sums[first] += self._sums[second]
        self._sums[:, first] += self._sums[:, second]
        self._sums = np.delete(np.delete(self._sums, second, axis=0), second, axis=1)
        self._find()

    def partition(self) -> tuple[int, ...]:
        """Returns the partition in canonical form."""
        labels = [0] * self._tasks
        for label, group in enumerate(self.groups):
            for task in group:
                labels[task] = label
        return canonical(labels)

    def _find(self) -> None:
        lengths = np.sqrt(np.maximum(np.diagonal(self._sums), 0.0))
        scale = np.outer(lengths, lengths)
        # Two groups that both are the base are equal, which no angle says.
        equal = np.logical_and.outer(lengths == 0.0, lengths == 0.0).astype(np.float64)
        cosines = np.divide(self._sums, scale, out=equal, where=scale > 0.0)
        cosines[np.tril_indices(len(cosines))] = -np.inf
        first, second = np.unravel_index(int(np.argmax(cosines)), cosines.shape)
        self._pair = int(first), int(second)
        self.similarity = float(cosines[first, second])
