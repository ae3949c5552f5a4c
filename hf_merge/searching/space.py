"""The configurations that a search chooses among: how they are drawn, varied and written as vectors.

A configuration has for every component a partition of the tasks, and where several merge methods are searched the
number of one of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from hf_merge.merging.grouping import (
    Partition,
    all_merged,
    all_separate,
    canonical,
    co_membership,
    groups,
    neighbour,
)
from hf_merge.searching.configuration import Configuration, is_separate


@dataclass(frozen=True)
class SearchSpace:
    """All configurations of the given components and tasks.

    Attributes:
        components: The components' names, in forward order; L of them.
        tasks: The tasks' names; T of them.
        shared: Those of the components that are not searched: every task has the base's own weights there, so that
            they always are one group.
        methods: How many merge methods each component's groups may be merged by.
        merged: Whether every component is one group, so that the methods alone are searched (AutoMerge).

    Raises:
        ValueError: There is no component to search, no task, or no method.
    """

    components: tuple[str, ...]
    tasks: tuple[str, ...]
    shared: frozenset[str] = frozenset()
    methods: int = 1
    merged: bool = False

    def __post_init__(self) -> None:
        if not self.shared < set(self.components) or not self.tasks or self.methods < 1:
            raise ValueError(
                f"A search space needs components, tasks and methods, not {self.components}, {self.tasks} and "
                f"{self.methods}."
            )

    @property
    def size(self) -> int:
        """The number of configurations: what a component offers, to the power of L.

        It offers every partition (the Bell number of T) with every method, but all tasks apart only once.
        """
        if self.merged:
            return int((self.methods if len(self.tasks) > 1 else 1) ** len(self.searched))
        row = [1]
        for _ in self.tasks[1:]:
            extended = [row[-1]]
            for entry in row:
                extended.append(extended[-1] + entry)
            row = extended
        return int(((row[-1] - 1) * self.methods + 1) ** len(self.searched))

    @cached_property
    def searched(self) -> tuple[int, ...]:
        """The numbers of the components that are searched."""
        return tuple(index for index, name in enumerate(self.components) if name not in self.shared)

    def encode(self, configuration: Configuration) -> NDArray[np.int64]:
        """Returns a configuration as a vector `[genes] int64`: the labels, component by component, then methods.

        There are `components * tasks` labels, and where several methods are searched `components` of them.
        """
        return np.array([*chain.from_iterable(configuration.grouping), *configuration.methods], dtype=np.int64)

    @property
    def genes(self) -> int:
        """The length of a configuration's vector."""
        return len(self.components) * (len(self.tasks) + (self.methods > 1))

    def decode(self, vector: NDArray[np.int64]) -> Configuration:
        """Returns the configuration of a vector `[genes]` of any integer labels and methods, in canonical form."""
        labels, methods = np.split(np.asarray(vector), [len(self.components) * len(self.tasks)])
        columns = labels.reshape(len(self.components), len(self.tasks)).tolist()
        return self._canonical([canonical(column) for column in columns], methods.tolist())

    def _canonical(self, grouping: Sequence[Partition], methods: Sequence[int]) -> Configuration:
        """Returns a configuration with method 0 where nothing is merged, and none where one is for all."""
        if self.methods == 1:
            return Configuration(tuple(grouping))
        kept = (
            0 if is_separate(partition) or name in self.shared else int(method) % self.methods
            for name, partition, method in zip(self.components, grouping, methods, strict=True)
        )
        return Configuration(tuple(grouping), tuple(kept))

    def uniform(self, partition: Partition, method: int = 0) -> Configuration:
        """Returns the configuration with the same `partition` and method in every component."""
        return self.configuration([partition] * len(self.searched), [method] * len(self.searched))

    def configuration(self, partitions: Sequence[Partition], methods: Sequence[int] = ()) -> Configuration:
        """Returns the configuration with these partitions and methods in the components that are searched.

        Without methods it is the first everywhere.
        """
        columns, chosen = [all_merged(len(self.tasks))] * len(self.components), [0] * len(self.components)
        for place, index in enumerate(self.searched):
            columns[index] = partitions[place]
            chosen[index] = methods[place] if methods else 0
        return self._canonical(columns, chosen)

    def all_merged(self, method: int = 0) -> Configuration:
        """Returns the cheapest grouping: one group for all tasks in every component, merged by one method."""
        return self.uniform(all_merged(len(self.tasks)), method)

    def all_separate(self) -> Configuration:
        """Returns the most expensive grouping: a group for each task in every component."""
        return self.uniform(all_separate(len(self.tasks)))

    def random(self, rng: np.random.Generator) -> Configuration:
        """Returns a random configuration: for each component an even draw of 1 to T groups, filled at random.

        Methods, where there are several, are drawn evenly.
        """
        partitions = [self._random_partition(rng) for _ in self.searched]
        return self.configuration(partitions, self.random_methods(rng))

    def random_methods(self, rng: np.random.Generator) -> list[int]:
        """Returns a method for each searched component, drawn evenly; none where there is one for all."""
        return rng.integers(self.methods, size=len(self.searched)).tolist() if self.methods > 1 else []

    def _random_partition(self, rng: np.random.Generator) -> Partition:
        tasks = len(self.tasks)
        if self.merged:
            return all_merged(tasks)
        count = int(rng.integers(1, tasks + 1))
        labels = np.concatenate([np.arange(count), rng.integers(count, size=tasks - count)])
        return canonical(rng.permutation(labels).tolist())

    def features(self, configuration: Configuration) -> NDArray[np.float64]:
        """Returns what a surrogate learns from, `[components * (T(T-1)/2 + 1 + T)] float64`.

        For each component: the co-membership bits, the number of groups, and the group sizes, largest first, padded
        with zeros. Where several methods are searched, for each component and method whether it is used besides.
        """
        rows: list[int] = []
        for partition in configuration.grouping:
            sizes = sorted((len(group) for group in groups(partition)), reverse=True)
            rows += [*co_membership(partition), len(sizes), *sizes, *[0] * (len(self.tasks) - len(sizes))]
        merges = [not is_separate(partition) for partition in configuration.grouping]
        return np.array(rows + self._method_bits(configuration, merges), dtype=np.float64)

    def _method_bits(self, configuration: Configuration, merges: Sequence[bool]) -> list[int]:
        """Returns for each component and method whether it is used, where `merges` says that anything is merged."""
        if self.methods == 1:
            return []
        return [
            int(merged and configuration.method(index) == method)
            for index, merged in enumerate(merges)
            for method in range(self.methods)
        ]

    def chain_features(self, configuration: Configuration, task: int) -> NDArray[np.float64]:
        """Returns what a surrogate learns a single task's score from, `[components * tasks] float64`.

        For each component: whether each of the other tasks shares the task's expert, and how many do. Where several
        methods are searched, for each component and method whether the task's expert is merged by it besides.

        Args:
            configuration: The configuration.
            task: The task's number.
        """
        columns = self._columns(configuration)
        shared = columns == columns[:, [task]]
        others = shared.sum(axis=1, keepdims=True) - 1
        rows = np.concatenate([np.delete(shared, task, axis=1), others], axis=1)
        bits = self._method_bits(configuration, (others[:, 0] > 0).tolist())
        return np.concatenate([rows.reshape(-1), bits]).astype(np.float64)

    def crossover(
        self, first: Configuration, second: Configuration, rng: np.random.Generator, *, row_swap: float = 0.2
    ) -> tuple[Configuration, Configuration]:
        """Returns two children that share out the parents' columns.

        Each component's whole column, its method too, goes to one child or the other with even odds, because labels
        mean something only inside a column. With probability `row_swap`, in [0, 1], the children then exchange the
        label of one task in one column.

        Source: MERGE (arXiv 2602.06552), Algorithm 1, crossover on G.
        """
        columns = np.stack([self._columns(first), self._columns(second)])
        methods = np.array([self._methods(first), self._methods(second)])
        exchanged = rng.random(len(self.components)) < 0.5
        columns[:, exchanged] = columns[::-1, exchanged]
        methods[:, exchanged] = methods[::-1, exchanged]
        if rng.random() < row_swap:
            component, task = self.searched[rng.integers(len(self.searched))], rng.integers(len(self.tasks))
            columns[:, component, task] = columns[::-1, component, task]
        return self._child(columns[0], methods[0]), self._child(columns[1], methods[1])

    def _child(self, columns: NDArray[np.int64], methods: NDArray[np.int64]) -> Configuration:
        return self._canonical([canonical(column) for column in columns.tolist()], methods.tolist())

    def _columns(self, configuration: Configuration) -> NDArray[np.int64]:
        """Returns the labels, [components, tasks]."""
        return np.array(configuration.grouping, dtype=np.int64)

    def _methods(self, configuration: Configuration) -> list[int]:
        return [configuration.method(index) for index in range(len(self.components))]

    def mutate(self, configuration: Configuration, rng: np.random.Generator) -> Configuration:
        """Returns a configuration in which each column steps to a neighbour with probability 1/L, at least one does.

        Where there is a choice of methods, every other step changes the method instead; where all tasks are merged
        everywhere, each does. With a single task there is nothing to change and the configuration itself comes back.
        """
        chosen = rng.random(len(self.searched)) < 1.0 / len(self.searched)
        if not chosen.any():
            chosen[rng.integers(len(self.searched))] = True
        columns, methods = [], []
        for index, steps in zip(self.searched, chosen, strict=True):
            column, method = configuration.grouping[index], configuration.method(index)
            if steps and self._changes_method(column, rng):
                method = (method + int(rng.integers(1, self.methods))) % self.methods
            elif steps and not self.merged:
                column = neighbour(column, rng)
            columns.append(column)
            methods.append(method)
        return self.configuration(columns, methods)

    def _changes_method(self, column: Partition, rng: np.random.Generator) -> bool:
        """Returns whether a step changes the method rather than the partition."""
        if self.methods == 1 or is_separate(column):
            return False
        return self.merged or rng.random() < 0.5
