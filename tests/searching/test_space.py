import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_merge.merging.grouping import canonical, is_canonical
from hf_merge.searching.configuration import Configuration
from hf_merge.searching.space import SearchSpace


seeds = st.integers(0, 2**32 - 1)
spaces = st.builds(lambda components, tasks: space_of(components, tasks), st.integers(1, 4), st.integers(1, 6))


def space_of(components: int, tasks: int) -> SearchSpace:
    return SearchSpace(tuple(f"c{i}" for i in range(components)), tuple(f"t{i}" for i in range(tasks)))


def test_configuration_refuses_labels_that_are_not_canonical() -> None:
    with pytest.raises(ValueError, match=r"\(1, 0\) is not in canonical form \(0, 1\)"):
        Configuration(((0, 0), (1, 0)))


@pytest.mark.parametrize(("components", "tasks"), [((), ("a",)), (("model",), ())])
def test_space_refuses_to_be_empty(components: tuple[str, ...], tasks: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="needs components, tasks, methods and codecs"):
        SearchSpace(components, tasks)


@pytest.mark.parametrize(("tasks", "bell"), [(1, 1), (2, 2), (3, 5), (4, 15), (5, 52), (8, 4140), (10, 115975)])
def test_size_is_the_bell_number_per_component(tasks: int, bell: int) -> None:
    assert space_of(1, tasks).size == bell
    assert space_of(3, tasks).size == bell**3


def test_encode_writes_component_after_component() -> None:
    vector = space_of(2, 3).encode(Configuration(((0, 0, 1), (0, 1, 2))))
    assert vector.tolist() == [0, 0, 1, 0, 1, 2]
    assert vector.dtype == np.int64


@given(spaces, seeds)
def test_encode_and_decode_round_trip(space: SearchSpace, seed: int) -> None:
    configuration = space.random(np.random.default_rng(seed))
    assert space.decode(space.encode(configuration)) == configuration
    assert all(type(label) is int for column in configuration.grouping for label in column)


@given(spaces, seeds)
def test_decode_canonicalises_any_labels(space: SearchSpace, seed: int) -> None:
    shape = len(space.components) * len(space.tasks)
    configuration = space.decode(np.random.default_rng(seed).integers(-5, 5, size=shape))
    assert len(configuration.grouping) == len(space.components)
    assert all(is_canonical(column) for column in configuration.grouping)


def test_the_extremes_and_uniform_configurations() -> None:
    space = space_of(2, 3)
    assert space.all_merged().grouping == ((0, 0, 0), (0, 0, 0))
    assert space.all_separate().grouping == ((0, 1, 2), (0, 1, 2))
    assert space.uniform((0, 1, 0)).grouping == ((0, 1, 0), (0, 1, 0))


def test_random_reaches_every_partition() -> None:
    space, rng = space_of(1, 4), np.random.default_rng(0)
    assert len({space.random(rng) for _ in range(600)}) == space.size == 15


def test_features_hold_bits_then_count_then_sizes_for_each_component() -> None:
    features = space_of(2, 3).features(Configuration(((0, 1, 1), (0, 0, 0))))
    assert features.dtype == np.float64
    assert features.tolist() == [0, 0, 1, 2, 2, 1, 0, 1, 1, 1, 1, 3, 0, 0]


@given(spaces, seeds)
def test_features_have_one_length_and_tell_configurations_apart(space: SearchSpace, seed: int) -> None:
    rng = np.random.default_rng(seed)
    first, second = space.random(rng), space.random(rng)
    tasks = len(space.tasks)
    assert space.features(first).shape == (len(space.components) * (tasks * (tasks - 1) // 2 + 1 + tasks),)
    assert (space.features(first).tolist() == space.features(second).tolist()) == (first == second)


@given(spaces, seeds)
def test_children_share_out_the_parents_columns(space: SearchSpace, seed: int) -> None:
    rng = np.random.default_rng(seed)
    parents = space.random(rng), space.random(rng)
    children = space.crossover(*parents, rng, row_swap=0.0)
    for component in range(len(space.components)):
        inherited = [child.grouping[component] for child in children]
        assert sorted(inherited) == sorted(parent.grouping[component] for parent in parents)


@given(spaces, seeds)
def test_a_row_swap_changes_at_most_one_column(space: SearchSpace, seed: int) -> None:
    rng = np.random.default_rng(seed)
    parents = space.random(rng), space.random(rng)
    children = space.crossover(*parents, rng, row_swap=1.0)
    changed = 0
    for component in range(len(space.components)):
        inherited = [child.grouping[component] for child in children]
        assert all(is_canonical(column) for column in inherited)
        changed += sorted(inherited) != sorted(parent.grouping[component] for parent in parents)
    assert changed <= 1


def test_a_row_swap_exchanges_one_label_between_the_parents() -> None:
    space, rng = space_of(1, 3), np.random.default_rng(0)
    parents = space.all_merged(), space.all_separate()
    children = [frozenset(space.crossover(*parents, rng, row_swap=1.0)) for _ in range(40)]
    expected = {
        frozenset(map(space.decode, (np.array(pair[0]), np.array(pair[1]))))
        for pair in [([0, 0, 0], [0, 1, 2]), ([0, 1, 0], [0, 0, 2]), ([0, 0, 2], [0, 1, 0])]
    }
    assert set(children) == expected


@given(spaces, seeds)
def test_mutation_changes_at_least_one_column(space: SearchSpace, seed: int) -> None:
    rng = np.random.default_rng(seed)
    configuration = space.random(rng)
    mutated = space.mutate(configuration, rng)
    assert len(mutated.grouping) == len(space.components)
    assert (mutated == configuration) == (len(space.tasks) == 1)


def test_mutation_changes_about_one_column() -> None:
    space, rng = space_of(4, 5), np.random.default_rng(0)
    start = space.all_merged()
    changes = [
        sum(a != b for a, b in zip(start.grouping, space.mutate(start, rng).grouping, strict=True)) for _ in range(300)
    ]
    assert 1.15 < np.mean(changes) < 1.5
    assert max(changes) > 1


def test_canonical_form_makes_equal_configurations_one_key() -> None:
    assert len({Configuration((canonical([5, 5, 2]),)), Configuration((canonical([0, 0, 1]),))}) == 1


# Residual codecs

RESIDUAL = SearchSpace(("attention",), ("a", "b", "c"), methods=2, codecs=3, residual=frozenset({2}))


def test_the_size_counts_differences_but_none_of_one_group() -> None:
    drawn = {RESIDUAL.random(np.random.default_rng(seed)) for seed in range(2000)}
    assert len(drawn) == RESIDUAL.size == (4 * 2 + 1) * 2 + 4 * 2


def test_one_group_has_no_differences_so_its_codec_is_the_first() -> None:
    assert RESIDUAL.all_merged(method=1, codec=2) == RESIDUAL.all_merged(method=1, codec=0)
    assert RESIDUAL.all_merged(codec=1).codecs == (1,)


def test_tasks_apart_have_a_method_where_differences_are_stored() -> None:
    assert RESIDUAL.configuration([(0, 1, 2)], [1], [2]).methods == (1,)
    assert RESIDUAL.configuration([(0, 1, 2)], [1], [1]).methods == (0,)


def test_a_method_of_the_shared_expert_is_seen_by_the_surrogate() -> None:
    first, second = (RESIDUAL.configuration([(0, 1, 2)], [method], [2]) for method in (0, 1))
    assert RESIDUAL.features(first).tolist() != RESIDUAL.features(second).tolist()
    assert RESIDUAL.chain_features(first, 0).tolist() != RESIDUAL.chain_features(second, 0).tolist()


@given(seeds)
def test_variation_stays_in_canonical_form_with_differences(seed: int) -> None:
    rng = np.random.default_rng(seed)
    parents = RESIDUAL.random(rng), RESIDUAL.random(rng)
    for child in (*RESIDUAL.crossover(*parents, rng), RESIDUAL.mutate(parents[0], rng)):
        assert RESIDUAL.decode(RESIDUAL.encode(child)) == child
    assert RESIDUAL.mutate(parents[0], rng).codecs[0] in range(3)


WITH_NORMS = SearchSpace(
    ("mlp", "norms"), ("a", "b", "c"), codecs=4, residual=frozenset({2, 3}), whole=frozenset({("norms", 2)})
)


def test_a_codec_that_quantises_nothing_of_a_component_is_the_first() -> None:
    apart = [(0, 1, 2)] * 2
    assert WITH_NORMS.configuration(apart, codecs=[2, 2]) == WITH_NORMS.configuration(apart, codecs=[2, 0])
    assert WITH_NORMS.configuration(apart, codecs=[3, 3]).codecs == (3, 3)


def test_the_size_leaves_out_codecs_that_quantise_nothing() -> None:
    assert WITH_NORMS.size == (5 * 2 + 4 * 2) * (5 * 2 + 4)
    rng = np.random.default_rng(0)
    drawn = {WITH_NORMS.random(rng) for _ in range(20_000)}
    assert len(drawn) == WITH_NORMS.size


def test_a_step_never_takes_a_codec_that_quantises_nothing() -> None:
    start = WITH_NORMS.uniform((0, 1, 1), codec=1)
    changed = {WITH_NORMS.mutate(start, np.random.default_rng(seed)) for seed in range(300)}
    alone = {child.codecs[1] for child in changed if child.grouping == start.grouping and child.codecs[0] == 1}
    assert start not in changed and alone == {0, 3}


@pytest.mark.parametrize("residual", [{0}, {3}])
def test_a_space_refuses_a_residual_codec_that_cannot_be(residual: set[int]) -> None:
    with pytest.raises(ValueError, match="cannot be residual; the first never is"):
        SearchSpace(("model",), ("a",), codecs=3, residual=frozenset(residual))


def test_one_group_everywhere_counts_whole_codecs_alone() -> None:
    space = SearchSpace(("x", "y"), ("a", "b"), methods=3, merged=True, codecs=3, residual=frozenset({1}))
    assert space.size == (3 * 2) ** 2 == len({space.random(np.random.default_rng(seed)) for seed in range(2000)})
