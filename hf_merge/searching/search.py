"""The search for the Pareto front (Algorithm 1): k-means start, NSGA-II, a random forest that screens.

Every generation, offspring are screened by predicted performance and exact cost; a few of them are really evaluated
and told to the algorithm. All that was evaluated is the archive, and the front is its non-dominated
part. One seed decides everything, so that the same recipe gives the same archive, and an interrupted run that repeats
its first evaluations from memory comes to where it was.

Source: MERGE, arXiv 2602.06552, Algorithm 1; what the paper leaves open is settled in docs/adr/0004-preset-paper.md.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from hf_merge.searching.configuration import Configuration
from hf_merge.searching.evaluation import Evaluation
from hf_merge.searching.guessing import Guess, guess_by_task, guess_performance
from hf_merge.searching.ladder import ladder
from hf_merge.searching.nsga2 import Nsga2
from hf_merge.searching.pareto import Reference, hypervolume, non_dominated
from hf_merge.searching.population import kmeans_population, random_population, with_choices
from hf_merge.searching.screening import screen, screen_by_improvement
from hf_merge.searching.space import SearchSpace


_IMAGINED_POPULATION = 60
_PICKS = 8
_PYMOO_SEEDS = 2**31


@dataclass(frozen=True)
class SearchSettings:
    """How to search; the defaults are preset `paper`.

    Attributes:
        population: Size of the population, and of the first generation.
        evaluations: The most real evaluations, the first generation counted in.
        offspring: Offspring per generation that the surrogate screens.
        surrogate: What screens: one forest (`random_forest`), one per task (`random_forest_per_task`), or nothing
            (`none`), where a generation is `population` offspring, all evaluated.
        screening: By what the surrogate picks: the predicted `front`, or the hoped gain of `hypervolume`.
        imagined_generations: Generations that evolve on the surrogate alone before one is evaluated.
        initial: Where the first generation comes from: `kmeans` on task vectors, the greedy `ladder` (half of it, and
            k-means the rest), or `random`.
        seed: Decides everything random.
    """

    population: int = 20
    evaluations: int = 300
    offspring: int = 100
    surrogate: str = "random_forest"
    screening: str = "front"
    imagined_generations: int = 0
    initial: str = "kmeans"
    seed: int = 0


@dataclass(frozen=True)
class Measured:
    """A configuration and what it really scored."""

    configuration: Configuration
    evaluation: Evaluation

    @property
    def objectives(self) -> tuple[float, float]:
        """The pair (cost, performance)."""
        return self.evaluation.cost, self.evaluation.performance


@dataclass(frozen=True)
class Archive:
    """Everything a search evaluated.

    Attributes:
        measured: The configurations in the order of their evaluation.
        history: Real evaluations done and hypervolume reached, after each generation.
        reference: The box of the hypervolume.
    """

    measured: tuple[Measured, ...]
    history: tuple[tuple[int, float], ...]
    reference: Reference

    def front(self) -> list[Measured]:
        """Returns the non-dominated configurations, by rising cost."""
        costs, performances = zip(*(entry.objectives for entry in self.measured), strict=True)
        return [self.measured[index] for index in non_dominated(costs, performances)]


class Evaluates(Protocol):
    """What a search needs from the evaluation: exact costs before, scores after."""

    def evaluate(self, configuration: Configuration) -> Evaluation:
        """Returns the scores and exact cost of a configuration."""

    def cost(self, configuration: Configuration) -> float:
        """Returns the cost of a configuration that need not be evaluated yet."""

    @property
    def ahead(self) -> int:
        """How many configurations are prepared together."""

    def prepare(self, configurations: Sequence[Configuration]) -> None:
        """Does beforehand what can be done together for configurations that will be evaluated next."""


def run_search(
    space: SearchSpace,
    evaluator: Evaluates,
    grams: Sequence[NDArray[np.float64]],
    settings: SearchSettings,
    reference: Reference,
    on_evaluation: Callable[[Measured, float], None] = lambda measured, volume: None,
    *,
    proposed: Sequence[Configuration] = (),
) -> Archive:
    """Returns the archive of a search; it ends early where the space is exhausted.

    Args:
        space: The configurations to choose among.
        evaluator: Scores configurations.
        grams: The Gram matrix of the task vectors of each component, [T, T] float64; used for the k-means start.
        settings: How to search.
        reference: The box of the hypervolume.
        on_evaluation: Called after each real evaluation with its result and the hypervolume reached so far.
        proposed: Configurations for the first generation, where methods or codecs are to be chosen.
    """
    algorithm = _started(space, grams, settings, proposed)
    chooser = _Chooser(space, evaluator, settings, reference, np.random.default_rng([settings.seed, 1]))
    measured: list[Measured] = []
    history: list[tuple[int, float]] = []
    while len(measured) < settings.evaluations and (candidates := algorithm.ask()):
        chosen = chooser.choose(candidates, measured)[: settings.evaluations - len(measured)]
        volume = 0.0
        for configuration in _prepared(chosen, evaluator):
            measured.append(Measured(configuration, evaluator.evaluate(configuration)))
            volume = hypervolume([entry.objectives for entry in measured], reference)
            on_evaluation(measured[-1], volume)
        performances = [entry.evaluation.performance for entry in measured[-len(chosen) :]]
        algorithm.tell(chosen, chooser.costs(chosen), performances)
        history.append((len(measured), volume))
    return Archive(tuple(measured), tuple(history), reference)


def _prepared(chosen: Sequence[Configuration], evaluator: Evaluates) -> Iterator[Configuration]:
    """Yields configurations, as many at a time prepared as the evaluator can do together."""
    for start in range(0, len(chosen), evaluator.ahead):
        block = chosen[start : start + evaluator.ahead]
        evaluator.prepare(block)
        yield from block


def _drawn(space: SearchSpace, grams: Sequence[NDArray[np.float64]], settings: SearchSettings) -> list[Configuration]:
    """Returns the first generation as far as it groups tasks."""
    if settings.initial == "kmeans":
        return kmeans_population(space, grams, settings.population, settings.seed)
    if settings.initial == "ladder":
        steps = ladder(space, grams, max(2, settings.population // 2))
        clustered = kmeans_population(space, grams, settings.population, settings.seed)
        return list(dict.fromkeys([*steps, *clustered]))[: settings.population]
    return random_population(space, settings.population, settings.seed)


def _started(
    space: SearchSpace,
    grams: Sequence[NDArray[np.float64]],
    settings: SearchSettings,
    proposed: Sequence[Configuration],
) -> Nsga2:
    """Returns the algorithm with its first generation."""
    drawn = _drawn(space, grams, settings)
    initial = with_choices(space, drawn, settings.population, settings.seed, proposed)
    offspring = settings.population if settings.surrogate == "none" else settings.offspring
    return Nsga2(space, initial, settings.population, offspring, settings.seed)


@dataclass(frozen=True)
class _Chooser:
    """Chooses what to evaluate for real."""

    space: SearchSpace
    evaluator: Evaluates
    settings: SearchSettings
    reference: Reference
    rng: np.random.Generator

    def choose(self, candidates: Sequence[Configuration], measured: Sequence[Measured]) -> list[Configuration]:
        """Returns which candidates to evaluate: all of the first generation, then what the surrogate picks."""
        if not measured or self.settings.surrogate == "none":
            return list(candidates)
        guess = self._guess(measured)
        pool = list(dict.fromkeys([*candidates, *self._imagined(measured, guess)]))
        mean, spread = guess(pool)
        costs = self.costs(pool)
        if self.settings.screening == "front":
            picked = screen(mean, spread, costs, rng=self.rng)
        else:
            points = [entry.objectives for entry in measured]
            picked = screen_by_improvement(mean, spread, costs, points, self.reference, _PICKS)
        return [pool[index] for index in picked]

    def _guess(self, measured: Sequence[Measured]) -> Guess:
        learn = guess_by_task if self.settings.surrogate == "random_forest_per_task" else guess_performance
        known = [entry.configuration for entry in measured]
        scores = [entry.evaluation.scores for entry in measured]
        return learn(self.space, known, scores, self.settings.seed + len(measured), measured[0].evaluation.deviation)

    def _imagined(self, measured: Sequence[Measured], guess: Guess) -> list[Configuration]:
        """Returns what generations bred on guesses alone come to, beginning with everything evaluated."""
        if not self.settings.imagined_generations:
            return []
        known = [entry.configuration for entry in measured]
        seed = (self.settings.seed + len(measured)) % _PYMOO_SEEDS
        algorithm = Nsga2(self.space, known, _IMAGINED_POPULATION, self.settings.offspring, seed)
        algorithm.ask()
        algorithm.tell(known, self.costs(known), [entry.evaluation.performance for entry in measured])
        bred: list[Configuration] = []
        for _ in range(self.settings.imagined_generations):
            children = algorithm.ask()
            if not children:
                break
            algorithm.tell(children, self.costs(children), guess(children)[0].tolist())
            bred += children
        return bred

    def costs(self, configurations: Sequence[Configuration]) -> list[float]:
        """Returns what configurations cost; the same for all where none keeps anything apart.

        One merged model takes a little more or less by what its codec refuses, which nobody chooses a method for.
        """
        if self.space.merged:
            return [0.0] * len(configurations)
        return [self.evaluator.cost(configuration) for configuration in configurations]


def normalised_performance(scores: Mapping[str, float], individual: Mapping[str, float]) -> float:
    """Returns the mean over tasks of the score over the fine-tune's own, 0.0 where there is nothing to compare with.

    Args:
        scores: The score of every task.
        individual: The fine-tunes' own; tasks with 0 or less are left out.
    """
    ratios = [scores[task] / own for task, own in individual.items() if own > 0]
    return sum(ratios) / len(ratios) if ratios else 0.0
