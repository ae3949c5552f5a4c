"""The configurations that a search chooses among: how they are drawn, varied, written as vectors and started from."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from hf_merge.merging.grouping import (
    Grouping,
    Partition,
    all_merged,
    all_separate,
    canonical,
    co_membership,
    groups,
    is_canonical,
    kmeans_partition,
    neighbour,
)


@dataclass(frozen=True)
class Configuration:
    """One point of the search space.

    Method and codec are the same for every component and stand outside it.

    Attributes:
        grouping: One canonical partition of the tasks per component.

    Raises:
        ValueError: A partition is not in canonical form, so that equal configurations would compare unequal.
    """

    grouping: Grouping

    def __post_init__(self) -> None:
        for partition in self.grouping:
            if not is_canonical(partition):
                raise ValueError(f"The partition {partition} is not in canonical form {canonical(partition)}.")


@dataclass(frozen=True)
class SearchSpace:
    """All configurations of the given components and tasks.

    Attributes:
        components: The components' names, in forward order; L of them.
        tasks: The tasks' names; T of them.
        shared: Those of the components that are not searched: every task has the base's own weights there, so that
            they always are one group.

    Raises:
        ValueError: There is no component to search, or no task.
    """

    components: tuple[str, ...]
    tasks: tuple[str, ...]
    shared: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        if not self.shared < set(self.components) or not self.tasks:
            raise ValueError(f"A search space needs components and tasks, not {self.components} and {self.tasks}.")

    @property
    def size(self) -> int:
        """The number of configurations: the Bell number of T to the power of L."""
        row = [1]
        for _ in self.tasks[1:]:
            extended = [row[-1]]
            for entry in row:
                extended.append(extended[-1] + entry)
            row = extended
        return int(row[-1] ** len(self.searched))

    @cached_property
    def searched(self) -> tuple[int, ...]:
        """The numbers of the components that are searched."""
        return tuple(index for index, name in enumerate(self.components) if name not in self.shared)

    def encode(self, configuration: Configuration) -> NDArray[np.int64]:
        """Returns the labels as a vector `[components * tasks] int64`, one component after the other."""
        return np.array(configuration.grouping, dtype=np.int64).reshape(-1)

    def decode(self, vector: NDArray[np.int64]) -> Configuration:
        """Returns the configuration of a vector `[components * tasks]` of any integer labels, in canonical form."""
        columns = np.asarray(vector).reshape(len(self.components), len(self.tasks)).tolist()
        return Configuration(tuple(canonical(column) for column in columns))

    def uniform(self, partition: Partition) -> Configuration:
        """Returns the configuration with the same `partition` in every component."""
        return self.configuration([partition] * len(self.searched))

    def configuration(self, partitions: Sequence[Partition]) -> Configuration:
        """Returns the configuration with these partitions in the components that are searched."""
        columns = [all_merged(len(self.tasks))] * len(self.components)
        for index, partition in zip(self.searched, partitions, strict=True):
            columns[index] = partition
        return Configuration(tuple(columns))

    def all_merged(self) -> Configuration:
        """Returns the cheapest grouping: one group for all tasks in every component."""
        return self.uniform(all_merged(len(self.tasks)))

    def all_separate(self) -> Configuration:
        """Returns the most expensive grouping: a group for each task in every component."""
        return self.uniform(all_separate(len(self.tasks)))

    def random(self, rng: np.random.Generator) -> Configuration:
        """Returns a random configuration: for each component an even draw of 1 to T groups, filled at random."""
        return self.configuration([self._random_partition(rng) for _ in self.searched])

    def _random_partition(self, rng: np.random.Generator) -> Partition:
        tasks = len(self.tasks)
        count = int(rng.integers(1, tasks + 1))
        labels = np.concatenate([np.arange(count), rng.integers(count, size=tasks - count)])
        return canonical(rng.permutation(labels).tolist())

    def features(self, configuration: Configuration) -> NDArray[np.float64]:
        """Returns what a surrogate learns from, `[components * (T(T-1)/2 + 1 + T)] float64`.

        For each component: the co-membership bits, the number of groups, and the group sizes, largest first, padded
        with zeros.
        """
        rows: list[int] = []
        for partition in configuration.grouping:
            sizes = sorted((len(group) for group in groups(partition)), reverse=True)
            rows += [*co_membership(partition), len(sizes), *sizes, *[0] * (len(self.tasks) - len(sizes))]
        return np.array(rows, dtype=np.float64)

    def chain_features(self, configuration: Configuration, task: int) -> NDArray[np.float64]:
        """Returns what a surrogate learns a single task's score from, `[components * tasks] float64`.

        For each component: whether each of the other tasks shares the task's expert, and how many do.

        Args:
            configuration: The configuration.
            task: The task's number.
        """
        columns = self._columns(configuration)
        shared = columns == columns[:, [task]]
        rows = np.concatenate([np.delete(shared, task, axis=1), shared.sum(axis=1, keepdims=True) - 1], axis=1)
        return rows.astype(np.float64).reshape(-1)

    def crossover(
        self, first: Configuration, second: Configuration, rng: np.random.Generator, *, row_swap: float = 0.2
    ) -> tuple[Configuration, Configuration]:
        """Returns two children that share out the parents' columns.

        Each component's whole column goes to one child or the other with even odds, because labels mean something only
        inside a column. With probability `row_swap`, in [0, 1], the children then exchange the label of one task in
        one column.

        Source: MERGE (arXiv 2602.06552), Algorithm 1, crossover on G.
        """
        columns = np.stack([self._columns(first), self._columns(second)])
        exchanged = rng.random(len(self.components)) < 0.5
        columns[:, exchanged] = columns[::-1, exchanged]
        if rng.random() < row_swap:
            component, task = self.searched[rng.integers(len(self.searched))], rng.integers(len(self.tasks))
            columns[:, component, task] = columns[::-1, component, task]
        return self.decode(columns[0]), self.decode(columns[1])

    def _columns(self, configuration: Configuration) -> NDArray[np.int64]:
        return self.encode(configuration).reshape(len(self.components), len(self.tasks))

    def mutate(self, configuration: Configuration, rng: np.random.Generator) -> Configuration:
        """Returns a configuration in which each column steps to a neighbour with probability 1/L, at least one does.

        With a single task there is nothing to change and the configuration itself comes back.
        """
        chosen = rng.random(len(self.searched)) < 1.0 / len(self.searched)
        if not chosen.any():
            chosen[rng.integers(len(self.searched))] = True
        columns = zip((configuration.grouping[index] for index in self.searched), chosen, strict=True)
        return self.configuration([neighbour(column, rng) if steps else column for column, steps in columns])


def random_population(space: SearchSpace, size: int, seed: int) -> list[Configuration]:
    """Returns the two extremes and random configurations, `size` distinct ones, or the whole space if that is smaller.

    Args:
        space: The configurations to draw from.
        size: How many to return, 1 or more.
        seed: Seed of the draws.
    """
    chosen = dict.fromkeys([space.all_merged(), space.all_separate()])
    return _filled(space, chosen, size, np.random.default_rng(seed))


def kmeans_population(
    space: SearchSpace, grams: Sequence[NDArray[np.float64]], size: int, seed: int
) -> list[Configuration]:
    """Returns `size` distinct configurations from k-means on the task vectors, or the whole space if that is smaller.

    First the two extremes; then those with the same number of groups k in every component, k from 2 to T-1 (evenly
    thinned where `size` does not hold them all); then a k drawn for each component. Where k-means has no more to give,
    random configurations fill up.

    Args:
        space: The configurations to draw from.
        grams: One Gram matrix of task vectors `[tasks, tasks] float64` per component.
        size: How many to return, 1 or more.
        seed: Seed of k-means and of the draws.

    Raises:
        ValueError: The Gram matrices do not fit the space.

    Source: MERGE (arXiv 2602.06552), Algorithm 1, line 1; the numbers of groups, which it leaves open, are ours.
    """
    tasks = len(space.tasks)
    if len(grams) != len(space.components) or any(gram.shape != (tasks, tasks) for gram in grams):
        raise ValueError(
            f"Expected {len(space.components)} Gram matrices of shape {(tasks, tasks)}, one per component, "
            f"not {[gram.shape for gram in grams]}."
        )
    found: dict[tuple[int, int], Partition] = {}

    def clustered(counts: Sequence[int]) -> Configuration:
        keys = list(zip(space.searched, counts, strict=True))
        for key in keys:
            if key not in found:
                found[key] = kmeans_partition(grams[key[0]], key[1], seed)
        return space.configuration([found[key] for key in keys])

    rng = np.random.default_rng(seed)
    chosen = dict.fromkeys([space.all_merged(), space.all_separate()])
    diagonals = np.linspace(2, tasks - 1, num=max(0, min(tasks - 2, size - 2)))
    chosen |= dict.fromkeys(clustered([int(k)] * len(space.searched)) for k in diagonals.round())
    for _ in range(20 * size):
        if len(chosen) >= size:
            break
        chosen[clustered(rng.integers(1, tasks + 1, size=len(space.searched)).tolist())] = None
    return _filled(space, chosen, size, rng)


def _filled(
    space: SearchSpace, chosen: dict[Configuration, None], size: int, rng: np.random.Generator
) -> list[Configuration]:
    while len(chosen) < min(size, space.size):
        chosen[space.random(rng)] = None
    return list(chosen)[:size]
