"""`hf-merge search`: from a recipe to a run folder that holds the Pareto front.

Everything that can be wrong with the input is found before the run folder is made. Every real evaluation is on disk
before the next begins, so that a run killed at any moment continues with `--resume` to the very same front.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from hf_merge.errors import RunFolderError
from hf_merge.merging.grouping import Grouping
from hf_merge.merging.identity import configuration_id
from hf_merge.merging.task_vectors import Geometry, measure
from hf_merge.recipe import Recipe
from hf_merge.searching.evaluation import Evaluation, ExpertBuilder, mean_score, reference_chain
from hf_merge.searching.pareto import Reference, best_within
from hf_merge.searching.ranks import DEADLINE_SECONDS, Ranks
from hf_merge.searching.search import Archive, Measured, SearchSettings, normalised_performance, run_search
from hf_merge.searching.sharing import SharedEvaluator
from hf_merge.searching.space import Configuration, SearchSpace
from hf_merge.storing import disk, hub
from hf_merge.storing import front as fronts
from hf_merge.storing.durable import FolderLock, Journal, sweep_partials, write_atomic
from hf_merge.storing.front import Front, FrontPoint
from hf_merge.workflow.launching import joined_ranks
from hf_merge.workflow.project import DTYPES, Project, Reader, load_rows, open_project, task_runs
from hf_merge.workflow.records import Evaluated, History, References, inputs_record, read_history
from hf_merge.workflow.run_folder import FRONT_FILE, JOURNAL_FILE, RECIPE_FILE, require_free


logger = logging.getLogger(__name__)
SHOWN_BUDGETS = (0.3, 0.5, 1.0)
ALL_MERGED, ALL_SEPARATE = "all-merged", "all-separate"
_UNRELATED = 0.5


def search(
    recipe: Recipe,
    out: Path,
    *,
    resume: bool = False,
    processes: int = 1,
    deadline_seconds: float = DEADLINE_SECONDS,
    progress: bool = True,
    access: hub.Access = hub.AS_USUAL,
) -> Front:
    """Searches the Pareto front of a recipe and returns it; `out` then holds recipe, journal and front.

    Args:
        recipe: What to search.
        out: The run folder; made if it does not exist. Rank 0 alone writes to it.
        resume: Continue the run that `out` holds.
        processes: How many processes to evaluate in; those of a launcher (torchrun, accelerate launch) are joined.
        deadline_seconds: How long one process waits for another before the run is given up.
        progress: Show progress on stderr.
        access: How to reach the Hub, where the sources are there.

    Raises:
        InputError: The recipe, its checkpoints or its data cannot be used, or `out` is not ours to write.
        WorkerError: A process died or hung; what was evaluated is in the journal.
    """
    with joined_ranks(recipe, out, processes, deadline_seconds) as ranks:
        if ranks.leads:
            return _lead(recipe, out, ranks, resume, progress, access)
        return _work(ranks, access)


def _lead(recipe: Recipe, out: Path, ranks: Ranks, resume: bool, progress: bool, access: hub.Access) -> Front:
    """Returns the front, searched by rank 0 with the help of the others."""
    with open_project(recipe, access=access) as project:
        require_free(out, project.recipe, resume=resume)
        ranks.share(project.recipe)
        evaluator = _evaluator(project, ranks)
        geometry = _measure(project, progress)
        _advise(project, geometry)
        sources = project.family.digests()
        with disk.naming(out):
            out.mkdir(parents=True, exist_ok=True)
        with FolderLock(out), Journal(out / JOURNAL_FILE) as journal:
            sweep_partials(out)
            write_atomic(out / RECIPE_FILE, project.recipe.dump().encode())
            history = read_history(journal.records(), str(journal.path))
            front = _Run(project, evaluator, geometry, journal, history, sources, progress).run()
            write_atomic(out / FRONT_FILE, fronts.dump(front))
            _log_ranges(project, evaluator.builder)
    evaluator.dismiss()
    ranks.share(front)
    return front


def _work(ranks: Ranks, access: hub.Access) -> Front:
    """Returns the front that rank 0 found, after working for it."""
    recipe: Recipe = ranks.receive()
    with open_project(recipe, access=access) as project:
        _evaluator(project, ranks).work()
    front: Front = ranks.receive()
    return front


def _evaluator(project: Project, ranks: Ranks) -> SharedEvaluator:
    data = load_rows(project.recipe, project.heads)
    runs = task_runs(project, {task: rows.search for task, rows in data.items()}, Reader(project))
    return SharedEvaluator(new_builder(project), runs, DTYPES[project.recipe.search.dtype], ranks=ranks)


def new_builder(project: Project) -> ExpertBuilder:
    """Returns a builder for a project; it keeps encoded experts up to half the bytes of a full-precision base.

    Of fewer than four tasks it keeps less, for what a search may hold grows with their number.
    """
    limit = min(4, len(project.family.tasks)) * project.family.parameters // 2
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
    evaluator: SharedEvaluator
    geometry: Geometry
    journal: Journal
    history: History
    sources: Mapping[str, str]
    progress: bool
    _done: list[Measured] = field(default_factory=list)

    def run(self) -> Front:
        """Returns the front, after as many real evaluations as the recipe allows."""
        self._require_same_inputs()
        self._replay()
        references = self.history.references or self._measure_references()
        components = tuple(component.name for component in self.project.components)
        space = SearchSpace(components, tuple(self.project.family.tasks))
        separate = space.all_separate()
        box = Reference.from_extremes(self.evaluator.cost(separate.grouping), mean_score(references.pretrained))
        settings = search_settings(self.project.recipe)
        total = min(settings.evaluations, space.size)
        with tqdm(total=total, desc="search", unit="evaluation", disable=not self.progress) as bar:
            archive = run_search(space, self.evaluator, self._grams(), settings, box, self._recorder(bar))
        return self._front(archive, references, {ALL_MERGED: space.all_merged(), ALL_SEPARATE: separate})

    def _grams(self) -> list[NDArray[np.float64]]:
        return [self.geometry.grams[component.name] for component in self.project.components]

    def _require_same_inputs(self) -> None:
        """Notes the digests of all checkpoints in a new journal; in an old one they must be the same."""
        known = self.history.sources
        if known is None:
            self.journal.append(inputs_record(self.sources))
        elif known != self.sources:
            changed = [name for name, digest in self.sources.items() if known.get(name) != digest]
            raise RunFolderError(
                f"{self.journal.path}: the checkpoint of {', '.join(changed)} is not the one that this run began with "
                "(its weights have another SHA-256). Search again into another folder."
            )

    def _replay(self) -> None:
        """Takes over the scores and measured experts of an earlier part of this run."""
        builder = self.evaluator.builder
        for entry in self.history.evaluations:
            widths = [len(column) for column in entry.grouping]
            if widths != [len(builder.tasks)] * len(builder.components) or entry.scores.keys() != set(builder.tasks):
                raise self._other_search(entry.number)
            for task, value in entry.scores.items():
                self.evaluator.remember(task, builder.chain(entry.grouping, task), value)
            builder.remember(entry.experts)

    def _measure_references(self) -> References:
        """Returns the fine-tunes' own scores and the base's, which bound the front; measured once per run."""
        components, tasks = self.project.components, tuple(self.evaluator.runs)
        individual, pretrained = {}, {}
        self.evaluator.run_pairs(
            [(task, reference_chain(components, members)) for task in tasks for members in ((), (task,))]
        )
        with tqdm(total=2 * len(tasks), desc="references", unit="task", disable=not self.progress) as bar:
            for task in tasks:
                pretrained[task] = self.evaluator.score(task, reference_chain(components, ()))
                bar.update()
                individual[task] = self.evaluator.score(task, reference_chain(components, (task,)))
                bar.update()
        references = References(individual, pretrained)
        self.journal.append(references.record())
        return references

    def _recorder(self, bar: "tqdm[Any]") -> Callable[[Measured, float], None]:
        def record(measured: Measured, volume: float) -> None:
            self._done.append(measured)
            self._note(measured, len(self._done))
            bar.set_postfix_str(self._summary(volume), refresh=False)
            bar.update()

        return record

    def _note(self, measured: Measured, number: int) -> None:
        """Appends an evaluation to the journal, or compares it with the journal where it is replayed."""
        grouping, evaluation = measured.configuration.grouping, measured.evaluation
        if number <= len(self.history.evaluations):
            if self.history.evaluations[number - 1].grouping != grouping:
                raise self._other_search(number)
            return
        experts = self.evaluator.builder.measured(grouping)
        entry = Evaluated(number, grouping, evaluation.cost, evaluation.performance, evaluation.scores, experts)
        self.journal.append(entry.record())

    def _other_search(self, number: int) -> RunFolderError:
        return RunFolderError(
            f"{self.journal.path}: evaluation {number} is not the one that this recipe asks for; the journal was "
            "written by another version or on other data. Search again into another folder."
        )

    def _summary(self, volume: float) -> str:
        points = [entry.objectives for entry in self._done]
        best = [(budget, best_within(points, budget)) for budget in SHOWN_BUDGETS]
        shown = " ".join(f"P({budget:g})={points[index][1]:.3f}" for budget, index in best if index is not None)
        return f"{shown} HV={volume:.4f}"

    def _front(self, archive: Archive, references: References, extremes: Mapping[str, Configuration]) -> Front:
        known = {entry.configuration: entry.evaluation for entry in archive.measured}
        project, own = self.project, references.individual
        base = project.recipe.base
        return Front(
            base=base.model if base.revision else Path(base.model).name,
            revision=base.revision,
            base_sha256=self.sources["base"],
            task_sha256={task: self.sources[f"task {task}"] for task in project.family.tasks},
            parameters=project.family.parameters,
            granularity=project.recipe.merge.granularity,
            components=tuple(component.name for component in project.components),
            tasks={task.name: task.metric for task in project.recipe.tasks},
            method=project.method.as_json(),
            codec=project.codec.as_json(),
            dtype=project.recipe.search.dtype,
            individual=dict(own),
            pretrained=dict(references.pretrained),
            reference=(archive.reference.cost, archive.reference.performance),
            hypervolume=archive.history[-1][1],
            history=archive.history,
            points=tuple(self._point(item.configuration.grouping, item.evaluation, own) for item in archive.front()),
            controls={
                name: self._point(item.grouping, known.get(item) or self.evaluator.evaluate(item.grouping), own)
                for name, item in extremes.items()
            },
        )

    def _point(self, grouping: Grouping, evaluation: Evaluation, individual: Mapping[str, float]) -> FrontPoint:
        project = self.project
        name = configuration_id(
            project.components, tuple(project.family.tasks), grouping, project.method, project.codec, evaluation.cost
        )
        normalised = normalised_performance(evaluation.scores, individual)
        return FrontPoint(name, evaluation.cost, evaluation.performance, normalised, dict(evaluation.scores), grouping)


def _measure(project: Project, progress: bool) -> Geometry:
    family = project.family
    total = sum(map(prod, family.shapes.values()))
    with tqdm(total=total, desc="task vectors", unit="parameter", unit_scale=True, disable=not progress) as bar:
        return measure(project.components, family.shapes, family.base, family.tasks, bar.update)


def _advise(project: Project, geometry: Geometry) -> None:
    """Warns of what is allowed but seldom meant: one task only, a fine-tune far from the base, or two equal ones."""
    tasks, gram = list(project.family.tasks), geometry.total()
    if len(tasks) == 1:
        logger.warning(
            "One task only ('%s'): nothing can be merged, so the front is this fine-tune, stored by the codec.",
            tasks[0],
        )
    for task, norm in zip(tasks, geometry.relative_norms(), strict=True):
        if norm > _UNRELATED:
            share = 100 * norm
            logger.warning(
                "Task '%s': its weights differ from the base by %.0f %% of the base's norm; is it of this base?",
                task,
                share,
            )
    for first in range(len(tasks)):
        for second in range(first):
            if gram[first, first] + gram[second, second] - 2 * gram[first, second] <= 1e-12 * gram[first, first]:
                logger.warning("Tasks '%s' and '%s' have the same backbone weights.", tasks[second], tasks[first])


def _log_ranges(project: Project, builder: ExpertBuilder) -> None:
    """Logs how often the criterion of Eq. 6 held, whatever the policy did with it."""
    wider, tensors = builder.widened()
    if tensors:
        share, policy = 100 * (tensors - wider) / tensors, project.codec.mapping.get("policy", "none")
        logger.info(
            "Range criterion: %.1f %% of the %d merged tensors built now pass; policy %s.", share, tensors, policy
        )
