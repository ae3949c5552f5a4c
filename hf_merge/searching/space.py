"""The configurations that a search chooses among: how they are drawn, varied and written as vectors.

A configuration has for every component a partition of the tasks, and where several merge methods or codecs are
searched the number of one of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from math import prod

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
        codecs: How many codecs each component's experts may be stored by.
        residual: The numbers of the residual codecs, which store the differences from what all tasks become merged. A
            component of one group has none, for its expert is what all tasks become merged.
        whole: Components with the numbers of the residual codecs that quantise none of their tensors, such as norms:
            they have no difference to store by these either.

    Raises:
        ValueError: There is no component to search, no task, no method, no codec, or the first codec is residual.
    """

    components: tuple[str, ...]
    tasks: tuple[str, ...]
    shared: frozenset[str] = frozenset()
    methods: int = 1
    merged: bool = False
    codecs: int = 1
    residual: frozenset[int] = frozenset()
    whole: frozenset[tuple[str, int]] = frozenset()

    def __post_init__(self) -> None:
        if not self.residual <= set(range(1, self.codecs)):
            raise ValueError(f"Of {self.codecs} codecs {set(self.residual)} cannot be residual; the first never is.")
        if not self.shared < set(self.components) or not self.tasks or min(self.methods, self.codecs) < 1:
            raise ValueError(
                f"A search space needs components, tasks, methods and codecs, not {self.components}, {self.tasks}, "
                f"{self.methods} and {self.codecs}."
            )

    @property
    def size(self) -> int:
        """The number of configurations: the product of what each component offers.

        It offers every partition (the Bell number of T) with every method, but all tasks apart only once; and all that
        with every codec. With a residual codec it offers every partition but one group, and with every method; with
        one that quantises none of its tensors, nothing.
        """
        plain = self.codecs - len(self.residual)
        if self.merged:
            return int(((self.methods if len(self.tasks) > 1 else 1) * plain) ** len(self.searched))
        row = [1]
        for _ in self.tasks[1:]:
            extended = [row[-1]]
            for entry in row:
                extended.append(extended[-1] + entry)
            row = extended
        grouped = (row[-1] - 1) * self.methods
        names = [self.components[index] for index in self.searched]
        differing = [sum((name, codec) not in self.whole for codec in self.residual) for name in names]
        return prod(int((grouped + 1) * plain + grouped * count) for count in differing)

    @cached_property
    def searched(self) -> tuple[int, ...]:
        """The numbers of the components that are searched."""
        return tuple(index for index, name in enumerate(self.components) if name not in self.shared)

    def encode(self, configuration: Configuration) -> NDArray[np.int64]:
        """Returns a configuration as a vector `[genes] int64`: labels by component, then methods and codecs.

        There are `components * tasks` labels, and where several methods or codecs are searched `components` of each.
        """
        labels = chain.from_iterable(configuration.grouping)
        return np.array([*labels, *configuration.methods, *configuration.codecs], dtype=np.int64)

    @property
    def genes(self) -> int:
        """The length of a configuration's vector."""
        return len(self.components) * (len(self.tasks) + (self.methods > 1) + (self.codecs > 1))

    def decode(self, vector: NDArray[np.int64]) -> Configuration:
        """Returns the configuration of a vector `[genes]` of any integers, in canonical form."""
        count, width = len(self.components), len(self.components) * len(self.tasks)
        labels, rest = np.split(np.asarray(vector), [width])
        methods, codecs = np.split(rest, [count if self.methods > 1 else 0])
        columns = [canonical(column) for column in labels.reshape(count, len(self.tasks)).tolist()]
        return self._canonical(columns, methods.tolist(), codecs.tolist())

    def _canonical(
        self, grouping: Sequence[Partition], methods: Sequence[int], codecs: Sequence[int]
    ) -> Configuration:
        """Returns a configuration with method 0 where nothing is merged, and no numbers where there is no choice."""
        stored = [0] * len(grouping)
        if self.codecs > 1:
            stored = [self._codec(*each) for each in zip(self.components, grouping, codecs, strict=True)]
        kept = (
            int(method) % self.methods if name not in self.shared and self._merges(partition, codec) else 0
            for name, partition, method, codec in zip(self.components, grouping, methods, stored, strict=False)
        )
        return Configuration(
            tuple(grouping),
            tuple(kept) if self.methods > 1 else (),
            tuple(stored) if self.codecs > 1 else (),
        )

    def _codec(self, component: str, partition: Partition, codec: int) -> int:
        """Returns a component's codec: the first where there is no choice, or no difference to store."""
        number = int(codec) % self.codecs
        no_difference = number in self.residual and (max(partition) == 0 or (component, number) in self.whole)
        return 0 if component in self.shared or no_difference else number

    def _merges(self, partition: Partition, codec: int) -> bool:
        """Returns whether a method matters: where a group is merged, or all are for differences to be taken from."""
        return codec in self.residual or not is_separate(partition)

    def uniform(self, partition: Partition, method: int = 0, codec: int = 0) -> Configuration:
        """Returns the configuration with the same `partition`, method and codec in every component."""
        count = len(self.searched)
        return self.configuration([partition] * count, [method] * count, [codec] * count)

    def configuration(
        self, partitions: Sequence[Partition], methods: Sequence[int] = (), codecs: Sequence[int] = ()
    ) -> Configuration:
        """Returns the configuration with these partitions, methods and codecs in the components that are searched.

        Without methods or codecs it is the first everywhere.
        """
        columns = [all_merged(len(self.tasks))] * len(self.components)
        chosen, stored = [0] * len(self.components), [0] * len(self.components)
        for place, index in enumerate(self.searched):
            columns[index] = partitions[place]
            chosen[index] = methods[place] if methods else 0
            stored[index] = codecs[place] if codecs else 0
        return self._canonical(columns, chosen, stored)

    def all_merged(self, method: int = 0, codec: int = 0) -> Configuration:
        """Returns the cheapest grouping: one group for all tasks in every component, merged and stored in one way."""
        return self.uniform(all_merged(len(self.tasks)), method, codec)

    def all_separate(self, codec: int = 0) -> Configuration:
        """Returns the most expensive grouping: a group for each task in every component."""
        return self.uniform(all_separate(len(self.tasks)), codec=codec)

    def random(self, rng: np.random.Generator) -> Configuration:
        """Returns a random configuration: for each component an even draw of 1 to T groups, filled at random.

        Methods and codecs, where there are several, are drawn evenly.
        """
        partitions = [self._random_partition(rng) for _ in self.searched]
        return self.configuration(partitions, *self.random_choices(rng))

    def random_choices(self, rng: np.random.Generator) -> tuple[list[int], list[int]]:
        """Returns a method and a codec for each searched component, drawn evenly; none where there is no choice."""
        methods, codecs = (
            rng.integers(count, size=len(self.searched)).tolist() if count > 1 else []
            for count in (self.methods, self.codecs)
        )
        return methods, codecs

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
        with zeros. Where several methods or codecs are searched, for each component whether each of them is used.
        """
        rows: list[int] = []
        for partition in configuration.grouping:
            sizes = sorted((len(group) for group in groups(partition)), reverse=True)
            rows += [*co_membership(partition), len(sizes), *sizes, *[0] * (len(self.tasks) - len(sizes))]
        merges = [
            self._merges(partition, configuration.codec(index))
            for index, partition in enumerate(configuration.grouping)
        ]
        return np.array(rows + self._choice_bits(configuration, merges), dtype=np.float64)

    def _choice_bits(self, configuration: Configuration, merges: Sequence[bool]) -> list[int]:
        """Returns for each component which method it uses, where `merges` says that anything is, and which codec."""
        methods = [
            int(merged and configuration.method(index) == method)
            for index, merged in enumerate(merges)
            for method in range(self.methods)
        ]
        codecs = [
            int(configuration.codec(index) == codec) for index in range(len(merges)) for codec in range(self.codecs)
        ]
        return (methods if self.methods > 1 else []) + (codecs if self.codecs > 1 else [])

    def chain_features(self, configuration: Configuration, task: int) -> NDArray[np.float64]:
        """Returns what a surrogate learns a single task's score from, `[components * tasks] float64`.

        For each component: whether each of the other tasks shares the task's expert, and how many do. Where several
        methods or codecs are searched, for each component whether the task's expert is merged or stored by each of
        them besides.

        Args:
            configuration: The configuration.
            task: The task's number.
        """
        columns = self._columns(configuration)
        shared = columns == columns[:, [task]]
        others = shared.sum(axis=1, keepdims=True) - 1
        rows = np.concatenate([np.delete(shared, task, axis=1), others], axis=1)
        merges = [
            bool(count) or configuration.codec(index) in self.residual for index, count in enumerate(others[:, 0])
        ]
        bits = self._choice_bits(configuration, merges)
        return np.concatenate([rows.reshape(-1), bits]).astype(np.float64)

    def crossover(
        self, first: Configuration, second: Configuration, rng: np.random.Generator, *, row_swap: float = 0.2
    ) -> tuple[Configuration, Configuration]:
        """Returns two children that share out the parents' columns.

        Each component's whole column, its method and codec too, goes to one child or the other, because labels
        mean something only inside a column. With probability `row_swap`, in [0, 1], the children then exchange the
        label of one task in one column.

        Source: MERGE (arXiv 2602.06552), Algorithm 1, crossover on G.
        """
        columns = np.stack([self._columns(first), self._columns(second)])
        chosen = np.array([self._choices(first), self._choices(second)])
        exchanged = rng.random(len(self.components)) < 0.5
        columns[:, exchanged] = columns[::-1, exchanged]
        chosen[:, exchanged] = chosen[::-1, exchanged]
        if rng.random() < row_swap:
            component, task = self.searched[rng.integers(len(self.searched))], rng.integers(len(self.tasks))
            columns[:, component, task] = columns[::-1, component, task]
        return self._child(columns[0], chosen[0]), self._child(columns[1], chosen[1])

    def _child(self, columns: NDArray[np.int64], chosen: NDArray[np.int64]) -> Configuration:
        partitions = [canonical(column) for column in columns.tolist()]
        return self._canonical(partitions, chosen[:, 0].tolist(), chosen[:, 1].tolist())

    def _columns(self, configuration: Configuration) -> NDArray[np.int64]:
        """Returns the labels, [components, tasks]."""
        return np.array(configuration.grouping, dtype=np.int64)

    def _choices(self, configuration: Configuration) -> list[tuple[int, int]]:
        """Returns method and codec of every component, [components, 2]."""
        return [(configuration.method(index), configuration.codec(index)) for index in range(len(self.components))]

    def mutate(self, configuration: Configuration, rng: np.random.Generator) -> Configuration:
        """Returns a configuration in which each column steps to a neighbour with probability 1/L, at least one does.

        Where there is a choice of methods or codecs, a step changes the partition, the method or the codec with even
        odds; where all tasks are merged everywhere, never the partition. With a single task and no choice there is
        nothing to change and the configuration itself comes back.
        """
        chosen = rng.random(len(self.searched)) < 1.0 / len(self.searched)
        if not chosen.any():
            chosen[rng.integers(len(self.searched))] = True
        columns, methods, codecs = [], [], []
        for index, steps in zip(self.searched, chosen, strict=True):
            column, method, codec = (
                configuration.grouping[index],
                configuration.method(index),
                configuration.codec(index),
            )
            change = self._change(index, column, codec, rng) if steps else ""
            columns.append(neighbour(column, rng) if change == "partition" else column)
            methods.append(_other(method, range(self.methods), rng) if change == "method" else method)
            codecs.append(_other(codec, self._offered(index), rng) if change == "codec" else codec)
        return self.configuration(columns, methods, codecs)

    def _offered(self, index: int) -> list[int]:
        """Returns the codecs that a component may be stored by in some partition."""
        name = self.components[index]
        without = self.residual if self.merged else {codec for each, codec in self.whole if each == name}
        return [codec for codec in range(self.codecs) if codec not in without]

    def _change(self, index: int, column: Partition, codec: int, rng: np.random.Generator) -> str:
        """Returns what a step changes: the partition, the method or the codec."""
        offered = {
            "partition": not self.merged,
            "method": self.methods > 1 and self._merges(column, codec),
            "codec": len(self._offered(index)) > 1,
        }
        kinds = [kind for kind, possible in offered.items() if possible]
        return kinds[int(rng.integers(len(kinds)))] if len(kinds) > 1 else "".join(kinds)


def _other(number: int, offered: Sequence[int], rng: np.random.Generator) -> int:
    """Returns another of the rising numbers that are offered, drawn evenly."""
    return offered[(offered.index(number) + int(rng.integers(1, len(offered)))) % len(offered)]
