import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_merge.merging.grouping import (
    all_merged,
    all_separate,
    canonical,
    co_membership,
    groups,
    is_canonical,
    kmeans_partition,
    members_of,
    neighbour,
)


labels = st.lists(st.integers(-3, 6), min_size=1, max_size=9)
partitions = labels.map(canonical)
several = st.lists(st.integers(0, 6), min_size=2, max_size=9).map(canonical)
seeds = st.integers(0, 2**32 - 1)


def blocks(partition: tuple[int, ...]) -> set[frozenset[int]]:
    return {frozenset(group) for group in groups(partition)}


def test_canonical_renames_labels_by_first_appearance() -> None:
    assert canonical([7, 7, -1, 7, 3]) == (0, 0, 1, 0, 2)
    assert canonical(np.array([2, 0, 2])) == (0, 1, 0)  # type: ignore[arg-type]  # any sequence of integers serves
    assert canonical([]) == ()


@given(labels)
def test_canonical_is_idempotent_and_recognised(given_labels: list[int]) -> None:
    once = canonical(given_labels)
    assert canonical(once) == once
    assert is_canonical(once)
    assert is_canonical(given_labels) == (tuple(given_labels) == once)


@given(labels, st.permutations(range(-3, 7)))
def test_canonical_ignores_how_groups_are_labelled(given_labels: list[int], names: list[int]) -> None:
    assert canonical([names[label + 3] for label in given_labels]) == canonical(given_labels)


@given(labels)
def test_canonical_is_a_restricted_growth_string(given_labels: list[int]) -> None:
    partition = canonical(given_labels)
    for position, label in enumerate(partition):
        assert 0 <= label <= max(partition[:position], default=-1) + 1


@given(partitions)
def test_groups_partition_the_tasks(partition: tuple[int, ...]) -> None:
    found = groups(partition)
    assert sorted(task for group in found for task in group) == list(range(len(partition)))
    assert all(list(group) == sorted(group) for group in found)
    assert [partition[group[0]] for group in found] == list(range(len(found)))


@given(partitions)
def test_members_of_is_the_group_of_the_task(partition: tuple[int, ...]) -> None:
    for task in range(len(partition)):
        assert members_of(partition, task) in groups(partition)
        assert task in members_of(partition, task)


def test_the_extremes_hold_one_group_and_one_group_each() -> None:
    assert all_merged(4) == (0, 0, 0, 0)
    assert all_separate(4) == (0, 1, 2, 3)
    assert groups(all_merged(3)) == ((0, 1, 2),)
    assert groups(all_separate(3)) == ((0,), (1,), (2,))
    assert groups(()) == ()


def test_co_membership_lists_pairs_in_lexicographic_order() -> None:
    assert co_membership((0, 0, 1, 0)) == (1, 0, 1, 0, 1, 0)
    assert co_membership((0,)) == ()


@given(partitions, partitions)
def test_co_membership_tells_partitions_apart(first: tuple[int, ...], second: tuple[int, ...]) -> None:
    if len(first) == len(second):
        assert (co_membership(first) == co_membership(second)) == (first == second)


@given(several, seeds)
def test_neighbour_differs_and_is_canonical(partition: tuple[int, ...], seed: int) -> None:
    step = neighbour(partition, np.random.default_rng(seed))
    assert step != partition
    assert len(step) == len(partition)
    assert is_canonical(step)
    assert all(type(label) is int for label in step)


@given(several, seeds)
def test_neighbour_changes_at_most_four_groups(partition: tuple[int, ...], seed: int) -> None:
    step = neighbour(partition, np.random.default_rng(seed))
    assert len(blocks(partition) ^ blocks(step)) in (3, 4)


def test_neighbour_of_a_single_task_is_itself() -> None:
    assert neighbour((0,), np.random.default_rng(0)) == (0,)


def test_neighbours_connect_all_partitions_of_four_tasks() -> None:
    rng = np.random.default_rng(0)
    partition, reached = all_merged(4), set()
    for _ in range(600):
        partition = neighbour(partition, rng)
        reached.add(partition)
    assert len(reached) == 15


def test_neighbour_takes_all_four_steps() -> None:
    rng = np.random.default_rng(0)
    reached = {neighbour((0, 0, 1, 1), rng) for _ in range(200)}
    assert (0, 0, 0, 0) in reached, "merge"
    assert (0, 1, 2, 2) in reached, "split"
    assert (0, 1, 1, 1) in reached, "move"
    assert (0, 1, 0, 1) in reached, "swap"


def gram_of(points: list[list[float]]) -> np.ndarray:
    vectors = np.array(points)
    gram: np.ndarray = vectors @ vectors.T
    return gram


def test_kmeans_finds_clear_clusters() -> None:
    gram = gram_of([[10.0, 0.0], [0.0, 10.0], [10.1, 0.0], [0.0, 10.2], [-9.0, -9.0]])
    assert kmeans_partition(gram, 3, seed=0) == (0, 1, 0, 1, 2)
    assert kmeans_partition(gram, 1, seed=0) == (0, 0, 0, 0, 0)
    assert kmeans_partition(gram, 5, seed=0) == (0, 1, 2, 3, 4)


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_kmeans_does_not_depend_on_the_scale_of_the_task_vectors(scale: float) -> None:
    gram = gram_of([[1.0, 0.0], [0.0, 1.0], [1.1, 0.0], [0.1, 1.0]])
    assert kmeans_partition(gram * scale, 2, seed=0) == (0, 1, 0, 1)


def test_kmeans_gives_fewer_groups_where_task_vectors_coincide() -> None:
    assert kmeans_partition(np.zeros((4, 4)), 3, seed=0) == (0, 0, 0, 0)
    assert kmeans_partition(gram_of([[1.0], [1.0], [5.0]]), 3, seed=0) == (0, 0, 1)


def test_kmeans_bears_negative_eigenvalues_from_rounding() -> None:
    gram = np.ones((3, 3)) - 1e-9 * np.eye(3)
    gram[2] = gram[:, 2] = -1.0
    gram[2, 2] = 1.0
    assert np.linalg.eigvalsh(gram).min() < 0
    assert kmeans_partition(gram, 2, seed=0) == (0, 0, 1)


# The first example loads scikit-learn, which takes longer than hypothesis grants one.
@settings(deadline=None, max_examples=25)
@given(seeds, st.integers(2, 5))
def test_kmeans_repeats_itself(seed: int, clusters: int) -> None:
    gram = np.cov(np.random.default_rng(seed).normal(size=(5, 7)))
    first = kmeans_partition(gram, clusters, seed)
    assert first == kmeans_partition(gram, clusters, seed)
    assert is_canonical(first)
    assert max(first) < clusters


@pytest.mark.parametrize("clusters", [0, 4])
def test_kmeans_refuses_an_impossible_number_of_clusters(clusters: int) -> None:
    with pytest.raises(ValueError, match=f"clusters={clusters} lies outside 1 to 3"):
        kmeans_partition(np.eye(3), clusters, seed=0)


@pytest.mark.parametrize("gram", [np.ones((2, 3)), np.ones(4), np.full((2, 2), np.nan)])
def test_kmeans_refuses_what_is_no_gram_matrix(gram: np.ndarray) -> None:
    with pytest.raises(ValueError, match="finite square matrix"):
        kmeans_partition(gram, 1, seed=0)


def test_importing_grouping_loads_neither_torch_nor_sklearn() -> None:
    code = "import sys, hf_merge.merging.grouping; sys.exit(bool({'torch', 'sklearn'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
