"""`hf-merge report`: what the configurations of a front score on test rows, with the task known and with routing.

The search chose on validation rows; here configurations meet rows that nothing was fitted on. A row that the router
sends to another task is answered by that task's head, in another label space: it counts as wrong, and in a regression
as the mean of the rows that were answered, which says nothing about it.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from hf_merge.errors import RunFolderError
from hf_merge.searching.building import Chain, reference_chain
from hf_merge.searching.evaluation import Evaluator, mean_score, predictions
from hf_merge.searching.metrics import score
from hf_merge.searching.search import normalised_performance
from hf_merge.storing import hub, results
from hf_merge.storing.durable import FolderLock, write_atomic
from hf_merge.storing.front import Front, FrontPoint
from hf_merge.storing.plots import plot_front
from hf_merge.storing.results import Report, Scores
from hf_merge.workflow.configurations import configuration_of, new_builder
from hf_merge.workflow.family_router import ROUTER_FILE
from hf_merge.workflow.project import DTYPES, Project, Reader, open_project, task_runs
from hf_merge.workflow.routing import as_routed, read_routing
from hf_merge.workflow.rows import load_test_rows
from hf_merge.workflow.run_folder import PLOT_FILE, REPORT_FILE, read_run, require_same_weights
from hf_merge.workflow.summary import draw_search


def report(run: Path, *, progress: bool = True, access: hub.Access = hub.AS_USUAL) -> Report:
    """Returns the test table of a built run; writes `report.json`, `pareto.png` and `search.png` beside its front.

    Raises:
        RunFolderError: The run has no finished search, nothing of it is built yet, or a checkpoint has changed since.
    """
    front, recipe = read_run(run)
    require_built(run, front)
    with FolderLock(run), open_project(recipe, access=access) as project:
        require_same_weights(run, front, project.family.digests())
        found = _Measurement(project, front, run, progress).report()
        write_atomic(run / REPORT_FILE, results.dump(found))
        write_atomic(run / PLOT_FILE, plot_front(front, found))
        draw_search(run, front)
    return found


def require_built(run: Path, front: Front) -> None:
    """Raises RunFolderError where a run of several tasks holds no router: nothing of it is built yet."""
    if len(front.tasks) > 1 and not (run / ROUTER_FILE).is_file():
        raise RunFolderError(
            f"{run} holds no {ROUTER_FILE}: its configurations are not built yet. Run: hf-merge build {run}"
        )


class _Measurement:
    """The test rows of a run, ready to score any configuration of its front."""

    def __init__(self, project: Project, front: Front, run: Path, progress: bool) -> None:
        self._project, self._front, self._progress = project, front, progress
        rows = load_test_rows(project.recipe, project.heads)
        self._labels = {task: part.labels for task, part in rows.items()}
        reader = Reader(project)
        runs = task_runs(project, rows, reader)
        self._evaluator = Evaluator(new_builder(project, run, front), runs, DTYPES[project.recipe.search.dtype])
        routing = read_routing(project, rows, runs, reader, run)
        self._own = {task: routing.own(task) for task in runs}
        self._answers: dict[tuple[str, Chain], NDArray[np.generic]] = {}

    def report(self) -> Report:
        """Returns the table: the fine-tunes first, then the controls, then the front."""
        front = self._front
        chains = {task: reference_chain(self._project.components, (task,)) for task in front.tasks}
        validation, cost = mean_score(front.individual), self._project.family.individual_cost()
        individual = self._scores("individual", "individual", cost, validation, chains, None)
        points = [(name, point) for name, point in front.controls.items()]
        controls = {point.id for point in front.controls.values()}
        points += [("front", point) for point in front.points if point.id not in controls]
        rows = [
            self._scores(
                point.id, role, point.cost, mean_score(point.scores), self._chains(point), individual.oracle_scores
            )
            for role, point in tqdm(points, desc="report", unit="configuration", disable=not self._progress)
        ]
        accuracy = {task: float(own.mean()) for task, own in self._own.items()}
        return Report((individual, *rows), accuracy, {task: len(labels) for task, labels in self._labels.items()})

    def _scores(
        self,
        name: str,
        role: str,
        cost: float,
        validation: float,
        chains: Mapping[str, Chain],
        own: Mapping[str, float] | None,
    ) -> Scores:
        oracle, routed = {}, {}
        for task, chain in chains.items():
            run = self._evaluator.runs[task]
            answers = self._predicted(task, chain)
            oracle[task] = score(run.metric, answers, run.labels)
            routed[task] = score(run.metric, as_routed(answers, self._own[task]), run.labels)
        reference = own or oracle
        return Scores(
            id=name,
            role=role,
            cost=cost,
            validation=validation,
            oracle=mean_score(oracle),
            routed=mean_score(routed),
            oracle_normalised=normalised_performance(oracle, reference),
            routed_normalised=normalised_performance(routed, reference),
            oracle_scores=oracle,
            routed_scores=routed,
        )

    def _predicted(self, task: str, chain: Chain) -> NDArray[np.generic]:
        """Returns a task's predictions under a chain; configurations that share the chain share them."""
        if (task, chain) not in self._answers:
            self._answers[task, chain] = predictions(self._evaluator.logits(task, chain))
        return self._answers[task, chain]

    def _chains(self, point: FrontPoint) -> dict[str, Chain]:
        builder = self._evaluator.builder
        return {task: builder.chain(configuration_of(point, builder), task) for task in self._front.tasks}
