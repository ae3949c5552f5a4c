"""`hf-merge refine`: each point of a front with coefficients fitted inside its groups, kept where validation agrees.

The groups stay as the search found them, and so does what they take. What changes is how much of each member's task
vector goes into an expert: fitted by Expert Merging on a few rows without labels, all groups of a configuration
together. The rows are of those that train the router; the rows that choose were seen by no fit.

Source: Expert Merging, arXiv 2509.25712, inside the groups of MERGE, arXiv 2602.06552.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from hf_merge.errors import InputError, RunFolderError
from hf_merge.merging import methods
from hf_merge.merging.methods import MethodSpec
from hf_merge.merging.settings import Setting
from hf_merge.searching.building import ExpertBuilder
from hf_merge.searching.configuration import Configuration, is_separate
from hf_merge.searching.evaluation import Evaluation, Evaluator
from hf_merge.searching.pareto import Reference, hypervolume, non_dominated
from hf_merge.searching.rows import Rows
from hf_merge.storing import front as fronts
from hf_merge.storing import hub
from hf_merge.storing.durable import FolderLock, Journal, write_atomic
from hf_merge.storing.front import Front, FrontPoint
from hf_merge.storing.strict_json import dumps
from hf_merge.workflow.configurations import codecs_of, front_point
from hf_merge.workflow.gathering import GatheredOnce
from hf_merge.workflow.project import DTYPES, Project, Reader, open_project, task_runs
from hf_merge.workflow.records import Inputs, read_history
from hf_merge.workflow.rows import search_rows
from hf_merge.workflow.run_folder import (
    FRONT_FILE,
    GATHERED_FOLDER,
    JOURNAL_FILE,
    REFINEMENT_FILE,
    read_run,
    require_same_weights,
    require_still,
)
from hf_merge.workflow.tables import text_table


_EQUAL_COST = 1e-9


@dataclass(frozen=True)
class RefinedPoint:
    """What refining made of a configuration.

    Attributes:
        id: The configuration as the search found it.
        cost: What it takes, C.
        performance: What it scored on validation rows, P.
        refined_cost: What it takes with fitted coefficients; None where nothing was fitted.
        refined_performance: What it then scores; None where nothing was fitted.
        kept: Whether the front now holds it with fitted coefficients.
        note: Why nothing was fitted; None where it was.
    """

    id: str
    cost: float
    performance: float
    refined_cost: float | None = None
    refined_performance: float | None = None
    kept: bool = False
    note: str | None = None


@dataclass(frozen=True)
class Refinement:
    """What refining made of a front.

    Attributes:
        method: The method that fits, with its settings.
        points: The configurations of the front as it was, by rising cost.
        hypervolume_before: Of the front as it was.
        hypervolume_after: Of the front as it is now, in the same box.
    """

    method: Mapping[str, Setting]
    points: tuple[RefinedPoint, ...]
    hypervolume_before: float
    hypervolume_after: float

    def as_json(self) -> dict[str, Any]:
        """Returns it as one document."""
        return asdict(self)


def refine(
    run: Path,
    *,
    method: str = "expert_merging",
    settings: Mapping[str, object] | None = None,
    progress: bool = True,
    access: hub.Access = hub.AS_USUAL,
) -> Refinement:
    """Fits coefficients inside the groups of every configuration of a front, and keeps those that score more.

    A configuration is replaced where, with fitted coefficients, it scores more on the validation rows and takes no
    more. The controls stay as they were. Configurations refined before, those that merge nothing, and those that store
    differences from shared experts are passed over.

    Args:
        run: A run folder whose search has ended; its `front.json` is written anew, and `refinement.json` beside it.
        method: `expert_merging` or `expert_merging_plus`.
        settings: The method's hyperparameters in place of its defaults.
        progress: Show progress on stderr.
        access: How to reach the Hub, where the sources are there.

    Raises:
        RunFolderError: The run has no finished search, or the checkpoints are others than it searched.
        InputError: The method fits nothing, or the tasks are adapters.
        DatasetError: A task's data lack what they need.
    """
    _require_fitting(method)
    front, recipe = read_run(run)
    with FolderLock(run), open_project(recipe, access=access) as project:
        require_still(run, front)
        require_same_weights(run, front, project.family.digests())
        refining = _Refining(project, front, run, method, dict(settings or {}), progress)
        replaced, found = refining.all()
        improved = _front(front, replaced)
        result = Refinement(refining.shown, tuple(found), front.hypervolume, improved.hypervolume)
        # The front last: while `refinement.json` lies there, no search writes its own over a refined one.
        write_atomic(run / REFINEMENT_FILE, dumps(result.as_json(), indent=1))
        write_atomic(run / FRONT_FILE, fronts.dump(improved))
    return result


def as_text(found: Refinement) -> str:
    """Returns a refinement as a table for a terminal."""
    rows = [
        [
            point.id,
            f"{point.cost:.4f}",
            f"{point.performance:.4f}",
            "-" if point.refined_performance is None else f"{point.refined_performance:.4f}",
            point.note or ("kept" if point.kept else "not better" if _is_as_cheap(point) else "takes more"),
        ]
        for point in found.points
    ]
    kept, tried = sum(point.kept for point in found.points), sum(point.note is None for point in found.points)
    volumes = f"hypervolume {found.hypervolume_before:.4f} -> {found.hypervolume_after:.4f}"
    table = text_table(["configuration", "C", "P validation", "P refined", ""], rows)
    return f"{table}\n\n{kept} of {tried} refined configurations kept, {volumes}"


def _require_fitting(method: str) -> None:
    need = methods.get(method).needs
    if need is None or not any(parameter.name == "within" for parameter in methods.get(method).hyperparameters):
        fitting = [
            name
            for name, known in methods.available().items()
            if any(parameter.name == "within" for parameter in known.hyperparameters)
        ]
        raise InputError(f"Merge method '{method}' fits no coefficients inside groups. Choose {' or '.join(fitting)}.")


def _require_same_rows(run: Path, rows: Mapping[str, Rows]) -> None:
    """Checks that scores of these rows may be compared with those of the run's front.

    Raises:
        RunFolderError: They may not, or the folder does not say which rows those were.
    """
    path, known = run / JOURNAL_FILE, None
    if path.is_file():
        with Journal(path, read_only=True) as journal:
            known = read_history(journal.records(), str(path)).inputs
    if known is None:
        raise RunFolderError(
            f"{run} holds no {JOURNAL_FILE} that says on which rows its front was searched. Give the folder that the "
            "search wrote."
        )
    known.require_same(Inputs({}, {task: each.digest() for task, each in rows.items()}), str(path))


class _Refining:
    """The validation rows of a run, on which configurations are scored with fitted coefficients.

    Attributes:
        shown: The method that fits, with its settings, whatever the configuration.
    """

    def __init__(
        self, project: Project, front: Front, run: Path, method: str, settings: Mapping[str, object], progress: bool
    ) -> None:
        self._project, self._front, self._run, self._progress = project, front, run, progress
        self._method, self._settings = method, settings
        self.shown = MethodSpec.resolve(method, settings).as_json()
        rows = search_rows(project)
        _require_same_rows(run, rows)
        self._runs = task_runs(project, rows, Reader(project))

    def all(self) -> tuple[dict[str, FrontPoint], list[RefinedPoint]]:
        """Returns the configurations to replace, by id, and what became of each."""
        replaced, found = {}, []
        for point in tqdm(self._front.points, desc="refine", unit="configuration", disable=not self._progress):
            note = self._why_not(point)
            if note is not None:
                found.append(RefinedPoint(point.id, point.cost, point.performance, note=note))
                continue
            spec = MethodSpec.resolve(self._method, {**self._settings, "within": point.id})
            evaluation = self._evaluated(spec, point)
            told = RefinedPoint(point.id, point.cost, point.performance, evaluation.cost, evaluation.performance)
            kept = evaluation.performance > point.performance and _is_as_cheap(told)
            found.append(replace(told, kept=kept))
            if kept:
                specs = [spec] * len(self._project.components)
                individual = self._front.individual
                replaced[point.id] = front_point(
                    self._project, point.grouping, specs, codecs_of(point), evaluation, individual
                )
        return replaced, found

    def _why_not(self, point: FrontPoint) -> str | None:
        """Returns why a configuration is passed over, or None."""
        if any("within" in method for method in point.methods or ()):
            return "refined before"
        if any(codec.residual for codec in codecs_of(point)):
            return "stores differences"
        columns = zip(self._project.components, point.grouping, strict=True)
        if all(component.shared or is_separate(column) for component, column in columns):
            return "merges nothing"
        return None

    def _evaluated(self, spec: MethodSpec, point: FrontPoint) -> Evaluation:
        """Returns what a configuration scores and takes under a method that fits within it."""
        project = self._project
        within = {str(spec.mapping["within"]): point.grouping}
        known = GatheredOnce(project, self._run / GATHERED_FOLDER, within=within, progress=self._progress)
        limit = 4 * project.family.parameters
        stored = tuple(dict.fromkeys([*project.codecs, *codecs_of(point)]))
        builder = ExpertBuilder(project.family, project.components, [spec], stored, limit_bytes=limit, gathered=known)
        search = project.recipe.search
        evaluator = Evaluator(builder, self._runs, DTYPES[search.dtype], deviation=search.deviation)
        numbers = tuple(map(stored.index, codecs_of(point)))
        return evaluator.evaluate(Configuration(point.grouping, codecs=numbers))


def _is_as_cheap(point: RefinedPoint) -> bool:
    return point.refined_cost is not None and point.refined_cost <= point.cost + _EQUAL_COST


def _front(front: Front, replaced: Mapping[str, FrontPoint]) -> Front:
    """Returns a front with points replaced; what they now dominate is dropped."""
    points: Sequence[FrontPoint] = [replaced.get(point.id, point) for point in front.points]
    kept = list(_best(points))
    box = Reference(*front.reference)
    volume = hypervolume([(point.cost, point.performance) for point in kept], box)
    return replace(front, points=tuple(kept), hypervolume=volume)


def _best(points: Sequence[FrontPoint]) -> Iterator[FrontPoint]:
    """Yields the non-dominated points, by rising cost."""
    for index in non_dominated([point.cost for point in points], [point.performance for point in points]):
        yield points[index]
