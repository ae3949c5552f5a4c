import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.exceptions import NotFittedError

from hf_merge.searching.pareto import non_dominated
from hf_merge.searching.space import SearchSpace
from hf_merge.searching.surrogate import Surrogate, screen


SPACE = SearchSpace(("attention", "mlp"), ("a", "b", "c", "d"))


def data(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    features = np.stack([SPACE.features(SPACE.random(rng)) for _ in range(count)])
    return features, 1.0 - features[:, :6].mean(axis=1)


def test_the_surrogate_learns() -> None:
    surrogate = Surrogate(seed=0, trees=40)
    surrogate.fit(*data(120))
    features, performances = data(40, seed=1)
    mean, spread = surrogate.predict(features)
    assert mean.shape == spread.shape == (40,)
    assert np.corrcoef(mean, performances)[0, 1] > 0.9
    assert (spread >= 0.0).all()


def test_the_prediction_is_the_mean_and_deviation_over_the_trees() -> None:
    surrogate = Surrogate(seed=0, trees=10)
    features, performances = data(30)
    surrogate.fit(features, performances.tolist())
    mean, spread = surrogate.predict(features)
    guesses = [tree.predict(features) for tree in surrogate._forest.estimators_]
    assert len(guesses) == 10
    np.testing.assert_array_equal(mean, np.mean(guesses, axis=0))
    np.testing.assert_array_equal(spread, np.std(guesses, axis=0))


def test_one_evaluation_is_enough_and_leaves_no_spread() -> None:
    surrogate = Surrogate(seed=0, trees=5)
    surrogate.fit(np.ones((1, 3)), [0.7])
    mean, spread = surrogate.predict(np.zeros((2, 3)))
    assert mean.tolist() == pytest.approx([0.7, 0.7])
    assert spread.tolist() == pytest.approx([0.0, 0.0])


def test_the_seed_decides_the_forest() -> None:
    features, performances = data(40)

    def predicted(seed: int) -> list[float]:
        surrogate = Surrogate(seed, trees=10)
        surrogate.fit(features, performances)
        return list(surrogate.predict(data(20, seed=1)[0])[0])

    assert predicted(1) == predicted(1)
    assert predicted(1) != predicted(2)


def test_predicting_before_fitting_is_refused() -> None:
    with pytest.raises(NotFittedError):
        Surrogate(seed=0).predict(np.ones((1, 2)))


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
