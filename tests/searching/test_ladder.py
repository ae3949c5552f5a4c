"""The greedy ladder goes from every task alone to one group for all, the most alike first."""

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from hf_merge.merging.grouping import groups
from hf_merge.searching.ladder import ladder
from hf_merge.searching.space import SearchSpace


def gram_of(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    product: NDArray[np.float64] = vectors @ vectors.T
    return product


@given(st.integers(1, 5), st.integers(1, 6), st.integers(0, 2**16), st.integers(2, 40))
def test_every_step_merges_two_groups_of_one_component(components: int, tasks: int, seed: int, size: int) -> None:
    space = SearchSpace(tuple(map(str, range(components))), tuple(map(str, range(tasks))))
    rng = np.random.default_rng(seed)
    grams = [gram_of(rng.normal(size=(tasks, 4))) for _ in range(components)]
    steps = ladder(space, grams, components * tasks + 1)
    counts = [sum(len(groups(column)) for column in step.grouping) for step in steps]
    assert counts == list(range(components * tasks, components - 1, -1))
    for before, after in itertools.pairwise(steps):
        changed = [(old, new) for old, new in zip(before.grouping, after.grouping, strict=True) if old != new]
        assert len(changed) == 1
        assert all(set(group) <= set(whole) or set(group).isdisjoint(whole)
                   for group in groups(changed[0][0]) for whole in groups(changed[0][1]))  # fmt: skip
    few = ladder(space, grams, size)
    assert len(few) <= size
    assert {few[0], few[-1]} == {space.all_separate(), space.all_merged()}
    assert few == [step for step in steps if step in few]


def test_the_most_alike_are_merged_first() -> None:
    space = SearchSpace(("attention", "mlp"), ("a", "b", "c"))
    apart = gram_of(np.eye(3))
    close = gram_of(np.array([[1.0, 0.0], [0.0, 1.0], [0.0, 3.0]]))  # b and c point one way, whatever their lengths
    second = ladder(space, [apart, close], 5)[1]
    assert second.grouping == ((0, 1, 2), (0, 1, 1))


def test_task_vectors_of_nothing_are_merged_too() -> None:
    space = SearchSpace(("norm",), ("a", "b"))
    assert ladder(space, [np.zeros((2, 2))], 2) == [space.all_separate(), space.all_merged()]


def test_what_no_task_changed_is_merged_first_and_what_one_left_alone_is_not() -> None:
    space = SearchSpace(("embedding", "mlp"), ("a", "b", "c"))
    frozen = gram_of(np.array([[0.0], [0.0], [2.0]]))  # a and b left it as it was
    close = gram_of(np.array([[1.0, 0.1], [1.0, 0.0], [0.0, 1.0]]))
    steps = [step.grouping for step in ladder(space, [frozen, close], 5)]
    assert steps[1:3] == [((0, 0, 1), (0, 1, 2)), ((0, 0, 1), (0, 0, 1))]
