import contextlib
import io
import math
from collections.abc import Iterable
from itertools import combinations

import numpy as np
import pytest

from hf_merge.merging.grouping import groups
from hf_merge.searching.configuration import Configuration
from hf_merge.searching.nsga2 import Nsga2
from hf_merge.searching.pareto import Reference, dominates, hypervolume
from hf_merge.searching.population import random_population
from hf_merge.searching.space import SearchSpace


SPACE = SearchSpace(("attention", "mlp"), ("a", "b", "c", "d"))


def cost_of(configuration: Configuration) -> float:
    return sum(len(groups(column)) for column in configuration.grouping) / 8


def pairs_of(column: tuple[int, ...]) -> list[tuple[int, int]]:
    return [pair for group in groups(column) for pair in combinations(group, 2)]


def performance_of(configuration: Configuration) -> float:
    """The first half of the tasks and the second may share an expert for nothing; every other pair costs."""
    half = len(configuration.grouping[0]) // 2
    return 1.0 - sum(i < half <= j for column in configuration.grouping for i, j in pairs_of(column)) / 8


def tell(search: Nsga2, configurations: list[Configuration]) -> None:
    search.tell(configurations, [cost_of(c) for c in configurations], [performance_of(c) for c in configurations])


def run(search: Nsga2, generations: int, evaluated: int = 100) -> list[list[Configuration]]:
    asked = []
    for _ in range(generations):
        asked.append(search.ask())
        tell(search, asked[-1][:evaluated])
    return asked


def started(seed: int = 0, population: int = 6, offspring: int = 8, space: SearchSpace = SPACE) -> Nsga2:
    return Nsga2(space, random_population(space, population, 0), population, offspring, seed)


def test_the_first_ask_is_the_initial_population_without_repeats() -> None:
    initial = random_population(SPACE, 5, 0)
    search = Nsga2(SPACE, [*initial, initial[0]], 6, 8, 0)
    assert search.ask() == initial
    assert search.ask() == initial
    assert search.population == []


def test_later_asks_are_new_and_distinct() -> None:
    search = started()
    known: set[Configuration] = set()
    for asked in run(search, 6):
        assert len(asked) == len(set(asked)) <= 8
        assert not known & set(asked)
        known |= set(asked)
    assert search.seen == known


def test_what_was_asked_for_but_not_evaluated_may_come_again() -> None:
    search = started()
    asked = run(search, 8, evaluated=2)
    assert len(search.seen) == 16
    assert all(len(candidates) == 8 for candidates in asked[1:])


def test_one_seed_decides_all() -> None:
    assert run(started(seed=1), 5, 4) == run(started(seed=1), 5, 4)
    assert run(started(seed=1), 5, 4) != run(started(seed=2), 5, 4)


def test_numpys_global_random_state_neither_enters_nor_changes() -> None:
    before = np.random.get_state()
    try:
        np.random.seed(1)
        first = run(started(), 5, 4)
        np.random.seed(2)
        expected = np.random.get_state()[1].tolist()  # type: ignore[index]
        assert run(started(), 5, 4) == first
        assert np.random.get_state()[1].tolist() == expected  # type: ignore[index]
    finally:
        np.random.set_state(before)


def test_survivors_are_the_best_of_everything_told() -> None:
    search = started()
    run(search, 5)
    survivors = search.population
    assert len(survivors) == len(set(survivors)) == 6
    points = {c: (cost_of(c), performance_of(c)) for c in search.seen}
    dominated = [c for c in survivors if any(dominates(other, points[c]) for other in points.values())]
    front = {point for point in points.values() if not any(dominates(other, point) for other in points.values())}
    assert not dominated or len(front) < 6


def test_the_search_beats_random_drawing() -> None:
    space, reference = SearchSpace(("a", "b", "c"), ("t0", "t1", "t2", "t3", "t4", "t5")), Reference(2.5, -3.0)

    def volume(configurations: Iterable[Configuration]) -> float:
        return hypervolume([(cost_of(c), performance_of(c)) for c in configurations], reference)

    for seed in range(3):
        search = started(seed, population=10, offspring=10, space=space)
        run(search, 15)
        assert volume(search.seen) > volume(random_population(space, len(search.seen), seed))


def test_a_small_space_is_searched_to_the_end() -> None:
    space = SearchSpace(("a", "b", "c", "d"), ("t0", "t1"))
    search = started(space=space, population=4, offspring=6)
    asked = run(search, 6)
    assert len(search.seen) == space.size == 16
    assert asked[-1] == []
    assert search.ask() == []


@pytest.mark.parametrize("shape", [(1, 1), (3, 1), (1, 2)])
def test_a_space_that_the_initial_population_exhausts_gives_no_more(shape: tuple[int, int]) -> None:
    space = SearchSpace(tuple("abc"[: shape[0]]), tuple("xyz"[: shape[1]]))
    search = Nsga2(space, random_population(space, 20, 0), 20, 100, 0)
    tell(search, search.ask())
    assert search.ask() == []


def test_an_initial_population_of_one_grows() -> None:
    search = Nsga2(SPACE, [SPACE.all_merged()], 6, 8, 0)
    run(search, 3)
    assert len(search.population) == 6


def test_an_initial_population_larger_than_the_population_shrinks() -> None:
    search = Nsga2(SPACE, random_population(SPACE, 12, 0), 4, 8, 0)
    run(search, 2)
    assert len(search.population) == 4


def test_telling_nothing_or_the_same_again_changes_nothing() -> None:
    search = started()
    search.tell([], [], [])
    assert search.population == []
    initial = search.ask()
    tell(search, initial)
    survivors = search.population
    tell(search, initial)
    search.tell([], [], [])
    assert search.population == survivors


@pytest.mark.parametrize(("cost", "performance"), [(math.nan, 0.5), (0.5, math.inf)])
def test_tell_refuses_what_is_not_finite(cost: float, performance: float) -> None:
    search = started()
    with pytest.raises(ValueError, match="must be finite"):
        search.tell([SPACE.all_merged()], [cost], [performance])
    assert not search.seen


def test_tell_refuses_lists_of_different_length() -> None:
    with pytest.raises(ValueError, match="shorter"):
        started().tell([SPACE.all_merged()], [], [])


def test_an_empty_initial_population_is_refused() -> None:
    with pytest.raises(ValueError, match="initial population is empty"):
        Nsga2(SPACE, [], 6, 8, 0)


def test_the_search_writes_nothing_to_stdout() -> None:
    with contextlib.redirect_stdout(io.StringIO()) as written:
        run(started(), 2)
    assert written.getvalue() == ""
