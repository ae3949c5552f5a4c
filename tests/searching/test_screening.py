"""What deserves a real evaluation: the promising by front and cost, or what would enlarge the hypervolume most."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_merge.searching.pareto import Reference, hypervolume, non_dominated
from hf_merge.searching.screening import improvements, screen, screen_by_improvement


BOX = Reference(cost=1.0, performance=0.0)
COORDINATES = st.floats(0.0, 1.2, allow_nan=False)
POINTS = st.lists(st.tuples(COORDINATES, COORDINATES.filter(lambda value: value <= 1.0)), max_size=12)


def picks(mean: list[float], costs: list[float], spread: list[float] | None = None, **settings: float) -> list[int]:
    counts = {name: int(settings[name]) for name in ("least", "most") if name in settings}
    uncertain = np.zeros(len(mean)) if spread is None else np.array(spread)
    explore = settings.get("explore", 0.0)
    return screen(np.array(mean), uncertain, costs, explore=explore, rng=np.random.default_rng(0), **counts)


def test_the_first_predicted_front_is_picked_by_rising_cost() -> None:
    assert picks([0.9, 0.5, 0.6, 0.3], [0.9, 0.3, 0.5, 0.7], least=1) == [1, 2, 0]


def test_a_short_front_is_topped_up_from_the_next() -> None:
    mean, costs = [0.9, 0.8, 0.7, 0.6, 0.5], [0.1, 0.2, 0.3, 0.4, 0.5]
    assert picks(mean, costs) == [0, 1, 2, 3]
    assert picks(mean, costs, least=2) == [0, 1]
    assert picks(mean[:3], costs[:3]) == [0, 1, 2]


def test_a_long_front_is_thinned_and_keeps_its_ends() -> None:
    line = np.linspace(0.0, 1.0, 30).tolist()
    picked = picks(line, line)
    assert len(picked) == 10
    assert {picked[0], picked[-1]} == {0, 29}
    assert max(np.diff(picked)) <= 6


def test_most_wins_over_least() -> None:
    assert len(picks([0.9, 0.8, 0.7], [0.1, 0.2, 0.3], least=4, most=2)) == 2
    assert picks([0.9], [0.1], most=0) == []
    assert picks([], []) == []


def test_the_uncertain_share_goes_to_the_largest_spread_outside_the_front() -> None:
    line = np.linspace(0.0, 1.0, 10).tolist()
    mean, costs = [*line, 0.0, 0.0, 0.0], [*line, 1.0, 1.0, 1.0]
    spread = [0.0] * 10 + [0.1, 0.3, 0.3]
    assert picks(mean, costs, spread, explore=0.1)[-1] == 11
    assert picks(mean, costs, spread, explore=0.2)[-2:] == [11, 12]
    assert sorted(picks(mean, costs, spread, explore=1.0))[-3:] == [10, 11, 12]


def test_the_uncertain_share_holds_on_average() -> None:
    line = np.linspace(0.0, 1.0, 5)
    mean, costs = np.append(line, 0.0), np.append(line, 1.0)
    spread, rng = np.append(np.zeros(5), 1.0), np.random.default_rng(0)
    explored = [5 in screen(mean, spread, costs, rng=rng) for _ in range(400)]
    assert 0.4 < np.mean(explored) < 0.6


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=30), st.integers(0, 2**32 - 1))
def test_picks_are_distinct_within_limits_and_repeatable(points: list[tuple[int, int]], seed: int) -> None:
    mean, costs = np.array([p for p, _ in points], dtype=float), np.array([c for _, c in points], dtype=float)
    first, again = (screen(mean, mean, costs, rng=np.random.default_rng(seed)) for _ in range(2))
    assert first == again
    assert len(set(first)) == len(first)
    assert min(4, len(points)) <= len(first) <= 10
    front = non_dominated(costs.tolist(), mean.tolist())
    assert len(set(front) - set(first)) <= max(1, len(front) - 9)


def test_predictions_that_are_not_finite_are_refused() -> None:
    with pytest.raises(ValueError, match="must be finite"):
        picks([float("nan")], [0.1])


@given(POINTS, st.lists(st.tuples(COORDINATES, st.floats(-0.2, 1.0)), min_size=1, max_size=6))
def test_an_improvement_is_the_growth_of_the_hypervolume(
    points: list[tuple[float, float]], candidates: list[tuple[float, float]]
) -> None:
    costs, performances = (np.array(values) for values in zip(*candidates, strict=True))
    found = improvements(costs, performances, points, BOX)
    grown = [hypervolume([*points, candidate], BOX) - hypervolume(points, BOX) for candidate in candidates]
    np.testing.assert_allclose(found, grown, atol=1e-9)


def picked_by_improvement(
    mean: list[float], costs: list[float], spread: list[float], count: int, points: list[tuple[float, float]]
) -> list[int]:
    return screen_by_improvement(np.array(mean), np.array(spread), costs, points, BOX, count)


def test_the_largest_gain_comes_first_and_counts_from_then_on() -> None:
    # The second is nearly the first again; what it adds beside it is less than what the third adds.
    mean, costs = [0.80, 0.79, 0.40], [0.50, 0.50, 0.10]
    assert picked_by_improvement(mean, costs, [0.0] * 3, 2, []) == [0, 2]


def test_an_uncertain_candidate_is_hoped_to_be_better() -> None:
    points = [(0.5, 0.7)]
    assert picked_by_improvement([0.69, 0.68], [0.5, 0.5], [0.0, 0.1], 1, points) == [1]


def test_where_nothing_promises_more_the_uncertain_are_picked() -> None:
    points = [(0.0, 1.0)]
    assert picked_by_improvement([0.1, 0.1, 0.1], [0.5] * 3, [0.0, 0.2, 0.1], 2, points) == [1, 2]


def test_no_more_are_picked_than_there_are() -> None:
    assert sorted(picked_by_improvement([0.1, 0.2], [0.5, 0.6], [0.0, 0.0], 8, [])) == [0, 1]


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 0.2)), min_size=1, max_size=12), st.integers(1, 12), POINTS)
def test_where_all_cost_the_same_the_most_hoped_are_picked(
    guesses: list[tuple[float, float]], count: int, points: list[tuple[float, float]]
) -> None:
    mean, spread = map(list, zip(*guesses, strict=True))
    picked = picked_by_improvement(mean, [0.25] * len(mean), spread, count, points)
    hoped = [first + second for first, second in guesses]
    assert len(set(picked)) == len(picked) == min(count, len(mean))
    assert [hoped[index] for index in picked] == sorted(hoped, reverse=True)[:count]
