"""The codec ladder goes from the closest way to store every task to the cheapest, losing least for what it saves."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_merge.merging.codecs import CodecSpec
from hf_merge.merging.components import decompose
from hf_merge.merging.methods import MethodSpec
from hf_merge.merging.task_vectors import measure
from hf_merge.searching.building import ExpertBuilder
from hf_merge.searching.codec_ladder import Way, codec_ladder, ways_to_store
from hf_merge.searching.configuration import Configuration
from hf_merge.searching.space import SearchSpace
from hf_merge.storing.families import Family


MERGED, APART = (0, 0), (0, 1)
SPACE = SearchSpace(("attention", "mlp"), ("a", "b"), codecs=3, residual=frozenset({1, 2}))


def totals(configuration: Configuration, ways: list[list[Way]]) -> tuple[float, float]:
    chosen = [
        next(way for way in offered if (way.partition, way.codec) == (column, configuration.codec(index)))
        for index, (column, offered) in enumerate(zip(configuration.grouping, ways, strict=True))
    ]
    return sum(way.cost for way in chosen), sum(way.loss for way in chosen)


def offers(costs: list[float], losses: list[float]) -> list[Way]:
    labels = [(MERGED, 0), (APART, 0), (APART, 1), (APART, 2)]
    return [Way(*label, cost, loss) for label, cost, loss in zip(labels, costs, losses, strict=True)]


def test_the_step_that_loses_least_for_what_it_saves_comes_first() -> None:
    attention = offers([10, 80, 30, 20], [1.0, 0.0, 0.1, 0.2])
    mlp = offers([10, 80, 30, 20], [1.0, 0.0, 0.4, 0.9])
    steps = codec_ladder(SPACE, [attention, mlp], 10)
    assert [(step.grouping, step.codecs) for step in steps] == [
        ((APART, APART), (0, 0)),
        ((APART, APART), (1, 0)),  # 0.1 for 50
        ((APART, APART), (1, 1)),  # 0.4 for 50
        ((APART, APART), (2, 1)),  # 0.1 for 10
        ((APART, MERGED), (2, 0)),  # 0.6 for 20, as 0.5 and 0.1 for 10 each lie above the hull
        ((MERGED, MERGED), (0, 0)),  # 0.8 for 10
    ]


def test_a_way_that_is_dearer_and_no_closer_is_never_taken() -> None:
    attention = offers([10, 80, 30, 20], [1.0, 0.1, 0.1, 0.1])
    steps = codec_ladder(SPACE, [attention, attention], 10)
    assert [step.codecs for step in steps] == [(2, 2), (0, 2), (0, 0)]


@given(st.lists(st.tuples(st.integers(1, 50), st.integers(0, 50)), min_size=8, max_size=8), st.integers(2, 12))
def test_no_choice_is_both_cheaper_and_closer_than_a_step(numbers: list[tuple[int, int]], size: int) -> None:
    ways = [offers([c for c, _ in half], [loss for _, loss in half]) for half in (numbers[:4], numbers[4:])]
    steps = [totals(step, ways) for step in codec_ladder(SPACE, ways, size)]
    every = [(first.cost + second.cost, first.loss + second.loss) for first, second in product(ways[0], ways[1])]
    for cost, loss in steps:
        assert not any(dear < cost and far < loss for dear, far in every)
    assert [cost for cost, _ in steps] == sorted((cost for cost, _ in steps), reverse=True)
    assert steps[0][1] == min(loss for _, loss in every)
    assert steps[-1][0] == min(cost for cost, _ in every)
    assert len(steps) <= size


@pytest.mark.parametrize("size", [2, 3])
def test_a_thinned_ladder_keeps_both_ends(size: int) -> None:
    ways = [offers([10, 80, 30, 20], [1.0, 0.0, 0.1, 0.2])] * 2
    whole, few = codec_ladder(SPACE, ways, 100), codec_ladder(SPACE, ways, size)
    assert (few[0], few[-1]) == (whole[0], whole[-1])
    assert len(few) == size
    assert np.all([step in whole for step in few])


def test_a_loss_is_the_distance_from_the_fine_tunes_over_their_task_vectors(family: Family) -> None:
    components = decompose(family.shapes, "type")
    codecs = [CodecSpec.resolve("int8", {"unit": "row"}), CodecSpec.resolve("sign")]
    builder = ExpertBuilder(family, components, [MethodSpec.resolve("average")], codecs, limit_bytes=10**9)
    space = SearchSpace(
        tuple(component.name for component in components), builder.tasks, codecs=2, residual=frozenset({1})
    )
    geometry = measure(components, family.shapes, family.origin, family.tasks)
    grams = [geometry.grams[component.name] for component in components]
    told = 0

    def advance(count: int) -> None:
        nonlocal told
        told += count

    found = ways_to_store(space, builder, grams, advance)
    tasks = len(builder.tasks)
    assert told == len(components) * (1 + tasks + 1 + tasks)
    apart = tuple(range(tasks))
    for index, (component, ways) in enumerate(zip(components, found, strict=True)):
        assert [(way.partition, way.codec) for way in ways] == [((0,) * tasks, 0), (apart, 0), (apart, 1)]
        merged = {
            name: np.mean([_own(family, task, name) for task in builder.tasks], axis=0) for name in component.tensors
        }
        vectors = sum(
            float(np.square(_own(family, task, name) - family.base.read(name).numpy()).sum())
            for task in builder.tasks
            for name in component.tensors
        )
        lost = sum(
            float(np.square(_own(family, task, name) - merged[name]).sum())
            for task in builder.tasks
            for name in component.tensors
        )
        assert ways[0].loss == pytest.approx(lost / vectors, rel=0.05)  # but for the rounding to 8 bits
        assert ways[1].loss < ways[2].loss or ways[2].loss == 0
        assert ways[2].loss < ways[0].loss
        wanted = space.configuration([apart if i == index else (0,) * tasks for i in range(len(components))],
                                     codecs=[1 if i == index else 0 for i in range(len(components))])  # fmt: skip
        stored = sum(builder.expert(key).parameters for key in builder.keys(wanted) if key.component == component.name)
        assert ways[2].cost == stored


def test_a_component_that_no_task_changed_is_shared_and_cheap_on_every_step(family: Family) -> None:
    components = decompose(family.shapes, "type")
    codecs = [CodecSpec.resolve("int8", {"unit": "row"}), CodecSpec.resolve("sign")]
    builder = ExpertBuilder(family, components, [MethodSpec.resolve("average")], codecs, limit_bytes=10**9)
    names = tuple(component.name for component in components)
    space = SearchSpace(names, builder.tasks, codecs=2, residual=frozenset({1}))
    geometry = measure(components, family.shapes, family.origin, family.tasks)
    grams = [geometry.grams[name] * (name != names[0]) for name in names]
    ways = ways_to_store(space, builder, grams)
    assert {way.loss for way in ways[0]} == {0.0}
    for step in codec_ladder(space, ways, 10):
        assert (set(step.grouping[0]), step.codecs[0]) == ({0}, 0)


def _own(family: Family, task: str, name: str) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    return family.tasks[task].read(name).double().numpy()
