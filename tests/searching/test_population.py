"""First generations: as large as asked, from k-means or at random, and the same for the same seed."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_merge.searching.configuration import Configuration
from hf_merge.searching.population import kmeans_population, random_population
from hf_merge.searching.space import SearchSpace
from tests.searching.test_space import space_of


seeds = st.integers(0, 2**32 - 1)


def grams_of(space: SearchSpace, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    vectors = [rng.normal(size=(len(space.tasks), 12)) for _ in space.components]
    return [matrix @ matrix.T for matrix in vectors]


def test_kmeans_population_starts_with_the_extremes_and_the_diagonals() -> None:
    space = space_of(2, 5)
    population = kmeans_population(space, grams_of(space), 12, seed=0)
    assert population[:2] == [space.all_merged(), space.all_separate()]
    assert [[max(column) + 1 for column in c.grouping] for c in population[2:5]] == [[2, 2], [3, 3], [4, 4]]
    assert len(set(population)) == len(population) == 12


def test_kmeans_population_thins_the_diagonals_where_they_do_not_fit() -> None:
    space = space_of(1, 9)
    population = kmeans_population(space, grams_of(space), 5, seed=0)
    assert [max(c.grouping[0]) + 1 for c in population] == [1, 9, 2, 5, 8]
    assert kmeans_population(space, grams_of(space), 1, seed=0) == [space.all_merged()]


def test_kmeans_population_groups_similar_tasks() -> None:
    space = space_of(1, 4)
    points = np.array([[1.0, 0.0], [0.0, 1.0], [1.1, 0.0], [0.0, 1.1]])
    assert Configuration(((0, 1, 0, 1),)) in kmeans_population(space, [points @ points.T], 5, seed=0)


@pytest.mark.parametrize("shape", [(1, 1), (1, 2), (3, 1), (2, 2), (4, 2), (1, 4)])
def test_populations_are_as_large_as_asked_or_as_the_space(shape: tuple[int, int]) -> None:
    space = space_of(*shape)
    for population in (kmeans_population(space, grams_of(space), 20, 0), random_population(space, 20, 0)):
        assert len(population) == len(set(population)) == min(20, space.size)


def test_kmeans_population_fills_up_at_random_where_all_task_vectors_coincide() -> None:
    space = space_of(2, 4)
    population = kmeans_population(space, [np.zeros((4, 4))] * 2, 10, seed=0)
    assert len(set(population)) == 10


@given(seeds)
def test_populations_depend_on_the_seed_alone(seed: int) -> None:
    space = space_of(2, 4)
    assert random_population(space, 8, seed) == random_population(space, 8, seed)
    assert random_population(space, 8, seed)[:2] == [space.all_merged(), space.all_separate()]


def test_kmeans_population_repeats_itself() -> None:
    space = space_of(2, 5)
    grams = grams_of(space)
    assert kmeans_population(space, grams, 12, seed=3) == kmeans_population(space, grams, 12, seed=3)
    assert kmeans_population(space, grams, 12, seed=3) != kmeans_population(space, grams, 12, seed=4)


def test_kmeans_population_refuses_gram_matrices_of_another_space() -> None:
    space = space_of(2, 3)
    with pytest.raises(ValueError, match=r"Expected 2 Gram matrices of shape \(3, 3\)"):
        kmeans_population(space, grams_of(space)[:1], 4, seed=0)
    with pytest.raises(ValueError, match=r"not \[\(4, 4\), \(4, 4\)\]"):
        kmeans_population(space, grams_of(space_of(2, 4)), 4, seed=0)
