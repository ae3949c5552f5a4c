"""Guesses learn from what was evaluated; by task they need fewer examples, for a task sees its own chain only."""

import numpy as np
import pytest

from hf_merge.merging.grouping import members_of
from hf_merge.searching.configuration import Configuration
from hf_merge.searching.evaluation import weighted_score
from hf_merge.searching.guessing import Guess, guess_by_task, guess_performance
from hf_merge.searching.space import SearchSpace


SPACE = SearchSpace(("attention", "mlp", "norm"), ("a", "b", "c", "d", "e"))
LOSSES = np.random.default_rng(3).gamma(0.5, 0.1, size=(3, 5, 5))


def score(configuration: Configuration) -> dict[str, float]:
    """Every task loses by each task that shares its expert."""
    return {
        task: 1.0 - sum(
            LOSSES[component, index, other]
            for component, partition in enumerate(configuration.grouping)
            for other in members_of(partition, index)
            if other != index
        )
        for index, task in enumerate(SPACE.tasks)
    }  # fmt: skip


def performance(configuration: Configuration) -> float:
    return float(np.mean(list(score(configuration).values())))


def drawn(count: int, seed: int) -> list[Configuration]:
    rng = np.random.default_rng(seed)
    return [SPACE.random(rng) for _ in range(count)]


def error(guess: Guess) -> float:
    wanted = drawn(150, seed=9)
    mean, spread = guess(wanted)
    assert mean.shape == spread.shape == (150,)
    assert (spread >= 0).all()
    return float(np.sqrt(np.mean((mean - [performance(item) for item in wanted]) ** 2)))


@pytest.mark.parametrize("learn", [guess_performance, guess_by_task])
def test_more_examples_make_better_guesses(learn: object) -> None:
    assert callable(learn)
    few, many = drawn(12, seed=0), drawn(150, seed=0)
    assert error(learn(SPACE, many, [score(c) for c in many], 0)) < error(
        learn(SPACE, few, [score(c) for c in few], 0)
    )


@pytest.mark.parametrize("seed", range(3))
def test_guesses_by_task_are_better_from_the_same_examples(seed: int) -> None:
    known = drawn(60, seed)
    scores = [score(configuration) for configuration in known]
    assert error(guess_by_task(SPACE, known, scores, 0)) < error(guess_performance(SPACE, known, scores, 0))


@pytest.mark.parametrize("learn", [guess_performance, guess_by_task])
def test_the_seed_decides_the_guess(learn: object) -> None:
    assert callable(learn)
    known, wanted = drawn(30, seed=0), drawn(20, seed=1)
    scores = [score(configuration) for configuration in known]
    first, again, other = (learn(SPACE, known, scores, seed)(wanted)[0] for seed in (2**32 - 1, 2**32 - 1, 5))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_the_order_of_the_tasks_names_is_the_order_of_the_scores() -> None:
    known = drawn(80, seed=0)
    reversed_scores = [dict(reversed(score(configuration).items())) for configuration in known]
    wanted = drawn(20, seed=1)
    straight = guess_by_task(SPACE, known, [score(configuration) for configuration in known], 0)(wanted)[0]
    assert np.array_equal(guess_by_task(SPACE, known, reversed_scores, 0)(wanted)[0], straight)


@pytest.mark.parametrize("learn", [guess_performance, guess_by_task])
def test_guesses_weigh_tasks_as_the_search_does(learn: object) -> None:
    assert callable(learn)
    known = drawn(60, seed=1)
    scores = [score(configuration) for configuration in known]
    plain, weighted = (learn(SPACE, known, scores, 0, deviation)(known)[0] for deviation in (0.0, 3.0))
    wanted = np.array([weighted_score(each, 3.0) for each in scores])
    assert np.abs(weighted - wanted).mean() < 0.8 * np.abs(plain - wanted).mean()
