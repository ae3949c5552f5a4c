"""Configurations with merge methods: canonical form, and how a space draws, varies and writes them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_merge.merging.grouping import is_canonical
from hf_merge.searching.configuration import Configuration, is_separate
from hf_merge.searching.population import with_choices
from hf_merge.searching.space import SearchSpace


seeds = st.integers(0, 2**32 - 1)
TASKS, COMPONENTS = ("a", "b", "c"), ("attention", "mlp", "norm")


def space_of(methods: int = 3, *, merged: bool = False, tasks: tuple[str, ...] = TASKS) -> SearchSpace:
    return SearchSpace(COMPONENTS, tasks, methods=methods, merged=merged)


spaces = st.builds(
    lambda methods, codecs, merged: SearchSpace(COMPONENTS, TASKS, methods=methods, codecs=codecs, merged=merged),
    st.integers(1, 4),
    st.integers(1, 3),
    st.booleans(),
)


def test_methods_must_fit_the_components() -> None:
    with pytest.raises(ValueError, match="2 methods do not fit 1 components"):
        Configuration(((0, 0),), (0, 1))


def test_a_method_where_nothing_is_merged_is_refused() -> None:
    with pytest.raises(ValueError, match=r"Method 2 merges nothing in \(0, 1\)"):
        Configuration(((0, 1), (0, 0)), (2, 1))


def test_without_methods_every_component_has_the_first() -> None:
    assert [Configuration(((0, 0), (0, 1))).method(index) for index in range(2)] == [0, 0]


@pytest.mark.parametrize(
    ("methods", "merged", "size"),
    [(1, False, 125), (5, True, 125), pytest.param(2, False, 9**3, marks=pytest.mark.slow)],
)
def test_size_counts_configurations_once(methods: int, merged: bool, size: int) -> None:
    space, rng = space_of(methods, merged=merged), np.random.default_rng(0)
    assert space.size == size
    assert len({space.random(rng) for _ in range(60 * size)}) == size


def test_a_space_of_one_task_has_one_configuration() -> None:
    assert space_of(4, tasks=("a",)).size == space_of(4, tasks=("a",), merged=True).size == 1


@given(spaces, seeds)
def test_whatever_is_drawn_or_bred_is_canonical_and_survives_its_vector(space: SearchSpace, seed: int) -> None:
    rng = np.random.default_rng(seed)
    first, second = space.random(rng), space.random(rng)
    for found in (first, *space.crossover(first, second, rng), space.mutate(first, rng)):
        assert space.decode(space.encode(found)) == found
        assert len(space.encode(found)) == space.genes
        assert all(is_canonical(column) for column in found.grouping)
        assert (bool(found.methods), bool(found.codecs)) == (space.methods > 1, space.codecs > 1)
        assert all(0 <= codec < space.codecs for codec in found.codecs)
        if space.merged:
            assert found.grouping == space.all_merged().grouping
        for column, method in zip(found.grouping, found.methods, strict=False):
            assert 0 <= method < space.methods and not (method and is_separate(column))


@given(seeds)
def test_a_step_changes_something(seed: int) -> None:
    stored = SearchSpace(COMPONENTS, TASKS, codecs=2)
    for space in (space_of(), space_of(merged=True), space_of(1), stored):
        rng = np.random.default_rng(seed)
        start = space.random(rng)
        assert space.mutate(start, rng) != start


@given(seeds)
def test_children_have_each_column_with_its_method(seed: int) -> None:
    space, rng = space_of(), np.random.default_rng(seed)
    first, second = space.random(rng), space.random(rng)
    given_pairs = [set(zip(one.grouping, one.methods, strict=True)) for one in (first, second)]
    for child in space.crossover(first, second, rng, row_swap=0.0):
        assert set(zip(child.grouping, child.methods, strict=True)) <= given_pairs[0] | given_pairs[1]


def test_mutation_reaches_every_configuration_from_any_other() -> None:
    space = SearchSpace(("mlp",), TASKS, methods=3)
    rng, seen = np.random.default_rng(0), set()
    walker = space.all_separate()
    for _ in range(2000):
        walker = space.mutate(walker, rng)
        seen.add(walker)
    assert len(seen) == space.size == 13


def test_features_tell_methods_apart_where_something_is_merged() -> None:
    space = space_of(2)
    partitions = ((0, 0, 0), (0, 0, 1), (0, 1, 2))
    plain, other = (space.configuration(partitions, methods) for methods in ([0, 0, 0], [1, 1, 1]))
    assert space.features(plain)[-6:].tolist() == [1, 0, 1, 0, 0, 0]
    assert space.features(other)[-6:].tolist() == [0, 1, 0, 1, 0, 0]
    # The third task is alone in the second component: how the others are merged there is nothing to it.
    assert space.chain_features(other, 2)[-6:].tolist() == [0, 1, 0, 0, 0, 0]
    assert space.chain_features(other, 0)[-6:].tolist() == [0, 1, 0, 1, 0, 0]


def test_the_first_generation_tries_every_method() -> None:
    space = space_of(3)
    drawn = [space.all_separate(), space.all_merged(), space.uniform((0, 0, 1))]
    found = with_choices(space, drawn, 10, seed=0)
    assert found[:3] == [space.all_merged(method) for method in range(3)]
    assert space.all_separate() in found and len(set(found)) == len(found) == 10
    assert found == with_choices(space, drawn, 10, seed=0)
    crowded = with_choices(space_of(9, merged=True), [], 4, seed=0)
    assert crowded == [space_of(9, merged=True).all_merged(method) for method in range(9)]
    merged = with_choices(space_of(3, merged=True), [], 100, seed=0)
    assert len(merged) == 27 and all(one.grouping == space.all_merged().grouping for one in merged)


def test_with_one_method_nothing_changes() -> None:
    drawn = [space_of(1).all_separate(), space_of(1).all_merged()]
    assert with_choices(space_of(1), drawn, 5, seed=0) == drawn
    only = space_of(1, merged=True)
    assert with_choices(only, drawn, 5, seed=0) == [only.all_merged()]


def test_codecs_multiply_what_a_component_offers() -> None:
    space, rng = SearchSpace(("mlp",), TASKS, methods=2, codecs=3), np.random.default_rng(0)
    assert space.size == (4 * 2 + 1) * 3
    assert len({space.random(rng) for _ in range(2000)}) == space.size
    walker, seen = space.all_separate(), set()
    for _ in range(4000):
        walker = space.mutate(walker, rng)
        seen.add(walker)
    assert len(seen) == space.size


def test_features_tell_codecs_apart_even_where_nothing_is_merged() -> None:
    space = SearchSpace(COMPONENTS, TASKS, codecs=2)
    plain, other = (space.all_separate(codec) for codec in range(2))
    assert space.features(plain)[-6:].tolist() == [1, 0] * 3 and space.features(other)[-6:].tolist() == [0, 1] * 3
    assert space.chain_features(other, 1)[-6:].tolist() == [0, 1] * 3


def test_the_first_generation_is_the_uniform_ladder_of_codecs() -> None:
    space = SearchSpace(COMPONENTS, TASKS, codecs=2)
    found = with_choices(space, [space.uniform((0, 0, 1))], 10, seed=0)
    assert found[:2] == [space.all_merged(codec=codec) for codec in range(2)]
    assert found[2:4] == [space.all_separate(codec) for codec in range(2)]
