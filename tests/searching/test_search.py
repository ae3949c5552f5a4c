from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import combinations
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from hf_merge.merging.grouping import groups
from hf_merge.searching import guessing, search
from hf_merge.searching.configuration import Configuration
from hf_merge.searching.evaluation import Evaluation
from hf_merge.searching.pareto import Reference, hypervolume
from hf_merge.searching.population import random_population
from hf_merge.searching.search import Archive, Measured, SearchSettings, normalised_performance, run_search
from hf_merge.searching.space import SearchSpace
from hf_merge.searching.surrogate import Surrogate


SPACE = SearchSpace(("embedding", "attention", "mlp", "norm"), ("a", "b", "c", "d", "e", "f"))
REFERENCE = Reference(1.1 * 6, 0.0)
SMALL = SearchSettings(population=8, evaluations=40, offspring=20)
FAST: dict[str, Any] = {
    "surrogate": "random_forest_per_task", "screening": "hypervolume", "imagined_generations": 3,
}  # fmt: skip


@pytest.fixture
def whole_forests() -> None:
    """For tests of how good the guesses are; the others ask what is done with them, and a few trees will do."""


@pytest.fixture(autouse=True)
def few_trees(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "whole_forests" not in request.fixturenames:
        monkeypatch.setattr(guessing, "Surrogate", lambda seed, trees=0: Surrogate(seed, trees=12))


@dataclass
class Synthetic:
    """Every pair of tasks that share an expert loses some score; how much, nobody tells the search."""

    space: SearchSpace
    asked: list[Configuration] = field(default_factory=list)
    ahead: int = 1
    prepared: list[int] = field(default_factory=list)

    def losses(self) -> NDArray[np.float64]:
        tasks = len(self.space.tasks)
        drawn = np.random.default_rng(7).gamma(0.3, 1.0, size=(len(self.space.components), tasks, tasks))
        drawn *= 2 / drawn.sum()
        return drawn

    def evaluate(self, configuration: Configuration) -> Evaluation:
        self.asked.append(configuration)
        losses, tasks = self.losses(), self.space.tasks
        scores = dict.fromkeys(tasks, 1.0)
        for index, partition in enumerate(configuration.grouping):
            for group in groups(partition):
                for first, second in combinations(group, 2):
                    scores[tasks[first]] -= losses[index, first, second]
                    scores[tasks[second]] -= losses[index, second, first]
        return Evaluation(scores, self.cost(configuration))

    def prepare(self, configurations: Sequence[Configuration]) -> None:
        self.prepared.append(len(configurations))

    def cost(self, configuration: Configuration) -> float:
        return sum(len(groups(partition)) for partition in configuration.grouping) / len(configuration.grouping)


def grams(space: SearchSpace) -> list[NDArray[np.float64]]:
    vectors = np.random.default_rng(1).normal(size=(len(space.components), len(space.tasks), 9))
    return [part @ part.T for part in vectors]


def run(
    settings: SearchSettings = SMALL,
    space: SearchSpace = SPACE,
    on_evaluation: Callable[[Measured, float], None] = lambda measured, volume: None,
) -> tuple[Archive, Synthetic]:
    evaluator = Synthetic(space)
    return run_search(space, evaluator, grams(space), settings, REFERENCE, on_evaluation), evaluator


@cache
def usual() -> Archive:
    """Returns what the search finds with `SMALL` and few trees, at which several tests look."""
    return run()[0]


def volume_of(evaluator: Synthetic, configurations: list[Configuration]) -> float:
    found = [evaluator.evaluate(configuration) for configuration in configurations]
    return hypervolume([(entry.cost, entry.performance) for entry in found], REFERENCE)


@pytest.mark.usefixtures("whole_forests")
@pytest.mark.parametrize(("surrogate", "evaluations"), [("random_forest", 80), ("none", 400)])
@pytest.mark.parametrize("seed", range(2))
def test_the_front_beats_as_many_random_configurations(surrogate: str, evaluations: int, seed: int) -> None:
    archive, evaluator = run(replace(SMALL, seed=seed, evaluations=evaluations, surrogate=surrogate))
    assert archive.history[-1][1] > volume_of(evaluator, random_population(SPACE, evaluations, seed)) + 0.002


@pytest.mark.usefixtures("whole_forests")
def test_screening_beats_evaluating_every_offspring() -> None:
    screened, _ = run(replace(SMALL, evaluations=80))
    plain, _ = run(replace(SMALL, evaluations=80, surrogate="none"))
    assert screened.history[-1][1] > plain.history[-1][1]


@pytest.mark.parametrize("changes", [{}, {"surrogate": "none"}, {"initial": "random"}, {"initial": "ladder"}, FAST])
def test_the_same_seed_gives_the_same_archive(changes: dict[str, Any]) -> None:
    settings = replace(SMALL, **changes)
    np.random.seed(5)
    first = run(settings)[0]
    np.random.seed(6)
    before = str(np.random.get_state())
    assert run(settings)[0] == first
    assert str(np.random.get_state()) == before
    assert run(replace(settings, seed=1))[0].measured != first.measured


@pytest.mark.parametrize("ahead", [2, 3, 100])
def test_preparing_several_at_once_changes_nothing(ahead: int) -> None:
    evaluator = Synthetic(SPACE, ahead=ahead)
    archive = run_search(SPACE, evaluator, grams(SPACE), SMALL, REFERENCE)
    assert archive == usual()
    assert sum(evaluator.prepared) == len(archive.measured)
    assert max(evaluator.prepared) <= ahead


@pytest.mark.parametrize("evaluations", [1, 5, 8, 9, 27])
@pytest.mark.parametrize("surrogate", ["random_forest", "random_forest_per_task", "none"])
def test_there_are_never_more_evaluations_than_allowed(evaluations: int, surrogate: str) -> None:
    archive, evaluator = run(replace(SMALL, evaluations=evaluations, surrogate=surrogate))
    assert len(archive.measured) == len(evaluator.asked) == archive.history[-1][0] == evaluations


MERGED = SearchSpace(SPACE.components, SPACE.tasks, methods=10, merged=True)


@pytest.mark.slow
@pytest.mark.parametrize("space", [SPACE, MERGED], ids=["groups", "methods"])
@pytest.mark.parametrize("changes", [{}, FAST], ids=["paper", "fast"])
def test_nothing_is_evaluated_twice(changes: dict[str, Any], space: SearchSpace) -> None:
    _, evaluator = run(replace(SMALL, evaluations=60, **changes), space)
    assert len(set(evaluator.asked)) == 60


@pytest.mark.parametrize("initial", ["kmeans", "ladder", "random"])
def test_the_first_generation_is_counted_and_holds_both_extremes(initial: str) -> None:
    archive, _ = run(replace(SMALL, initial=initial))
    first = [entry.configuration for entry in archive.measured[: SMALL.population]]
    assert SPACE.all_merged() in first
    assert SPACE.all_separate() in first
    assert archive.history[0][0] == SMALL.population


def test_k_means_and_random_start_differently() -> None:
    one, other = usual(), run(replace(SMALL, initial="random"))[0]
    assert [entry.configuration for entry in one.measured[:8]] != [entry.configuration for entry in other.measured[:8]]


def test_without_a_surrogate_a_generation_is_the_population() -> None:
    archive, _ = run(replace(SMALL, surrogate="none"))
    assert [count for count, _ in archive.history] == [8, 16, 24, 32, 40]


def test_with_a_surrogate_few_of_a_generation_are_evaluated() -> None:
    counts = [0, *(count for count, _ in usual().history)]
    steps = np.diff(counts)[1:-1]
    assert ((steps >= 4) & (steps <= 10)).all()


def test_every_evaluation_is_told_in_its_order_with_the_volume_reached() -> None:
    told: list[tuple[Measured, float]] = []
    archive, evaluator = run(on_evaluation=lambda measured, volume: told.append((measured, volume)))
    assert tuple(measured for measured, _ in told) == archive.measured
    assert [measured.configuration for measured, _ in told] == evaluator.asked
    volumes = [volume for _, volume in told]
    assert volumes == sorted(volumes)
    assert [(count, volumes[count - 1]) for count, _ in archive.history] == list(archive.history)


def test_each_evaluation_is_told_before_the_next_begins() -> None:
    evaluator = Synthetic(SPACE)
    counts: list[int] = []
    run_search(SPACE, evaluator, grams(SPACE), SMALL, REFERENCE, lambda *_: counts.append(len(evaluator.asked)))
    assert counts == list(range(1, 41))


@pytest.mark.parametrize(
    ("components", "tasks", "size"),
    [(1, 1, 1), (4, 1, 1), (1, 2, 2), (1, 3, 5), pytest.param(2, 3, 25, marks=pytest.mark.slow)],
)
@pytest.mark.parametrize("surrogate", ["random_forest", "random_forest_per_task", "none"])
@pytest.mark.parametrize("initial", ["kmeans", "ladder", "random"])
def test_an_exhausted_space_ends_the_search(
    components: int, tasks: int, size: int, surrogate: str, initial: str
) -> None:
    space = SearchSpace(tuple(f"c{i}" for i in range(components)), tuple(f"t{i}" for i in range(tasks)))
    archive, evaluator = run(replace(SMALL, surrogate=surrogate, initial=initial), space)
    assert len(set(evaluator.asked)) == len(evaluator.asked) == len(archive.measured)
    # What the operators reach of a tiny space may fall short of it, but the extremes are always there.
    assert len(archive.measured) == size if size <= 5 else len(archive.measured) <= size
    assert archive.front()


def test_a_first_generation_smaller_than_the_population_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "kmeans_population", lambda space, *_: [space.all_merged(), space.all_separate()])
    archive, _ = run()
    assert archive.history[0][0] == 2
    assert len(archive.measured) == 40


@pytest.mark.parametrize(("codecs", "population"), [(3, 4), (3, 6), (12, 20)])
def test_of_many_codecs_both_extremes_are_in_the_first_generation_all_the_same(codecs: int, population: int) -> None:
    space = SearchSpace(SPACE.components, ("a", "b", "c"), codecs=codecs)
    archive, _ = run(replace(SMALL, population=population, evaluations=population), space)
    assert {space.all_merged(), space.all_separate()} <= {entry.configuration for entry in archive.measured}


def test_the_largest_seed_works() -> None:
    assert len(run(replace(SMALL, seed=2**32 - 1))[0].measured) == 40


def test_equal_performance_everywhere_does_no_harm() -> None:
    class Flat(Synthetic):
        def evaluate(self, configuration: Configuration) -> Evaluation:
            return Evaluation(dict.fromkeys(self.space.tasks, 0.5), self.cost(configuration))

    archive = run_search(SPACE, Flat(SPACE), grams(SPACE), SMALL, REFERENCE)
    assert [entry.configuration for entry in archive.front()] == [SPACE.all_merged()]


def test_the_front_holds_what_nothing_dominates_by_rising_cost() -> None:
    archive = usual()
    points = [entry.objectives for entry in archive.front()]
    assert points == sorted(points)
    assert [performance for _, performance in points] == sorted({performance for _, performance in points})
    for cost, performance in (entry.objectives for entry in archive.measured):
        assert any(c <= cost and p >= performance for c, p in points)


def test_performance_is_normalised_by_the_fine_tunes_own() -> None:
    assert normalised_performance({"a": 0.5, "b": 0.9}, {"a": 1.0, "b": 0.9}) == 0.75
    assert normalised_performance({"a": 0.5, "b": 0.9}, {"a": 1.0, "b": 0.0}) == 0.5
    assert normalised_performance({"a": 0.5}, {"a": -0.1}) == 0.0


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_one_merged_model_becomes_better_than_by_any_method_alone(seed: int, whole_forests: None) -> None:
    space = SearchSpace(SPACE.components, ("a", "b", "c"), methods=10, merged=True)
    quality = np.random.default_rng(seed).uniform(0.1, 0.2, size=(len(space.components), space.methods))

    class Mixing(Synthetic):
        """Each component has methods of its own that suit it; costs tell nothing, though they differ."""

        def evaluate(self, configuration: Configuration) -> Evaluation:
            total = sum(quality[index, method] for index, method in enumerate(configuration.methods))
            return Evaluation(dict.fromkeys(space.tasks, float(total)), self.cost(configuration))

        def cost(self, configuration: Configuration) -> float:
            return 0.25 + 1e-6 * sum(configuration.methods)

    settings = SearchSettings(population=12, evaluations=60, seed=seed, **FAST | {"imagined_generations": 15})
    measured = run_search(space, Mixing(space), [np.eye(3)] * 4, settings, Reference(1.0, 0.0)).measured
    performances = [entry.evaluation.performance for entry in measured]
    alone = max(quality.sum(axis=0))
    best = quality.max(axis=1).sum()
    assert len(performances) == 60 < space.methods ** len(space.components)
    assert max(performances) > alone + 0.5 * (best - alone)


@pytest.mark.slow
@pytest.mark.parametrize("screening", ["front", "hypervolume"])
def test_what_one_merged_model_costs_decides_nothing(screening: str, whole_forests: None) -> None:
    space = SearchSpace(SPACE.components, ("a", "b", "c"), methods=6, merged=True)

    class Costly(Synthetic):
        """The later methods perform better and, where `step` is not 0, cost more or less."""

        step = 0.0

        def evaluate(self, configuration: Configuration) -> Evaluation:
            total = float(np.dot(np.sqrt(configuration.methods), np.arange(1, 1 + len(space.components))))
            return Evaluation(dict.fromkeys(space.tasks, total / 100), self.cost(configuration))

        def cost(self, configuration: Configuration) -> float:
            return 0.25 + self.step * sum(configuration.methods)

    settings = replace(SMALL, screening=screening, surrogate="random_forest_per_task", imagined_generations=2)
    found = []
    for step in (0.0, 1e-6, 1e-2, -1e-2):
        evaluator = Costly(space)
        evaluator.step = step
        archive = run_search(space, evaluator, [np.eye(3)] * 4, settings, Reference(1.0, 0.0))
        found.append([entry.configuration for entry in archive.measured])
    assert found[1:] == found[:1] * 3
