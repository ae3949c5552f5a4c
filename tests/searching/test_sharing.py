"""Evaluations shared out over ranks: each pair run once, on one rank, and the same scores whatever their number."""

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from hf_merge.errors import HfMergeError, NonFiniteWeights
from hf_merge.merging.grouping import Grouping
from hf_merge.searching.building import Chain, reference_chain
from hf_merge.searching.configuration import Configuration
from hf_merge.searching.ranks import Ranks
from hf_merge.searching.sharing import SharedEvaluator
from hf_merge.workflow.configurations import new_builder
from hf_merge.workflow.project import DTYPES, Reader, open_project, task_runs
from hf_merge.workflow.rows import load_rows
from tests.tiny_runs import TinyRun


@dataclass
class Threads(Ranks):
    """Ranks that are threads of this process, which meet at a barrier."""

    table: Any = None
    barrier: Any = None

    def share(self, item: object) -> None:
        self.table[0] = item
        if self.count > 1:
            self.receive()

    def receive(self) -> Any:
        self.barrier.wait(30)
        found = self.table[0]
        self.barrier.wait(30)
        return found

    def gather(self, items: Any) -> Any:
        self.table[1 + self.index] = list(items)
        self.barrier.wait(30)
        found = [item for rank in range(self.count) for item in self.table[1 + rank]]
        self.barrier.wait(30)
        return found


class Counting(SharedEvaluator):
    """Notes which pairs it runs itself."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.ran: list[str] = []
        self.fails: str | None = None

    def score(self, task: str, chain: Chain) -> float:
        if (task, chain) not in self._scores:
            self.ran.append(f"{task} {[key.id for key in chain]}")
            if task == self.fails:
                raise NonFiniteWeights(f"{task} is broken")
        return super().score(task, chain)


Crew = Callable[[int], list[Counting]]


@pytest.fixture
def crew(tiny_run: TinyRun) -> Iterator[Crew]:
    """Returns a function that makes the evaluators of so many ranks."""
    with open_project(tiny_run.recipe) as project:
        rows = {task: data.search for task, data in load_rows(project.recipe, project.heads).items()}

        def make(count: int) -> list[Counting]:
            table: list[Any] = [None] * (1 + count)
            barrier = threading.Barrier(count)
            return [
                Counting(
                    new_builder(project),
                    task_runs(project, rows, Reader(project)),
                    DTYPES[project.recipe.search.dtype],
                    ranks=Threads(index, count, table=table, barrier=barrier),
                )
                for index in range(count)
            ]

        yield make


def led(evaluators: list[Counting], lead: Callable[[Counting], None]) -> list[HfMergeError]:
    """Runs rank 0's part with the others at work, and returns what the others raised."""
    errors: list[HfMergeError] = []

    def work(evaluator: Counting) -> None:
        try:
            evaluator.work()
        except HfMergeError as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(evaluator,)) for evaluator in evaluators[1:]]
    for thread in threads:
        thread.start()
    try:
        lead(evaluators[0])
    finally:
        for thread in threads:
            thread.join(60)
    return errors


@pytest.mark.parametrize("count", [1, 2, 3])
def test_every_pair_runs_once_and_scores_what_it_scores_alone(tiny_run: TinyRun, crew: Crew, count: int) -> None:
    evaluators = crew(count)
    groupings = [point.grouping for point in tiny_run.front.points]

    def lead(first: Counting) -> None:
        first.prepare([Configuration(one) for one in groupings[:2]])
        first.prepare([Configuration(one) for one in groupings])
        first.dismiss()

    led(evaluators, lead)
    for point in tiny_run.front.points:
        found = evaluators[0].evaluate(Configuration(point.grouping))
        assert (dict(found.scores), found.cost) == (dict(point.scores), point.cost)
    ran = [pair for evaluator in evaluators for pair in evaluator.ran]
    assert len(ran) == len(set(ran))
    assert all(evaluator.ran for evaluator in evaluators)


def pairs_of_each(evaluators: list[Counting], groupings: list[Grouping]) -> list[tuple[int, int]]:
    """Returns pairs asked and pairs run of each configuration, as many prepared at a time as there are ranks."""
    found: list[tuple[int, int]] = []

    def lead(first: Counting) -> None:
        first.run_pairs([(task, reference_chain(first.builder.components, ())) for task in first.runs])
        for start in range(0, len(groupings), first.ahead):
            block = groupings[start : start + first.ahead]
            first.prepare([Configuration(one) for one in block])
            found.extend(
                (r.pairs_asked, r.pairs_run) for r in (first.evaluate(Configuration(one)).reuse for one in block)
            )
        first.dismiss()

    led(evaluators, lead)
    return found


@pytest.mark.parametrize("count", [2, 3])
def test_an_evaluation_counts_what_other_ranks_ran_for_it_as_if_it_were_run_here(
    tiny_run: TinyRun, crew: Crew, count: int
) -> None:
    groupings = [point.grouping for point in tiny_run.front.points] * 2
    alone, shared = pairs_of_each(crew(1), groupings), pairs_of_each(crew(count), groupings)
    assert shared == alone
    assert all(asked == len(tiny_run.front.tasks) for asked, _ in alone)
    assert alone[0][1] == alone[0][0] and all(run == 0 for _, run in alone[len(groupings) // 2 :])


def test_all_work_of_all_ranks_is_counted_once(tiny_run: TinyRun, crew: Crew) -> None:
    evaluators = crew(2)
    pairs_of_each(evaluators, [point.grouping for point in tiny_run.front.points])
    ran = [pair for evaluator in evaluators for pair in evaluator.ran]
    references = len(tiny_run.front.tasks)  # run, and never asked for
    assert evaluators[0].reuse.pairs_run == len(ran) - references


def test_work_is_shared_evenly(tiny_run: TinyRun, crew: Crew) -> None:
    evaluators = crew(2)

    def lead(first: Counting) -> None:
        first.prepare([Configuration(point.grouping) for point in tiny_run.front.points])
        first.dismiss()

    led(evaluators, lead)
    counts = [len(evaluator.ran) for evaluator in evaluators]
    assert max(counts) - min(counts) <= 2


@pytest.mark.parametrize("failing", [0, 1])
def test_an_error_of_one_rank_is_raised_on_all(tiny_run: TinyRun, crew: Crew, failing: int) -> None:
    evaluators = crew(2)
    for task in tiny_run.front.tasks:
        evaluators[failing].fails = task

    def lead(first: Counting) -> None:
        with pytest.raises(NonFiniteWeights, match="is broken"):
            first.prepare([Configuration(point.grouping) for point in tiny_run.front.points])

    errors = led(evaluators, lead)
    assert [type(error) for error in errors] == [NonFiniteWeights]


def test_what_was_run_before_is_not_shared_again(tiny_run: TinyRun, crew: Crew, tmp_path: Path) -> None:
    (alone,) = crew(1)
    grouping = tiny_run.front.points[0].grouping
    alone.evaluate(Configuration(grouping))
    ran = len(alone.ran)
    alone.prepare([Configuration(grouping)])
    alone.evaluate(Configuration(grouping))
    assert len(alone.ran) == ran


def test_one_rank_prepares_nothing_ahead(crew: Crew) -> None:
    assert [evaluator.ahead for evaluator in crew(3)] == [3, 3, 3]
    assert crew(1)[0].ahead == 1
