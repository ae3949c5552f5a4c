"""`hf-merge report --analyses`: what a measured run tells about its tasks and components, beyond its scores.

What storage buys along the front, which tasks share which components, what merging one component alone loses, and how
well the front serves tasks that the run never saw. Several runs of one recipe under different seeds are looked at
together where only their fronts are needed.

Source: MERGE, arXiv 2602.06552, Fig. 1, Fig. 4 with Table VIII, Fig. 5, and Table VII.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from hf_merge.errors import RunFolderError
from hf_merge.merging.components import BASE
from hf_merge.merging.grouping import all_merged
from hf_merge.recipe import Recipe
from hf_merge.searching.configuration import Configuration
from hf_merge.searching.evaluation import Evaluator, mean_score
from hf_merge.searching.insight import associations, marginal_utilities, rank_correlation
from hf_merge.searching.states import StateCache
from hf_merge.storing import hub
from hf_merge.storing.association_plot import plot_associations
from hf_merge.storing.durable import FolderLock, write_atomic
from hf_merge.storing.front import Front
from hf_merge.storing.results import Report
from hf_merge.storing.sensitivity_plot import plot_sensitivity
from hf_merge.storing.strict_json import dumps
from hf_merge.storing.utility_plot import plot_utility
from hf_merge.workflow.configurations import new_builder
from hf_merge.workflow.findings import Analyses, Matrix, Sensitivity, Utility, as_markdown
from hf_merge.workflow.project import DTYPES, Project, Reader, open_project, task_runs
from hf_merge.workflow.report import require_built
from hf_merge.workflow.rows import search_rows
from hf_merge.workflow.run_folder import read_report, read_run, require_same_weights
from hf_merge.workflow.search import STATE_BYTES
from hf_merge.workflow.unseen import measure_unseen


ANALYSES_FILE, TABLES_FILE = "analyses.json", "analyses.md"
ASSOCIATIONS_PLOT, SENSITIVITY_PLOT, UTILITY_PLOT = "associations.png", "sensitivity.png", "utility.png"
ALL_RUNS = "all runs"
_ALIKE = ("tasks", "base_sha256", "task_sha256", "components", "method", "codec")  # what pooled runs have in common


def analyse(
    run: Path,
    *,
    further: Sequence[Path] = (),
    unseen: Recipe | None = None,
    progress: bool = True,
    access: hub.Access = hub.AS_USUAL,
) -> Analyses:
    """Returns what the analyses of a measured run find; writes them, with tables and pictures, into its folder.

    Args:
        run: A run folder that `hf-merge report` has measured.
        further: Runs of the same tasks under other seeds, measured as well; their fronts are pooled with the run's.
        unseen: Tasks that the run never saw, fine-tuned from the same base.
        progress: Show progress on stderr.
        access: How to reach the Hub, where the sources are there.

    Raises:
        RunFolderError: A run is not finished, not built or not measured; it has one task; or runs cannot be pooled.
        InputError: The unseen tasks cannot be served by this run.
    """
    front, recipe = read_run(run)
    runs = [_read(path) for path in (run, *further)]
    _require_poolable(runs)
    with FolderLock(run), open_project(recipe, access=access) as project:
        require_same_weights(run, front, project.family.digests())
        served = None
        if unseen is not None:  # first, as it may be refused
            measured = runs[0].report
            served = measure_unseen(project, front, measured, run, unseen, progress=progress, access=access)
        separate, sensitivity = _sensitivity(project, run, progress)
        found = Analyses(
            tasks=dict(front.tasks),
            runs=tuple(str(item.path) for item in runs),
            configurations=sum(len(item.front.points) for item in runs),
            utility=_utilities(runs),
            associations=_associations(runs),
            separate=separate,
            sensitivity=sensitivity,
            unseen=served,
        )
        _write(run, found)
    return found


@dataclass(frozen=True)
class _Measured:
    """A run's folder, front and test table."""

    path: Path
    front: Front
    report: Report

    def points(self, *, test: bool) -> list[tuple[float, float]]:
        """Returns the front as pairs (C, P), on validation rows or on test rows with the task known."""
        if not test:
            return [(point.cost, point.performance) for point in self.front.points]
        oracle = {row.id: row.oracle for row in self.report.rows}
        return [(point.cost, oracle[point.id]) for point in self.front.points]


def _read(run: Path) -> _Measured:
    front, _ = read_run(run)
    require_built(run, front)
    report = read_report(run, front)
    if report is None:
        raise RunFolderError(f"{run} was not measured on test rows. Run: hf-merge report {run}")
    return _Measured(run, front, report)


def _require_poolable(runs: Sequence[_Measured]) -> None:
    """Raises RunFolderError where runs differ in more than their seed, or there is nothing to analyse in them."""
    first, *others = runs
    if len(first.front.tasks) < 2:
        raise RunFolderError(f"{first.path} has one task, '{next(iter(first.front.tasks))}': nothing in it is shared.")
    for place, other in enumerate(others, start=1):
        for name in _ALIKE:
            here, there = getattr(first.front, name), getattr(other.front, name)
            if here != there:
                raise RunFolderError(
                    f"{other.path} cannot be pooled with {first.path}: {name} is {there!s:.160} there and "
                    f"{here!s:.160} here. Name runs of one recipe that differ in their seed."
                )
        if any(item.path.resolve() == other.path.resolve() for item in runs[:place]):
            raise RunFolderError(f"{other.path} is named twice; name every run once.")


def _utilities(runs: Sequence[_Measured]) -> tuple[Utility, ...]:
    """Returns what storage buys: of all runs together first where there are several."""
    names = [str(run.path) for run in runs]
    chosen, tested = ([tuple(marginal_utilities(run.points(test=test))) for run in runs] for test in (False, True))
    if len(runs) > 1:
        names.insert(0, ALL_RUNS)
        for steps in (chosen, tested):
            steps.insert(0, tuple(step for own in steps for step in own))
    return tuple(
        Utility(name, validation, test, rank_correlation(validation), rank_correlation(test))
        for name, validation, test in zip(names, chosen, tested, strict=True)
    )


def _associations(runs: Sequence[_Measured]) -> dict[str, Matrix]:
    """Returns by component how often two tasks share; the base under adapters, which all tasks share, is left out."""
    shares = associations([point.grouping for run in runs for point in run.front.points])
    return {
        component: tuple(tuple(row) for row in matrix.tolist())
        for component, matrix in zip(runs[0].front.components, shares, strict=True)
        if component != BASE
    }


def _sensitivity(project: Project, run: Path, progress: bool) -> tuple[Mapping[str, float], tuple[Sensitivity, ...]]:
    """Returns the scores with all tasks kept apart, and what merging each component alone takes from them.

    Of a recipe with several merge methods it is the first that merges.

    Source: MERGE, arXiv 2602.06552, Fig. 1.
    """
    rows = search_rows(project)
    evaluator = Evaluator(
        new_builder(project, run, progress=progress),
        task_runs(project, rows, Reader(project)),
        DTYPES[project.recipe.search.dtype],
        StateCache(STATE_BYTES),
    )
    space = project.space()
    separate = space.all_separate().grouping
    kept = evaluator.evaluate(Configuration(separate)).scores
    found = []
    for index in tqdm(space.searched, desc="sensitivity", unit="component", disable=not progress):
        merged = (*separate[:index], all_merged(len(space.tasks)), *separate[index + 1 :])
        scores = evaluator.evaluate(Configuration(merged)).scores
        drops = {task: kept[task] - scores[task] for task in kept}
        found.append(Sensitivity(space.components[index], mean_score(drops), drops))
    return kept, tuple(sorted(found, key=lambda row: (-row.drop, row.component)))


def _write(run: Path, found: Analyses) -> None:
    """Writes the analyses, their tables and their pictures into a run folder whose lock is held."""
    write_atomic(run / ANALYSES_FILE, dumps(found.as_json(), indent=1))
    write_atomic(run / TABLES_FILE, as_markdown(found).encode())
    picture = plot_associations(list(found.tasks), found.associations, found.configurations)
    write_atomic(run / ASSOCIATIONS_PLOT, picture)
    together = found.utility[0]
    write_atomic(run / UTILITY_PLOT, plot_utility(together.validation_steps, together.test_steps))
    write_atomic(run / SENSITIVITY_PLOT, plot_sensitivity({row.component: row.drops for row in found.sensitivity}))
