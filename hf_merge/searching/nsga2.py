"""The evolutionary search: pymoo's NSGA-II, asked for configurations and told what they cost and achieve."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pymoo.algorithms.moo.nsga2 import NSGA2
from pymoo.config import Config
from pymoo.core.crossover import Crossover
from pymoo.core.duplicate import DuplicateElimination
from pymoo.core.evaluator import Evaluator
from pymoo.core.mutation import Mutation
from pymoo.core.population import Population
from pymoo.core.problem import Problem
from pymoo.core.termination import NoTermination
from pymoo.problems.static import StaticProblem

from hf_merge.searching.configuration import Configuration
from hf_merge.searching.space import SearchSpace


class Nsga2:
    """The state of one search: its population, its random generator and every configuration evaluated so far.

    One seed decides all; numpy's global random state neither enters nor changes.

    Attributes:
        seen: Every configuration told so far. None of them is asked for again.

    Source: NSGA-II (Deb et al., 2002) as in pymoo; operators and counts as settled for MERGE (arXiv 2602.06552).
    """

    def __init__(
        self, space: SearchSpace, initial: Sequence[Configuration], population: int, offspring: int, seed: int
    ) -> None:
        """Prepares the search.

        Args:
            space: The configurations to search.
            initial: What the first `ask` returns; may hold fewer or more than `population`.
            population: How many configurations survive each generation.
            offspring: How many new configurations each later `ask` returns.
            seed: Seed of selection, crossover, mutation and ties.

        Raises:
            ValueError: `initial` is empty.
        """
        if not initial:
            raise ValueError("The initial population is empty; give at least one configuration.")
        # pymoo would print this warning to stdout, which is for data; its pure Python functions serve as well.
        Config.warnings["not_compiled"] = False
        self.seen: set[Configuration] = set()
        self._space = space
        self._initial = list(dict.fromkeys(initial))
        self._problem = Problem(n_var=space.genes, n_obj=2)
        self._algorithm = NSGA2(
            pop_size=population,
            n_offsprings=offspring,
            crossover=_ColumnCrossover(space),
            mutation=_NeighbourMutation(space),
            eliminate_duplicates=_SeenElimination(space, self.seen),
            seed=seed,
        )
        self._algorithm.setup(self._problem, termination=NoTermination())

    @property
    def population(self) -> list[Configuration]:
        """The survivors of the last generation; empty before the first `tell`."""
        return self._decoded(self._algorithm.pop if self._algorithm.is_initialized else [])

    def ask(self) -> list[Configuration]:
        """Returns the next candidates, distinct from each other and from everything in `seen`.

        Before the first `tell` that is the initial population. Later it is `offspring` new configurations; fewer, down
        to none, where the space or what the operators reach of it is exhausted. An empty list means: stop.
        """
        if not self._algorithm.is_initialized:
            return list(self._initial)
        if len(self.seen) >= self._space.size:
            return []
        offspring = self._algorithm.ask()
        return [] if offspring is None else self._decoded(offspring)

    def tell(
        self, configurations: Sequence[Configuration], costs: Sequence[float], performances: Sequence[float]
    ) -> None:
        """Takes in what was evaluated, any subset of what was asked for, and selects the survivors.

        Configurations told before are passed over.

        Args:
            configurations: What was evaluated.
            costs: Their costs, to be minimised; finite.
            performances: Their performances, to be maximised; finite.

        Raises:
            ValueError: The lengths differ, or a cost or performance is not finite.
        """
        told: dict[Configuration, tuple[float, float]] = {}
        for configuration, cost, performance in zip(configurations, costs, performances, strict=True):
            if not np.isfinite([cost, performance]).all():
                raise ValueError(f"Cost {cost} and performance {performance} of {configuration} must be finite.")
            if configuration not in self.seen:
                told[configuration] = (cost, -performance)
        if not told:
            return
        self.seen.update(told)
        individuals = Population.new("X", np.stack([self._space.encode(configuration) for configuration in told]))
        Evaluator().eval(StaticProblem(self._problem, F=np.array(list(told.values()))), individuals)
        self._algorithm.tell(infills=individuals)

    def _decoded(self, individuals: Any) -> list[Configuration]:
        return [self._space.decode(individual.X) for individual in individuals]


# pymoo ships no types, so that its operators are of type Any to mypy.
class _ColumnCrossover(Crossover):  # type: ignore[misc]
    def __init__(self, space: SearchSpace) -> None:
        super().__init__(n_parents=2, n_offsprings=2, prob=0.9)
        self._space = space

    def _do(
        self, problem: Problem, parents: NDArray[np.int64], *, random_state: np.random.Generator, **_: Any
    ) -> NDArray[np.int64]:
        """Returns the children `[2, matings, genes]` of parents of the same shape."""
        children = np.empty_like(parents)
        for mating in range(parents.shape[1]):
            first, second = (self._space.decode(parent) for parent in parents[:, mating])
            pair = self._space.crossover(first, second, random_state)
            children[:, mating] = [self._space.encode(child) for child in pair]
        return children


class _NeighbourMutation(Mutation):  # type: ignore[misc]
    def __init__(self, space: SearchSpace) -> None:
        super().__init__(prob=1.0)
        self._space = space

    def _do(
        self, problem: Problem, vectors: NDArray[np.int64], *, random_state: np.random.Generator, **_: Any
    ) -> NDArray[np.int64]:
        """Returns the mutated vectors `[individuals, genes]`."""
        mutated = (self._space.mutate(self._space.decode(vector), random_state) for vector in vectors)
        return np.stack([self._space.encode(configuration) for configuration in mutated])


class _SeenElimination(DuplicateElimination):  # type: ignore[misc]
    """Drops individuals that repeat each other, another population, or a configuration evaluated earlier."""

    def __init__(self, space: SearchSpace, seen: set[Configuration]) -> None:
        super().__init__()
        self._space, self._seen = space, seen

    def _do(self, individuals: Any, others: Any, repeated: NDArray[np.bool_]) -> NDArray[np.bool_]:
        known = set(self._seen)
        if others is not None:
            known.update(self._space.decode(other.X) for other in others)
        for index, individual in enumerate(individuals):
            configuration = self._space.decode(individual.X)
            repeated[index] = configuration in known
            known.add(configuration)
        return repeated
