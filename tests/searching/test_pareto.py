import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_merge.searching.pareto import Reference, best_within, dominates, hypervolume, non_dominated, thin


coordinate = st.integers(-2, 12).map(lambda tenths: tenths / 10)
clouds = st.lists(st.tuples(coordinate, coordinate), max_size=12)
UNIT = Reference(cost=1.0, performance=0.0)


def front_of(points: list[tuple[float, float]]) -> list[int]:
    return non_dominated([cost for cost, _ in points], [performance for _, performance in points])


def test_dominates_needs_one_better_and_none_worse() -> None:
    assert dominates((1.0, 0.9), (2.0, 0.9))
    assert dominates((1.0, 0.9), (1.0, 0.8))
    assert not dominates((1.0, 0.9), (1.0, 0.9))
    assert not dominates((1.0, 0.8), (2.0, 0.9))


@given(clouds)
def test_front_holds_no_dominated_pair(points: list[tuple[float, float]]) -> None:
    front = front_of(points)
    assert not any(dominates(points[i], points[j]) for i in front for j in front)


@given(clouds)
def test_front_covers_every_point(points: list[tuple[float, float]]) -> None:
    front = front_of(points)
    for point in points:
        assert any(points[i] == point or dominates(points[i], point) for i in front)


@given(clouds)
def test_front_rises_in_cost_and_performance(points: list[tuple[float, float]]) -> None:
    chosen = [points[index] for index in front_of(points)]
    assert chosen == sorted(set(chosen))
    assert [performance for _, performance in chosen] == sorted({performance for _, performance in chosen})


def test_front_keeps_the_first_of_equal_points() -> None:
    assert front_of([(0.5, 0.5), (0.2, 0.1), (0.5, 0.5), (0.2, 0.1)]) == [1, 0]


def test_front_leaves_out_nan_and_takes_infinities() -> None:
    assert front_of([(math.nan, 1.0), (0.1, math.nan), (0.3, 0.2)]) == [2]
    assert front_of([(1.0, -math.inf)]) == [0]
    assert front_of([]) == []


def test_front_refuses_lists_of_different_length() -> None:
    with pytest.raises(ValueError, match="shorter"):
        non_dominated([1.0, 2.0], [0.5])


def test_thin_removes_the_most_crowded_first_and_keeps_the_ends() -> None:
    costs, performances = [0.0, 0.1, 0.5, 0.52, 1.0], [0.0, 0.1, 0.5, 0.51, 1.0]
    assert thin(costs, performances, 4) == [0, 1, 3, 4]
    assert thin(costs, performances, 3) == [0, 3, 4]
    assert thin(costs, performances, 2) == [0, 4]
    assert thin(costs, performances, 1) == [4]
    assert thin(costs, performances, 0) == []


@given(clouds, st.integers(0, 12))
def test_thin_keeps_as_many_as_asked_by_rising_cost(points: list[tuple[float, float]], keep: int) -> None:
    costs, performances = [cost for cost, _ in points], [performance for _, performance in points]
    kept = thin(costs, performances, keep)
    assert len(kept) == min(keep, len(points))
    assert len(set(kept)) == len(kept)
    assert [costs[index] for index in kept] == sorted(costs[index] for index in kept)


def test_hypervolume_of_hand_computed_boxes() -> None:
    assert hypervolume([], UNIT) == 0.0
    assert hypervolume([(0.25, 0.5)], UNIT) == pytest.approx(0.375)
    assert hypervolume([(0.25, 0.5), (0.5, 1.0)], UNIT) == pytest.approx(0.375 + 0.25)
    assert hypervolume([(0.0, 1.0)], UNIT) == 1.0
    assert hypervolume([(1.0, 0.75)], Reference(cost=2.0, performance=0.5)) == pytest.approx(0.25)


@pytest.mark.parametrize("outside", [(1.0, 0.5), (1.5, 0.5), (0.5, 0.0), (0.5, -1.0), (math.nan, 0.5)])
def test_hypervolume_ignores_points_outside_the_box(outside: tuple[float, float]) -> None:
    assert hypervolume([outside], UNIT) == 0.0
    assert hypervolume([outside, (0.25, 0.5)], UNIT) == pytest.approx(0.375)


def test_hypervolume_counts_points_beyond_the_ideal_as_on_the_edge() -> None:
    assert hypervolume([(0.5, 1.01)], UNIT) == pytest.approx(0.5)
    assert hypervolume([(-0.5, 0.5)], UNIT) == pytest.approx(0.5)


@pytest.mark.parametrize("reference", [Reference(0.0, 0.5), Reference(1.0, 1.0), Reference(1.0, 1.2)])
def test_hypervolume_of_a_box_without_area_is_zero(reference: Reference) -> None:
    assert hypervolume([(0.0, 1.0)], reference) == 0.0


# The first example loads pymoo, which takes longer than hypothesis grants one.
@settings(deadline=None)
@given(clouds, st.tuples(coordinate, coordinate))
def test_hypervolume_never_shrinks_and_stays_in_the_unit_interval(
    points: list[tuple[float, float]], added: tuple[float, float]
) -> None:
    before, after = hypervolume(points, UNIT), hypervolume([*points, added], UNIT)
    assert 0.0 <= before <= after + 1e-12
    assert after <= 1.0 + 1e-12


# The first example loads pymoo, which takes longer than hypothesis grants one.
@settings(deadline=None)
@given(clouds)
def test_hypervolume_is_that_of_the_front_in_any_order(points: list[tuple[float, float]]) -> None:
    front = [points[index] for index in front_of(points)]
    assert hypervolume(points, UNIT) == pytest.approx(hypervolume(front[::-1], UNIT))


def test_reference_lies_a_tenth_beyond_the_cost_of_all_separate() -> None:
    reference = Reference.from_extremes(all_separate_cost=2.0, pretrained_performance=0.3)
    assert reference.cost == pytest.approx(2.2)
    assert (reference.performance, reference.ideal_cost, reference.ideal_performance) == (0.3, 0.0, 1.0)


def test_best_within_a_budget() -> None:
    points = [(0.5, 0.9), (0.25, 0.6), (0.4, 0.9), (1.0, 0.99), (0.4, 0.9)]
    assert best_within(points, 0.5) == 2
    assert best_within(points, 0.3) == 1
    assert best_within(points, 0.25) == 1
    assert best_within(points, 9.0) == 3
    assert best_within(points, 0.2) is None
    assert best_within([], 1.0) is None


@given(clouds, coordinate)
def test_best_within_is_never_beaten_inside_the_budget(points: list[tuple[float, float]], budget: float) -> None:
    best = best_within(points, budget)
    affordable = [point for point in points if point[0] <= budget]
    if best is None:
        assert not affordable
    else:
        assert points[best] in affordable
        assert not any(dominates(point, points[best]) for point in affordable)
