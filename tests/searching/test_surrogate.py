import numpy as np
import pytest
from sklearn.exceptions import NotFittedError

from hf_merge.searching.space import SearchSpace
from hf_merge.searching.surrogate import Surrogate


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
