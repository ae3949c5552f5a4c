"""`hf-merge search`: from a recipe to a run folder that holds the Pareto front.

Everything that can be wrong with the input is found before the run folder is made. Every real evaluation is on disk before the
next begins, so that a run killed at any moment continues with `--resume` to the very same front.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from hf_merge.errors import RunFolderError
from hf_merge.merging.grouping import Grouping
from hf_merge.merging.task_vectors import Geometry, measure
from hf_merge.recipe import Recipe, differences
from hf_merge.searching.evaluation import Evaluation, Evaluator, ExpertBuilder, reference_chain
from hf_merge.searching.pareto import Reference, best_within
from hf_merge.searching.search import Archive, Measured, SearchSettings, normalised_performance, run_search
from hf_merge.searching.space import Configuration, SearchSpace
from hf_merge.storing import front as fronts
from hf_merge.storing.durable import FolderLock, Journal, sweep_partials, write_atomic
from hf_merge.storing.front import Front, FrontPoint
from hf_merge.merging.identity import configuration_id
from hf_merge.workflow.project import DTYPES, Project, Reader, load_rows, open_project, task_runs


logger = logging.getLogger(__name__)
RECIPE_FILE, JOURNAL_FILE, FRONT_FILE = "recipe.yaml", "journal.jsonl", "front.json"
LOCK_FILE = ".lock"
CHECKPOINTS_FOLDER = "checkpoints"  # fine-tunes may be kept in the run folder that merges them
SHOWN_BUDGETS = (0.3, 0.5, 1.0)
ALL_MERGED, ALL_SEPARATE = "all-merged", "all-separate"
_UNRELATED = 0.5


def search(recipe: Recipe, out: Path, *, resume: bool = False, progress: bool = True) -> Front:
    """Searches the Pareto front of a recipe and returns it; `out` then holds recipe, journal and front.

    Args:
        recipe: What to search.
        out: The run folder; made if it does not exist.
        resume: Continue the run that `out` holds.
        progress: Show progress on stderr.

    Raises:
        InputError: The recipe, its checkpoints or its data cannot be used, or `out` is not ours to write.
    """
    with open_project(recipe) as project:
        _require_free(out, project.recipe, resume)
        data = load_rows(project.recipe, project.heads)
        geometry = _measure(project, progress)
        _advise(project, geometry)
        sources = project.family.digests()
        reader = Reader(project)
        runs = task_runs(project, {task: rows.search for task, rows in data.items()}, reader)
        evaluator = Evaluator(new_builder(project), runs, DTYPES[project.recipe.search.dtype])
        out.mkdir(parents=True, exist_ok=True)
        with FolderLock(out), Journal(out / JOURNAL_FILE) as journal:
            sweep_partials(out)
            write_atomic(out / RECIPE_FILE, project.recipe.dump().encode())
            front = _Run(project, evaluator, geometry, journal, progress, sources).run()
            write_atomic(out / FRONT_FILE, fronts.dump(front))
            _log_ranges(project, evaluator.builder)
    return front


def new_builder(project: Project) -> ExpertBuilder:
    """Returns a builder for a project; encoded experts are kept up to the bytes of one full-precision base, which is never held."""
    limit = 4 * project.family.parameters
    return ExpertBuilder(project.family, project.components, project.method, project.codec, limit_bytes=limit)


def search_settings(recipe: Recipe) -> SearchSettings:
    """Returns the search settings of a recipe."""
    section = recipe.search
    return SearchSettings(
        population=section.population,
        evaluations=section.evaluations,
        offspring=section.offspring,
        surrogate=section.surrogate == "random_forest",
        kmeans=section.initial == "kmeans",
        seed=section.seed,
    )


@dataclass
class _Run:
    """One search under way: what it needs, and the journal that it continues."""

    project: Project
    evaluator: Evaluator
    geometry: Geometry
    journal: Journal
    progress: bool
    sources: Mapping[str, str]
    _replayed: list[dict[str, Any]] = field(default_factory=list)
    _done: list[Measured] = field(default_factory=list)

    def run(self) -> Front:
        """Returns the front, after as many real evaluations as the recipe allows."""
        self._require_same_inputs()
        self._replay()
        individual, pretrained = self._references()
        components = tuple(component.name for component in self.project.components)
        space = SearchSpace(components, tuple(self.project.family.tasks))
        separate = space.all_separate()
        reference = Reference.from_extremes(self.evaluator.cost(separate.grouping), _mean(pretrained))
        settings = search_settings(self.project.recipe)
        total = min(settings.evaluations, space.size)
        with tqdm(total=total, desc="search", unit="evaluation", disable=not self.progress) as bar:
            archive = run_search(space, self.evaluator, self._grams(), settings, reference, self._recorder(bar))
        extremes = {ALL_MERGED: space.all_merged(), ALL_SEPARATE: separate}
        return self._front(archive, individual, pretrained, extremes)

    def _grams(self) -> list[NDArray[np.float64]]:
        return [self.geometry.grams[component.name] for component in self.project.components]

    def _require_same_inputs(self) -> None:
        """Notes the digests of all checkpoints in a new journal, and compares them with those of an earlier part of this run."""
        known = next((record["sources"] for record in self.journal.records() if record.get("kind") == "inputs"), None)
        if known is None:
            self.journal.append({"kind": "inputs", "sources": self.sources})
        elif known != self.sources:
            changed = [name for name, digest in self.sources.items() if dict(known).get(name) != digest]  # type: ignore[arg-type]
            raise RunFolderError(
                f"{self.journal.path}: the checkpoint of {', '.join(changed)} is not the one that this run began with "
                "(its weights have another SHA-256). Search again into another folder."
            )

    def _replay(self) -> None:
        """Takes over the scores and measured experts of an earlier part of this run."""
        for record in self.journal.records():
            if record.get("kind") != "evaluation":
                continue
            grouping = tuple(tuple(column) for column in record["grouping"])  # type: ignore[union-attr, arg-type]
            for task, value in record["scores"].items():  # type: ignore[union-attr]
                self.evaluator.remember(task, self.evaluator.builder.chain(grouping, task), float(value))  # type: ignore[arg-type]
            self.evaluator.builder.remember(record["experts"])  # type: ignore[arg-type]
            self._replayed.append(record)

    def _references(self) -> tuple[dict[str, float], dict[str, float]]:
        """Returns the fine-tunes' own scores and the base's, which bound the front; measured once per run."""
        for record in self.journal.records():
            if record.get("kind") == "references":
                return dict(record["individual"]), dict(record["pretrained"])  # type: ignore[arg-type]
        components, tasks = self.project.components, tuple(self.evaluator.runs)
        with tqdm(total=2 * len(tasks), desc="references", unit="task", disable=not self.progress) as bar:
            scores: dict[str, dict[str, float]] = {"individual": {}, "pretrained": {}}
            for task in tasks:
                for kind, members in (("pretrained", ()), ("individual", (task,))):
                    scores[kind][task] = self.evaluator.score(task, reference_chain(components, members))
                    bar.update()
        self.journal.append({"kind": "references", **scores})
        return scores["individual"], scores["pretrained"]

    def _recorder(self, bar: "tqdm[Any]") -> Callable[[Measured, float], None]:
        def record(measured: Measured, volume: float) -> None:
            self._done.append(measured)
            if len(self._done) > len(self._replayed):
                self._append(measured)
            else:
                self._check(measured, self._replayed[len(self._done) - 1])
            bar.set_postfix_str(self._summary(volume), refresh=False)
            bar.update()

        return record

    def _append(self, measured: Measured) -> None:
        grouping = measured.configuration.grouping
        self.journal.append(
            {
                "kind": "evaluation",
                "number": len(self._done),
                "grouping": [list(column) for column in grouping],
                "cost": measured.evaluation.cost,
                "performance": measured.evaluation.performance,
                "scores": dict(measured.evaluation.scores),
                "experts": self.evaluator.builder.measured(grouping),
            }
        )

    def _check(self, measured: Measured, record: Mapping[str, Any]) -> None:
        if [list(column) for column in measured.configuration.grouping] != record["grouping"]:
            raise RunFolderError(
                f"{self.journal.path}: evaluation {len(self._done)} is not the one that this recipe asks for; the journal was "
                "written by another version or on other data. Search again into another folder."
            )

    def _summary(self, volume: float) -> str:
        points = [entry.objectives for entry in self._done]
        best = [(budget, best_within(points, budget)) for budget in SHOWN_BUDGETS]
        shown = " ".join(f"P({budget:g})={points[index][1]:.3f}" for budget, index in best if index is not None)
        return f"{shown} HV={volume:.4f}"

    def _front(
        self,
        archive: Archive,
        individual: Mapping[str, float],
        pretrained: Mapping[str, float],
        extremes: Mapping[str, Configuration],
    ) -> Front:
        known = {entry.configuration: entry.evaluation for entry in archive.measured}
        project = self.project
        return Front(
            base=project.recipe.base.model if project.recipe.base.revision else Path(project.recipe.base.model).name,
            revision=project.recipe.base.revision,
            base_sha256=self.sources["base"],
            task_sha256={task: self.sources[f"task {task}"] for task in project.family.tasks},
            parameters=project.family.parameters,
            granularity=project.recipe.merge.granularity,
            components=tuple(component.name for component in project.components),
            tasks={task.name: task.metric for task in project.recipe.tasks},
            method=project.method.as_json(),
            codec=project.codec.as_json(),
            dtype=project.recipe.search.dtype,
            individual=dict(individual),
            pretrained=dict(pretrained),
            reference=(archive.reference.cost, archive.reference.performance),
            hypervolume=archive.history[-1][1],
            history=archive.history,
            points=tuple(
                self._point(entry.configuration.grouping, entry.evaluation, individual) for entry in archive.front()
            ),
            controls={
                name: self._point(item.grouping, known.get(item) or self.evaluator.evaluate(item.grouping), individual)
                for name, item in extremes.items()
            },
        )

    def _point(self, grouping: Grouping, evaluation: Evaluation, individual: Mapping[str, float]) -> FrontPoint:
        project = self.project
        return FrontPoint(
            id=configuration_id(
                project.components,
                tuple(project.family.tasks),
                grouping,
                project.method,
                project.codec,
                evaluation.cost,
            ),
            cost=evaluation.cost,
            performance=evaluation.performance,
            normalised=normalised_performance(evaluation.scores, individual),
            scores=dict(evaluation.scores),
            grouping=grouping,
        )


def _measure(project: Project, progress: bool) -> Geometry:
    total = sum(map(_numel, project.family.shapes.values()))
    with tqdm(total=total, desc="task vectors", unit="parameter", unit_scale=True, disable=not progress) as bar:
        return measure(
            project.components, project.family.shapes, project.family.base, project.family.tasks, bar.update
        )


def _numel(shape: Sequence[int]) -> int:
    return int(np.prod(shape, dtype=np.int64))


def _advise(project: Project, geometry: Geometry) -> None:
    """Warns of what is allowed but seldom meant: one task only, a fine-tune far from this base, two equal fine-tunes."""
    tasks, gram = list(project.family.tasks), geometry.total()
    if len(tasks) == 1:
        logger.warning(
            "One task only ('%s'): nothing can be merged, so the front is this fine-tune, stored by the codec.",
            tasks[0],
        )
    for task, norm in zip(tasks, geometry.relative_norms(), strict=True):
        if norm > _UNRELATED:
            logger.warning(
                "Task '%s': its weights differ from the base by %.0f %% of the base's norm; is it of this base?",
                task,
                100 * norm,
            )
    for first in range(len(tasks)):
        for second in range(first):
            if gram[first, first] + gram[second, second] - 2 * gram[first, second] <= 1e-12 * gram[first, first]:
                logger.warning("Tasks '%s' and '%s' have the same backbone weights.", tasks[second], tasks[first])


def _require_free(out: Path, recipe: Recipe, resume: bool) -> None:
    """Raises RunFolderError unless `out` is new, empty, or the very run that is to be continued."""
    if not out.exists():
        if resume:
            raise RunFolderError(f"{out} does not exist, so there is no run to resume. Leave out --resume.")
        return
    if not out.is_dir():
        raise RunFolderError(f"{out} is a file; give --out a folder.")
    names = {path.name for path in out.iterdir()} - {CHECKPOINTS_FOLDER, LOCK_FILE}
    held = RECIPE_FILE if RECIPE_FILE in names else min(names, default=None)
    if held is None or names == {JOURNAL_FILE}:  # the second: killed before the recipe was written
        return
    if held != RECIPE_FILE or not (out / JOURNAL_FILE).is_file():
        raise RunFolderError(f"{out} holds '{held}' and is no run folder of hf-merge. Choose a new or empty folder.")
    changed = differences(Recipe.load(out / RECIPE_FILE), recipe)
    if changed:
        listed = "\n  ".join(changed)
        raise RunFolderError(
            f"{out} holds the run of another recipe (there and here):\n  {listed}\nChoose another folder with --out."
        )
    if not resume:
        raise RunFolderError(
            f"{out} already holds this run. Continue it with --resume, or choose another folder with --out."
        )


def _mean(scores: Mapping[str, float]) -> float:
    return sum(scores.values()) / len(scores)


def _log_ranges(project: Project, builder: ExpertBuilder) -> None:
    """Logs how often the criterion of Eq. 6 held, whatever the policy did with it."""
    wider, tensors = builder.widened()
    if tensors:
        share, policy = 100 * (tensors - wider) / tensors, project.codec.mapping.get("policy", "none")
        logger.info(
            "Range criterion: %.1f %% of the %d merged tensors built now pass; policy %s.", share, tensors, policy
        )
