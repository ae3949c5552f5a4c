"""Tasks that a run never saw, served by its front: routed to one of its tasks, answered under their own heads.

Every row of an unseen task goes to the seen task that the run's router takes it for; that task's chain is its
backbone, and the head is the unseen fine-tune's own. Nothing of the unseen fine-tune's backbone is used.

Source: MERGE, arXiv 2602.06552, Table VII. Its row of the best P has a configuration that only P on unseen tasks
would choose; here that choice is a row of its own, and says so.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from hf_merge.errors import InputError, ModelMismatch, RecipeError
from hf_merge.modeling.assembly import CLASSIFIERS
from hf_merge.modeling.inputs import load_tokenizer
from hf_merge.modeling.processors import require_same_processors
from hf_merge.modeling.vocabularies import require_same_tokenizer
from hf_merge.recipe import Recipe, TaskSpec
from hf_merge.searching.building import Chain, ExpertBuilder, reference_chain
from hf_merge.searching.evaluation import Evaluator, mean_score, predictions
from hf_merge.searching.metrics import score
from hf_merge.searching.rows import Rows
from hf_merge.searching.running import ChainRunner, TaskRun
from hf_merge.searching.search import normalised_performance
from hf_merge.searching.states import StateCache
from hf_merge.storing import hub
from hf_merge.storing.front import Front, FrontPoint
from hf_merge.storing.results import Report
from hf_merge.workflow.configurations import configuration_of, new_builder
from hf_merge.workflow.family_router import read_router
from hf_merge.workflow.findings import Unseen, UnseenRow
from hf_merge.workflow.project import DTYPES, Project, Reader, headed_model, open_project, task_runs
from hf_merge.workflow.routing import router_scores
from hf_merge.workflow.rows import load_test_rows


CHEAPEST, BEST_SEEN, BEST_UNSEEN = "cheapest", "best on validation rows", "best on unseen rows, chosen by them"
BASE, OWN = "pre-trained base, unseen heads", "the unseen fine-tunes themselves"
_Value = TypeVar("_Value")


def measure_unseen(
    project: Project, front: Front, report: Report, run: Path, recipe: Recipe, *, progress: bool, access: hub.Access
) -> Unseen:
    """Returns how well a run serves the tasks of another recipe, which it never saw.

    Args:
        project: The run's recipe, opened.
        front: The run's front.
        report: What the front scores on the run's own test rows.
        run: The run folder, with its router.
        recipe: The unseen tasks: fine-tunes of the same base, with their data.
        progress: Show progress on stderr.
        access: How to reach the Hub, where the sources are there.

    Raises:
        InputError: The run is one of language models, which have no heads.
        ModelMismatch: The unseen tasks have another base, or read something else.
        RecipeError: A task of the recipe is one that the run merged.
    """
    if project.kind not in CLASSIFIERS:
        raise InputError(
            f"{run} merges language models, which answer with the merged weights themselves: an unseen task has no "
            "head that could stand on another task's chain. --unseen needs a run of classifiers."
        )
    with open_project(recipe, access=access) as opened:
        guest = replace(opened, recipe=opened.recipe.model_copy(update={"search": project.recipe.search}))
        _require_kin(project, guest, front, run)
        return _Hosting(project, guest, front, run, progress).measured(report)


def _require_kin(project: Project, guest: Project, front: Front, run: Path) -> None:
    """Raises where the recipe's tasks are no unseen tasks of the run's base."""
    here, there = project.recipe.base.model, guest.recipe.base.model
    digest = guest.family.base.digest()
    if digest != front.base_sha256:
        raise ModelMismatch(
            f"The unseen tasks are fine-tunes of another base: {there} (SHA-256 {digest[:12]}), and {run} was "
            f"searched on {here} ({front.base_sha256[:12]}). Name a recipe whose tasks come from the same base."
        )
    if guest.kind != project.kind:
        raise ModelMismatch(f"The unseen tasks read '{guest.kind}' and those of {run} '{project.kind}'.")
    for task, tuned in guest.family.tasks.items():
        if task in front.tasks or tuned.source.digest() in front.task_sha256.values():
            raise RecipeError(
                f"Task '{task}' ({tuned.source.source}) is no unseen task: {run} merged it, or one of its name. "
                "Leave it out of the recipe given to --unseen."
            )


class _Hosting:
    """The rows of unseen tasks, ready to be answered by any configuration of a front under the tasks' own heads."""

    def __init__(self, project: Project, guest: Project, front: Front, run: Path, progress: bool) -> None:
        self._front, self._guest, self._progress = front, guest, progress
        self._reader = Reader(project)
        _require_same_reader(self._reader.folder, guest)
        # The seen family's tensors, and in its tasks' place the unseen ones, of which only heads are read.
        self._hosted = replace(
            project,
            recipe=project.recipe.model_copy(update={"tasks": guest.recipe.tasks}),
            family=replace(project.family, tasks=guest.family.tasks),
        )
        self._rows = load_test_rows(guest.recipe, guest.heads)
        self._builder = new_builder(project, run, front)
        self._runner = ChainRunner(self._builder, DTYPES[front.dtype], StateCache(0))
        self._own = task_runs(guest, self._rows, self._reader)
        self._routed = self._routes(project, run)
        self._parts = {task.name: self._split(task) for task in guest.recipe.tasks}
        self._answers: dict[tuple[str, str, Chain], NDArray[np.generic]] = {}

    def measured(self, report: Report) -> Unseen:
        """Returns the table: three choices of the front, then the base and the fine-tunes themselves."""
        points = tqdm(self._front.points, desc="unseen tasks", unit="configuration", disable=not self._progress)
        scores = {point.id: self._scores(point) for point in points}
        base, own = self._references()
        chosen = {
            CHEAPEST: min(self._front.points, key=lambda point: point.cost),
            BEST_SEEN: max(self._front.points, key=lambda point: point.performance),
            BEST_UNSEEN: max(self._front.points, key=lambda point: (mean_score(scores[point.id]), -point.cost)),
        }
        rows = [_row(name, scores[point.id], own, point, report) for name, point in chosen.items()]
        rows += [_row(BASE, base, own), _row(OWN, own, own)]
        seen = list(self._front.tasks)
        shares = {
            task: {name: float((routed == index).mean()) for index, name in enumerate(seen)}
            for task, routed in self._routed.items()
        }
        return Unseen({task.name: task.metric for task in self._guest.recipe.tasks}, tuple(rows), shares)

    def _routes(self, project: Project, run: Path) -> dict[str, NDArray[np.int64]]:
        """Returns to which seen task the router sends each row, [rows] int64, by unseen task."""
        router, eyes = read_router(run, project)
        return {
            task: router_scores(router, eyes, part.batches, len(part.labels)).argmax(dim=1).numpy()
            for task, part in self._own.items()
        }

    def _split(self, task: TaskSpec) -> dict[str, tuple[NDArray[np.int64], TaskRun]]:
        """Returns an unseen task's rows by the seen task that answers them: their places, and how they are run."""
        model = headed_model(self._hosted, task, self._reader, DTYPES[self._front.dtype])
        parts = {}
        for index, seen in enumerate(self._front.tasks):
            places = np.flatnonzero(self._routed[task.name] == index)
            if len(places):
                rows = _chosen(self._rows[task.name], places)
                parts[seen] = places, self._reader.run(self._hosted, task, model, rows)
        return parts

    def _scores(self, point: FrontPoint) -> dict[str, float]:
        """Returns every unseen task's score under a configuration."""
        scores, chains, configuration = {}, self._builder, configuration_of(point, self._builder)
        for task, own in self._own.items():
            places, answers = [], []
            for seen, (rows, part) in self._parts[task].items():
                places.append(rows)
                answers.append(self._answered(task, seen, part, chains.chain(configuration, seen)))
            back = np.argsort(np.concatenate(places))
            scores[task] = score(own.metric, np.concatenate(answers)[back], own.labels)
        return scores

    def _answered(self, task: str, seen: str, part: TaskRun, chain: Chain) -> NDArray[np.generic]:
        """Returns what is predicted for the rows that one seen task answers; equal chains are run once."""
        if (task, seen, chain) not in self._answers:
            self._answers[task, seen, chain] = predictions(self._runner.logits(part, chain)[0])
        return self._answers[task, seen, chain]

    def _references(self) -> tuple[dict[str, float], dict[str, float]]:
        """Returns what the base scores under the unseen heads, and what the unseen fine-tunes score themselves."""
        guest = self._guest
        # Nothing is merged here, so that what a method may need beside the weights is never asked for.
        builder = ExpertBuilder(
            guest.family, guest.components, guest.methods, guest.codecs, limit_bytes=2 * guest.family.parameters
        )
        evaluator = Evaluator(builder, self._own, DTYPES[self._front.dtype])
        base, own = {}, {}
        for task in self._own:
            base[task] = evaluator.score(task, reference_chain(guest.components, ()))
            own[task] = evaluator.score(task, reference_chain(guest.components, (task,)))
        return base, own


def _row(
    name: str,
    scores: Mapping[str, float],
    own: Mapping[str, float],
    point: FrontPoint | None = None,
    report: Report | None = None,
) -> UnseenRow:
    """Returns a row of the table; `own` is what the unseen fine-tunes score themselves."""
    known = None if report is None or point is None else report.scores(point.id)
    return UnseenRow(
        name=name,
        id=None if point is None else point.id,
        cost=None if point is None else point.cost,
        seen_validation=None if point is None else point.performance,
        seen_test=None if known is None else known.oracle,
        unseen=mean_score(scores),
        normalised=normalised_performance(scores, own),
        scores=dict(scores),
    )


def _chosen(rows: Rows, places: NDArray[np.int64]) -> Rows:
    """Returns the rows at these places, in their order."""

    def cut(values: tuple[_Value, ...] | None) -> tuple[_Value, ...] | None:
        return None if values is None else tuple(values[place] for place in places)

    texts, pairs, images = cut(rows.texts), cut(rows.pairs), cut(rows.images)
    return Rows(texts, pairs, images, rows.labels[places], cut(rows.targets), cut(rows.sounds))


def _require_same_reader(folder: Path, guest: Project) -> None:
    """Raises ModelMismatch where an unseen fine-tune reads its rows otherwise than the run does."""
    if guest.kind == "text":
        require_same_tokenizer(folder, load_tokenizer(folder), guest.reader_folders())
    else:
        tuned = guest.family.tasks
        require_same_processors(folder, {task: tuned[task].source.folder for task in tuned}, guest.kind)
