"""`hf-merge search`: from a recipe to a run folder that holds the Pareto front.

Everything that can be wrong with the input is found before the run folder is made. Every real evaluation is on disk
before the next begins, so that a run killed at any moment continues with `--resume` to the very same front.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from hf_merge.errors import RunFolderError
from hf_merge.merging.task_vectors import Geometry, measure
from hf_merge.recipe import Recipe
from hf_merge.searching.building import reference_chain
from hf_merge.searching.configuration import Configuration
from hf_merge.searching.evaluation import Evaluation, weighted_score
from hf_merge.searching.pareto import Reference
from hf_merge.searching.ranks import DEADLINE_SECONDS, Ranks, device_of
from hf_merge.searching.rows import Rows
from hf_merge.searching.search import Archive, Measured, SearchSettings, run_search
from hf_merge.searching.sharing import SharedEvaluator
from hf_merge.searching.states import StateCache
from hf_merge.storing import front as fronts
from hf_merge.storing import hub
from hf_merge.storing.durable import Journal, sweep_partials, write_atomic
from hf_merge.storing.front import Front, FrontPoint
from hf_merge.workflow.advice import advise, log_ranges
from hf_merge.workflow.bars import waiting
from hf_merge.workflow.configurations import front_point, new_builder, proposals
from hf_merge.workflow.launching import handed_access, joined_ranks
from hf_merge.workflow.progress import Listener, Progress, followed
from hf_merge.workflow.project import DTYPES, Project, Reader, open_project, task_runs
from hf_merge.workflow.records import Evaluated, History, Inputs, References, read_history
from hf_merge.workflow.rows import search_rows
from hf_merge.workflow.run_folder import (
    FRONT_FILE,
    JOURNAL_FILE,
    RECIPE_FILE,
    TIMINGS_FILE,
    Claim,
    require_free,
)


ALL_MERGED, ALL_SEPARATE = "all-merged", "all-separate"
STATE_BYTES = 2 * 10**9


def search(
    recipe: Recipe,
    out: Path,
    *,
    resume: bool = False,
    processes: int = 1,
    deadline_seconds: float = DEADLINE_SECONDS,
    state_bytes: int = STATE_BYTES,
    device: str = "auto",
    progress: bool | Listener = True,
    access: hub.Access = hub.AS_USUAL,
) -> Front:
    """Searches the Pareto front of a recipe and returns it; `out` then holds recipe, journal, times and front.

    Args:
        recipe: What to search.
        out: The run folder; made if it does not exist. Rank 0 alone writes to it, but for coefficients that are fitted
            for a group of tasks by whoever merges it.
        resume: Continue the run that `out` holds.
        processes: How many processes to evaluate in; those of a launcher (torchrun, accelerate launch) are joined.
        deadline_seconds: How long one process waits for another before the run is given up.
        state_bytes: What kept hidden states may take in each process, in bytes; changes the time, never the front.
        device: Where to compute: `cpu`, `cuda`, or `auto` for cuda where there is one. Scores may differ in last bits.
        progress: Show progress on stderr, or a function to call with every event instead (docs/format.md).
        access: How to reach the Hub, where the sources are there.

    Raises:
        InputError: The recipe, its checkpoints or its data cannot be used, or `out` is not ours to write.
        WorkerError: A process died or hung; what was evaluated is in the journal.
    """
    place = device_of(device)
    with joined_ranks(recipe, out, processes, deadline_seconds, device, access) as ranks:
        if ranks.leads:
            return _lead(_Request(recipe, out, resume, state_bytes, place, progress, access), ranks)
        return _work(ranks, place, handed_access(access))


@dataclass(frozen=True)
class _Request:
    """What `search` was asked for."""

    recipe: Recipe
    out: Path
    resume: bool
    state_bytes: int
    device: torch.device
    progress: bool | Listener
    access: hub.Access


def _lead(asked: _Request, ranks: Ranks) -> Front:
    """Returns the front, searched by rank 0 with the help of the others."""
    out = asked.out
    with Claim(out, resume=asked.resume) as claim, open_project(asked.recipe, access=asked.access) as project:
        require_free(out, project.recipe, resume=asked.resume)
        ranks.share((project.recipe, asked.state_bytes, out))
        rows = search_rows(project)
        evaluator = _evaluator(
            project, rows, ranks, asked.state_bytes, out, device=asked.device, progress=asked.progress is True
        )
        geometry = _measure(project, asked.progress)
        advise(project, geometry)
        sources = project.family.digests()
        claim.make(project.recipe)
        with Journal(out / JOURNAL_FILE) as journal:
            sweep_partials(out)
            write_atomic(out / RECIPE_FILE, project.recipe.dump().encode())
            history = read_history(journal.records(), str(journal.path))
            inputs = Inputs(sources, {task: each.digest() for task, each in rows.items()})
            if history.inputs is None:
                journal.append(inputs.record())
            else:
                history.inputs.require_same(inputs, str(journal.path))  # before anything is computed in vain
            evaluator.builder.gather()  # by this process, before the others ask for it
            proposed = proposals(project, evaluator.builder, geometry, progress=asked.progress is True)
            done = len(history.evaluations)
            with followed(_total(project), done, out / TIMINGS_FILE, asked.progress) as watch:
                watch.started(project.family.tasks, ranks.count)
                front = _Run(project, evaluator, geometry, journal, history, sources, watch, proposed).run()
                write_atomic(out / FRONT_FILE, fronts.dump(front))
                watch.finished()
            log_ranges(project, evaluator.builder)
    evaluator.dismiss()
    ranks.share(front)
    return front


def _work(ranks: Ranks, device: torch.device, access: hub.Access) -> Front:
    """Returns the front that rank 0 found, after working for it."""
    recipe, state_bytes, out = ranks.receive()
    with open_project(recipe, access=access) as project:
        rows = search_rows(project)
        _evaluator(project, rows, ranks, state_bytes, out, device=device, progress=False).work()
    front: Front = ranks.receive()
    return front


def _evaluator(
    project: Project,
    rows: Mapping[str, Rows],
    ranks: Ranks,
    state_bytes: int,
    run: Path,
    *,
    device: torch.device,
    progress: bool,
) -> SharedEvaluator:
    runs = task_runs(project, rows, Reader(project), device)
    states = StateCache(state_bytes)
    builder = new_builder(project, run, progress=progress)
    search = project.recipe.search
    return SharedEvaluator(builder, runs, DTYPES[search.dtype], states, search.deviation, ranks=ranks)


def _total(project: Project) -> int:
    return min(search_settings(project.recipe).evaluations, project.space().size)


def search_settings(recipe: Recipe) -> SearchSettings:
    """Returns the search settings of a recipe."""
    section = recipe.search
    return SearchSettings(
        population=section.population,
        evaluations=section.evaluations,
        offspring=section.offspring,
        surrogate=section.surrogate,
        screening=section.screening,
        imagined_generations=section.imagined_generations,
        initial=section.initial,
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
    watch: Progress
    proposed: Sequence[Configuration] = ()
    _done: int = 0

    def run(self) -> Front:
        """Returns the front, after as many real evaluations as the recipe allows."""
        self._replay()
        references = self.history.references or self._measure_references()
        self.watch.references(references.individual, references.pretrained)
        space = self.project.space()
        separate = space.all_separate()
        least = weighted_score(references.pretrained, self.evaluator.deviation)
        dearest = max(self.evaluator.cost(space.all_separate(codec)) for codec in range(space.codecs))
        box = Reference.from_extremes(dearest, least)
        settings = search_settings(self.project.recipe)
        archive = run_search(space, self.evaluator, self._grams(), settings, box, self._record, proposed=self.proposed)
        return self._front(archive, references, {ALL_MERGED: space.all_merged(), ALL_SEPARATE: separate})

    def _grams(self) -> list[NDArray[np.float64]]:
        return [self.geometry.grams[component.name] for component in self.project.components]

    def _replay(self) -> None:
        """Takes over the scores and measured experts of an earlier part of this run."""
        builder = self.evaluator.builder
        for entry in self.history.evaluations:
            widths = [len(column) for column in entry.grouping]
            for numbers, known in ((entry.methods, builder.methods), (entry.codecs, builder.codecs)):
                if max(numbers, default=0) >= len(known) or len(numbers) not in (0, len(widths)):
                    raise self._other_search(entry.number)
            configuration = Configuration(entry.grouping, entry.methods, entry.codecs)
            if widths != [len(builder.tasks)] * len(builder.components) or entry.scores.keys() != set(builder.tasks):
                raise self._other_search(entry.number)
            for task, value in entry.scores.items():
                self.evaluator.remember(task, builder.chain(configuration, task), value)
            builder.remember(entry.experts)

    def _measure_references(self) -> References:
        """Returns the fine-tunes' own scores and the base's, which bound the front; measured once per run."""
        components, tasks = self.project.components, tuple(self.evaluator.runs)
        individual, pretrained = {}, {}
        self.evaluator.run_pairs(
            [(task, reference_chain(components, members)) for task in tasks for members in ((), (task,))]
        )
        for task in tasks:
            pretrained[task] = self.evaluator.score(task, reference_chain(components, ()))
            individual[task] = self.evaluator.score(task, reference_chain(components, (task,)))
        references = References(individual, pretrained)
        self.journal.append(references.record())
        return references

    def _record(self, measured: Measured, volume: float) -> None:
        self._done += 1
        self._note(measured, self._done)
        self.watch.evaluated(measured, volume)

    def _note(self, measured: Measured, number: int) -> None:
        """Appends an evaluation to the journal, or compares it with the journal where it is replayed."""
        wanted, found = measured.configuration, measured.evaluation
        if number <= len(self.history.evaluations):
            known = self.history.evaluations[number - 1]
            if Configuration(known.grouping, known.methods, known.codecs) != wanted:
                raise self._other_search(number)
            return
        experts = self.evaluator.builder.measured(wanted)
        entry = Evaluated(
            number,
            wanted.grouping,
            found.cost,
            found.performance,
            found.scores,
            experts,
            wanted.methods,
            wanted.codecs,
        )
        self.journal.append(entry.record())

    def _other_search(self, number: int) -> RunFolderError:
        return RunFolderError(
            f"{self.journal.path}: evaluation {number} is not the one that this recipe asks for; the journal was "
            "written by another version or on other data. Search again into another folder."
        )

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
            points=tuple(self._point(item.configuration, item.evaluation, own) for item in archive.front()),
            controls={
                name: self._point(item, known.get(item) or self.evaluator.evaluate(item), own)
                for name, item in extremes.items()
            },
        )

    def _point(
        self, configuration: Configuration, evaluation: Evaluation, individual: Mapping[str, float]
    ) -> FrontPoint:
        project = self.project
        specs = [project.methods[number] for number in configuration.methods]
        codecs = [project.codecs[number] for number in configuration.codecs]
        return front_point(project, configuration.grouping, specs, codecs, evaluation, individual)


def _measure(project: Project, progress: bool | Listener) -> Geometry:
    family = project.family
    with waiting(progress is True, "task vectors", sum(map(prod, family.shapes.values())), "parameter") as bar:
        return measure(project.components, family.shapes, family.origin, family.tasks, bar.update)
