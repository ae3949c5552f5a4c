"""`hf-merge report` and `hf-merge eval`: what configurations score on test rows, with the task known and with routing.

The search chose on validation rows; here configurations meet rows that nothing was fitted on. A row that the router
sends to another task is answered by that task's head, in another label space: it counts as wrong, and in a regression
as the mean of the rows that were answered, which says nothing about it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from hf_merge.errors import InputError, RunFolderError
from hf_merge.recipe import Recipe
from hf_merge.searching.evaluation import Chain, Evaluator, predictions, reference_chain
from hf_merge.searching.metrics import score
from hf_merge.searching.search import normalised_performance
from hf_merge.searching.tasks import Rows
from hf_merge.serving.model import MergeModel, choose_member
from hf_merge.storing import hub
from hf_merge.storing.card import plot_front
from hf_merge.storing.chains import ChainMap
from hf_merge.storing.durable import FolderLock, write_atomic
from hf_merge.storing.front import Front, FrontPoint
from hf_merge.storing.strict_json import dumps
from hf_merge.workflow.build import ROUTER_FILE, read_router
from hf_merge.workflow.project import DTYPES, Project, Reader, load_rows, open_project, task_runs
from hf_merge.workflow.run_folder import PLOT_FILE, RECIPE_FILE, REPORT_FILE, read_run
from hf_merge.workflow.search import new_builder


_NOBODY = -1


@dataclass(frozen=True)
class Scores:
    """What one configuration scores on test rows.

    Attributes:
        id: The configuration, or `individual` for the fine-tunes at full precision.
        role: `front`, `all-merged`, `all-separate`, `individual` or `member`.
        cost: C.
        validation: P on the validation rows that the search saw.
        oracle: P on test rows, the task known.
        routed: P on test rows, the task found by the router; None without routing.
        oracle_normalised: Mean over tasks of the oracle score over the fine-tune's own; None where not measured.
        routed_normalised: The same for the routed scores.
        oracle_scores: The oracle score of every task.
        routed_scores: The routed score of every task; empty without routing.
    """

    id: str
    role: str
    cost: float
    validation: float
    oracle: float
    routed: float | None
    oracle_normalised: float | None
    routed_normalised: float | None
    oracle_scores: Mapping[str, float]
    routed_scores: Mapping[str, float]


@dataclass(frozen=True)
class Report:
    """The test table of a run.

    Attributes:
        rows: The fine-tunes, both controls, and the front by rising cost.
        router_accuracy: The share of each task's test rows that the router sends to it.
        test_rows: How many test rows each task has.
    """

    rows: tuple[Scores, ...]
    router_accuracy: Mapping[str, float]
    test_rows: Mapping[str, int]


def report(run: Path, *, progress: bool = True) -> Report:
    """Returns the test table of a built run, and writes `report.json` and `pareto.png` beside its front.

    Raises:
        RunFolderError: The run has no finished search, or nothing of it is built yet.
    """
    front, recipe = read_run(run)
    if len(front.tasks) > 1 and not (run / ROUTER_FILE).is_file():
        raise RunFolderError(
            f"{run} holds no {ROUTER_FILE}: its configurations are not built yet. Run: hf-merge build {run}"
        )
    with FolderLock(run), open_project(recipe) as project:
        found = _Measurement(project, front, run, progress).report()
        write_atomic(run / REPORT_FILE, dumps(asdict(found), indent=1))
        write_atomic(run / PLOT_FILE, plot_front(front))
    return found


def evaluate(
    folder: Path, budget: float | str | None = None, *, recipe: Path | None = None, progress: bool = True
) -> tuple[Scores, dict[str, float]]:
    """Returns what one member scores on test rows, through `MergeModel` itself, and the router's accuracy per task.

    Args:
        folder: A member folder, a Hub repo of one, or a family folder, whose best member within the budget is taken.
        budget: As in `MergeModel.from_pretrained`.
        recipe: The recipe that describes the test rows; by default that of the run which the member lies in.
        progress: Show progress on stderr.

    Raises:
        InputError: No recipe is given and none lies beside the member, or it describes other tasks.
    """
    member = choose_member(hub.pull_member(folder).folder, budget)
    described = Recipe.load(recipe or _recipe_beside(member.folder))
    _require_described(member.chain_map, described)
    model = MergeModel(member)
    metrics = {task.name: task.metric for task in described.tasks}
    rows = {task: data.test for task, data in load_rows(described, model.heads).items()}
    oracle, routed, accuracy = {}, {}, {}
    for index, task in enumerate(tqdm(model.tasks, desc="eval", unit="task", disable=not progress)):
        known, free, own = _answers(model, index, rows[task], described.search.batch_size)
        oracle[task] = score(metrics[task], known, rows[task].labels)
        routed[task] = score(metrics[task], as_routed(free, own), rows[task].labels)
        accuracy[task] = float(own.mean())
    scores = Scores(
        id=member.chain_map.id,
        role="member",
        cost=model.cost,
        validation=_mean(member.chain_map.performance),
        oracle=_mean(oracle),
        routed=_mean(routed),
        oracle_normalised=None,
        routed_normalised=None,
        oracle_scores=oracle,
        routed_scores=routed,
    )
    return scores, accuracy


def _require_described(chain_map: ChainMap, recipe: Recipe) -> None:
    """Raises InputError unless the recipe says where the rows of every task of a member are, and of its kind."""
    kinds = {task.name: "text" if task.data.image is None else "image" for task in recipe.tasks}
    for task in chain_map.tasks:
        if task not in kinds:
            raise InputError(
                f"The recipe describes no data for task '{task}' of {chain_map.id}; give another with --recipe."
            )
        if kinds[task] != chain_map.model.type:
            raise InputError(
                f"The recipe gives task '{task}' {kinds[task]} rows and {chain_map.id} reads {chain_map.model.type}; "
                "give another with --recipe."
            )


def _answers(
    model: MergeModel, index: int, rows: Rows, batch_size: int
) -> tuple[NDArray[np.generic], NDArray[np.generic], NDArray[np.bool_]]:
    """Returns predictions [rows] of one task, it known and routed, and which rows were routed to it, [rows] bool."""
    task = model.tasks[index]
    labels = slice(model.heads[task].num_labels)
    known = model.outputs(_inputs(rows), task=task, batch_size=batch_size)
    free = model.outputs(_inputs(rows), batch_size=batch_size)
    own = (free.task_ids == index).numpy()
    return predictions(known.logits[:, labels]), predictions(free.logits[:, labels]), own


def as_routed(answers: NDArray[np.generic], own: NDArray[np.bool_]) -> NDArray[np.generic]:
    """Returns a task's predictions [rows] as scored under routing: only rows in `own` met the task's own head."""
    if np.issubdtype(answers.dtype, np.floating):
        return np.where(own, answers, answers[own].mean() if own.any() else 0.0)
    return np.where(own, answers, _NOBODY)


class _Measurement:
    """The test rows of a run, ready to score any configuration of its front."""

    def __init__(self, project: Project, front: Front, run: Path, progress: bool) -> None:
        self._project, self._front, self._progress = project, front, progress
        rows = {task: data.test for task, data in load_rows(project.recipe, project.heads).items()}
        self._labels = {task: part.labels for task, part in rows.items()}
        reader = Reader(project)
        runs = task_runs(project, rows, reader)
        self._evaluator = Evaluator(new_builder(project), runs, DTYPES[project.recipe.search.dtype])
        self._own = self._routed_rows(run)
        self._answers: dict[tuple[str, Chain], NDArray[np.generic]] = {}

    def report(self) -> Report:
        """Returns the table: the fine-tunes first, then the controls, then the front."""
        front = self._front
        chains = {task: reference_chain(self._project.components, (task,)) for task in front.tasks}
        validation, cost = _mean(front.individual), float(len(front.tasks)) + self._heads()
        individual = self._scores("individual", "individual", cost, validation, chains, None)
        points = [(name, point) for name, point in front.controls.items()]
        controls = {point.id for point in front.controls.values()}
        points += [("front", point) for point in front.points if point.id not in controls]
        rows = [
            self._scores(point.id, role, point.cost, point.performance, self._chains(point), individual.oracle_scores)
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
            oracle=_mean(oracle),
            routed=_mean(routed),
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
        return {task: self._evaluator.builder.chain(point.grouping, task) for task in self._front.tasks}

    def _heads(self) -> float:
        return self._project.family.head_parameters() / self._project.family.parameters

    def _routed_rows(self, run: Path) -> dict[str, NDArray[np.bool_]]:
        """Returns which test rows of each task the router sends to that task, [rows] bool."""
        if len(self._front.tasks) == 1:
            return {task: np.ones(len(labels), dtype=bool) for task, labels in self._labels.items()}
        router, eyes = read_router(run, self._project)
        own = {}
        for index, (task, part) in enumerate(self._evaluator.runs.items()):
            routed = np.empty(len(part.labels), dtype=np.int64)
            for batch in part.batches:
                routed[batch.rows] = router.route(eyes.pooled(batch.inputs)).numpy()
            own[task] = routed == index
        return own


def _inputs(rows: Rows) -> Sequence[Any]:
    """Returns rows as `MergeModel.outputs` takes them: texts, pairs of texts, or images."""
    if rows.images is not None:
        return rows.images
    texts = rows.texts or ()
    return texts if rows.pairs is None else list(zip(texts, rows.pairs, strict=True))


def _recipe_beside(member: Path) -> Path:
    path = member.parent.parent / RECIPE_FILE
    if not path.is_file():
        raise InputError(
            f"No {RECIPE_FILE} lies in {path.parent}, so there are no test rows. Name a recipe with --recipe."
        )
    return path


def _mean(scores: Mapping[str, float]) -> float:
    return sum(scores.values()) / len(scores)
