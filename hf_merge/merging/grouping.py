"""Partitions of the tasks: their canonical form, their neighbourhood, and those that k-means proposes.

A partition says which tasks share one expert of a component. Group labels carry no meaning, so a partition is always
kept as a restricted growth string: the first task has label 0, and every new label is one more than the largest so
far. Equal partitions are then equal tuples.
"""

import warnings
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


Partition = tuple[int, ...]
"""One component's partition of the tasks, a restricted growth string of length T."""

Grouping = tuple[Partition, ...]
"""One partition per component: the columns of the matrix G [T, L]."""


def canonical(labels: Sequence[int]) -> Partition:
    """Returns the restricted growth string of the partition that `labels` describe.

    Args:
        labels: One label per task; any integers, equal ones meaning the same group.
    """
    renamed: dict[int, int] = {}
    return tuple(renamed.setdefault(int(label), len(renamed)) for label in labels)


def is_canonical(labels: Sequence[int]) -> bool:
    """Returns whether `labels` are a restricted growth string already."""
    return tuple(labels) == canonical(labels)


def groups(partition: Partition) -> tuple[tuple[int, ...], ...]:
    """Returns the task indices of every group, ascending, the groups in the order of their labels."""
    members: list[list[int]] = [[] for _ in range(max(partition, default=-1) + 1)]
    for task, label in enumerate(partition):
        members[label].append(task)
    return tuple(tuple(group) for group in members)


def all_merged(tasks: int) -> Partition:
    """Returns the partition that puts all `tasks` into one group."""
    return (0,) * tasks


def all_separate(tasks: int) -> Partition:
    """Returns the partition that gives each of the `tasks` a group of its own."""
    return tuple(range(tasks))


def members_of(partition: Partition, task: int) -> tuple[int, ...]:
    """Returns the indices of the tasks in the group of `task`, ascending, `task` included."""
    return tuple(other for other, label in enumerate(partition) if label == partition[task])


def co_membership(partition: Partition) -> tuple[int, ...]:
    """Returns T(T-1)/2 bits, one for each pair i < j in lexicographic order: 1 where the two tasks share a group."""
    tasks = range(len(partition))
    return tuple(int(partition[i] == partition[j]) for i in tasks for j in tasks[i + 1 :])


def neighbour(partition: Partition, rng: np.random.Generator) -> Partition:
    """Returns a different partition one step away, itself canonical; for a single task the partition itself.

    A step is drawn evenly from those that can change this partition: move one task to another or a new group, merge
    two groups, split a group in two, swap two tasks of different groups.

    Source: MERGE (arXiv 2602.06552), Algorithm 1, mutation; it names no steps, and these four connect all partitions.
    """
    sizes = [len(group) for group in groups(partition)]
    steps = []
    if len(partition) > 1:
        steps.append(_move)
    if len(sizes) > 1:
        steps.append(_merge)
    if any(size > 1 for size in sizes):
        steps.append(_split)
    if len(sizes) > 1 and max(sizes) > 1:
        steps.append(_swap)
    if not steps:
        return partition
    return canonical(steps[rng.integers(len(steps))](partition, rng))


def _move(partition: Partition, rng: np.random.Generator) -> list[int]:
    task = int(rng.integers(len(partition)))
    targets = set(partition) - {partition[task]}
    if len(members_of(partition, task)) > 1:
        targets.add(len(partition))
    labels = list(partition)
    labels[task] = int(rng.choice(sorted(targets)))
    return labels


def _merge(partition: Partition, rng: np.random.Generator) -> list[int]:
    kept, dissolved = rng.choice(max(partition) + 1, size=2, replace=False)
    return [int(kept) if label == dissolved else label for label in partition]


def _split(partition: Partition, rng: np.random.Generator) -> list[int]:
    divisible = [group for group in groups(partition) if len(group) > 1]
    group = rng.permutation(divisible[rng.integers(len(divisible))])
    labels = list(partition)
    for task in group[: rng.integers(1, len(group))]:
        labels[task] = len(partition)
    return labels


def _swap(partition: Partition, rng: np.random.Generator) -> list[int]:
    # Two tasks that are both alone would swap to the same partition: the first always has company.
    accompanied = [task for task in range(len(partition)) if len(members_of(partition, task)) > 1]
    first = int(rng.choice(accompanied))
    second = int(rng.choice([task for task, label in enumerate(partition) if label != partition[first]]))
    labels = list(partition)
    labels[first], labels[second] = labels[second], labels[first]
    return labels


def kmeans_partition(gram: NDArray[np.float64], clusters: int, seed: int) -> Partition:
    """Returns the partition that k-means finds among the tasks, from the inner products of their task vectors alone.

    Fewer groups than `clusters` come back where task vectors coincide. The result depends on the arguments only, not
    on the number of threads.

    Args:
        gram: Inner products of one component's task vectors, `[tasks, tasks] float64`, symmetric, finite.
        clusters: The number of groups asked for, from 1 to tasks.
        seed: Seed of the ten initialisations.

    Raises:
        ValueError: `gram` is not a finite square matrix, or `clusters` lies outside 1 to tasks.

    Source: MERGE (arXiv 2602.06552), Algorithm 1, line 1; the Gram matrix carries all distances between task vectors.
    """
    if gram.ndim != 2 or gram.shape[0] != gram.shape[1] or not np.isfinite(gram).all():
        raise ValueError(f"gram must be a finite square matrix [tasks, tasks], not one of shape {gram.shape}.")
    tasks = len(gram)
    if not 1 <= clusters <= tasks:
        raise ValueError(f"clusters={clusters} lies outside 1 to {tasks}, the number of tasks.")
    if clusters == 1:
        return all_merged(tasks)
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    kmeans = KMeans(n_clusters=clusters, n_init=10, random_state=seed, algorithm="lloyd")
    with warnings.catch_warnings():
        # Coinciding task vectors are no fault: fewer groups is then the right answer.
        warnings.simplefilter("ignore", ConvergenceWarning)
        return canonical(kmeans.fit_predict(_coordinates(gram)).tolist())


def _coordinates(gram: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns points `[tasks, tasks]` whose inner products are `gram`, up to one common factor."""
    values, vectors = np.linalg.eigh((gram + gram.T) / 2)
    # Where task vectors depend on each other, rounding leaves small eigenvalues of either sign instead of zeros; with
    # them, and without the last rounding, coinciding task vectors would become different points.
    largest = values[-1] if values[-1] > 0.0 else 1.0
    shares = np.where(values > len(gram) * np.finfo(np.float64).eps * largest, values / largest, 0.0)
    points: NDArray[np.float64] = vectors * np.sqrt(shares)
    return points.round(12)
