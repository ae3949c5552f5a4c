"""`hf-merge compare`: every static merge of a recipe's tasks measured on the same rows, beside what searches found.

Every method merges all tasks into one model, at full precision; each task keeps its head. What a search found is read
from its run folder, where `hf-merge report` measured it on the same test rows.
"""

import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from tqdm import tqdm

from hf_merge.errors import InputError, RunFolderError
from hf_merge.merging import methods
from hf_merge.merging.codecs import CodecSpec
from hf_merge.merging.methods import MethodSpec
from hf_merge.recipe import Recipe, settings_of
from hf_merge.searching.building import Chain, ExpertBuilder, reference_chain
from hf_merge.searching.configuration import Configuration
from hf_merge.searching.evaluation import Evaluator, mean_score
from hf_merge.searching.running import TaskRun
from hf_merge.searching.search import normalised_performance
from hf_merge.storing import hub
from hf_merge.storing.durable import write_atomic
from hf_merge.storing.front import Front
from hf_merge.storing.results import Report
from hf_merge.storing.strict_json import dumps
from hf_merge.workflow.comparison import Comparison, Row, as_markdown, searched_rows
from hf_merge.workflow.gathering import GatheredOnce
from hf_merge.workflow.project import DTYPES, Project, Reader, load_rows, open_project, task_runs
from hf_merge.workflow.run_folder import GATHERED_FOLDER, read_report, read_run


logger = logging.getLogger(__name__)
INDIVIDUAL, PRETRAINED, INT8 = "individual fine-tunes", "pre-trained base", "individual fine-tunes, int8"


def compare(
    recipe: Recipe,
    *,
    chosen: Sequence[str] = (),
    runs: Sequence[Path] = (),
    out: Path | None = None,
    progress: bool = True,
    access: hub.Access = hub.AS_USUAL,
) -> Comparison:
    """Returns the table of all merge methods on a recipe's tasks, and of what searches of the same tasks found.

    Args:
        recipe: The tasks; its own merge method is compared with the settings that it gives.
        chosen: The methods to compare; by default all.
        runs: Run folders whose front was measured by `hf-merge report`; several seeds of one recipe become means.
        out: A folder for `comparison.json`, `comparison.md` and what methods gather; None writes nothing.
        progress: Show progress on stderr.
        access: How to reach the Hub, where the sources are there.

    Raises:
        RecipeError: A method is unknown.
        RunFolderError: A run is of other checkpoints, or was not measured.
        DatasetError: A task's data lack what they need.
    """
    specs = _specs(recipe, chosen)
    with ExitStack() as stack:
        project = stack.enter_context(open_project(recipe, access=access))
        found = _read_runs(project, runs)
        folder = out or Path(stack.enter_context(TemporaryDirectory(prefix="hf-merge-")))
        bench = _Bench(project, folder / GATHERED_FOLDER, progress)
        rows = [*bench.references(), *bench.statics(specs)]
        if found:
            rows += _searched(found, rows)
        comparison = Comparison(
            project.family.parameters, {task.name: task.metric for task in recipe.tasks}, tuple(rows)
        )
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        write_atomic(out / "comparison.json", dumps(comparison.as_json(), indent=1))
        write_atomic(out / "comparison.md", as_markdown(comparison).encode())
    return comparison


def _specs(recipe: Recipe, chosen: Sequence[str]) -> list[MethodSpec]:
    """Returns the methods to compare; the recipe's own with the settings that it gives it."""
    own, settings = settings_of(recipe.merge.methods[0])
    names = list(dict.fromkeys(chosen)) or list(methods.available())
    if own not in names:
        names.append(own)
    return [MethodSpec.resolve(name, settings if name == own else {}) for name in names]


def _read_runs(project: Project, runs: Sequence[Path]) -> list[tuple[Front, Report]]:
    """Returns front and test table of every run, after checking that they are of these checkpoints and one method."""
    found: list[tuple[Front, Report]] = []
    digests = project.family.digests() if runs else {}
    for run in runs:
        front, _ = read_run(run)
        report = read_report(run, front)
        if report is None:
            raise RunFolderError(f"{run} was not measured on test rows. Run: hf-merge report {run}")
        known = {"base": front.base_sha256, **{f"task {name}": digest for name, digest in front.task_sha256.items()}}
        other = sorted(name for name in digests.keys() | known.keys() if digests.get(name) != known.get(name))
        if other:
            raise RunFolderError(
                f"{run} was searched on other checkpoints than the recipe names: {', '.join(other[:3])} "
                f"differ{'s' if len(other) == 1 else ''}. Name runs of the same recipe."
            )
        if front.method != project.method.as_json():
            raise RunFolderError(
                f"{run} merges by {front.method}, and the recipe by {project.method.as_json()}: G1 would compare it "
                "with another method. Name runs of the same recipe."
            )
        found.append((front, report))
    return found


def _searched(runs: Sequence[tuple[Front, Report]], rows: Sequence[Row]) -> list[Row]:
    """Returns the rows of what searches found, beside static merges that were measured."""
    own = str(runs[0][0].method["name"])
    statics = {row.name: row.validation for row in rows if row.name in methods.available() and row.validation}
    if own not in statics:
        return [Row("MERGE", note=f"its own method '{own}' could not be measured, so there is nothing to beat")]
    return searched_rows(runs, statics[own], max(statics.values()))


class _Bench:
    """Validation and test rows of all tasks, on which any chain can be scored."""

    def __init__(self, project: Project, folder: Path, progress: bool) -> None:
        self._project, self._folder, self._progress = project, folder, progress
        data, reader = load_rows(project.recipe, project.heads), Reader(project)
        self._rows: dict[str, dict[str, TaskRun]] = {
            "validation": task_runs(project, {task: rows.search for task, rows in data.items()}, reader),
            "test": task_runs(project, {task: rows.test for task, rows in data.items()}, reader),
        }
        self._own: Mapping[str, float] = {}

    def references(self) -> list[Row]:
        """Returns what the fine-tunes and the base score, and the fine-tunes at 8 bits."""
        project, tasks = self._project, tuple(self._project.family.tasks)
        separate = Configuration(project.space().all_separate().grouping)
        builder = self._builder(project.method, project.codec)
        own = {task: reference_chain(project.components, (task,)) for task in tasks}
        base = {task: reference_chain(project.components, ()) for task in tasks}
        heads = project.family.head_parameters() / project.family.parameters
        individual = self._row(INDIVIDUAL, builder, own, project.family.individual_cost())
        self._own = individual.scores
        stored = self._row(INT8, builder, {task: builder.chain(separate, task) for task in tasks}, None)
        return [
            replace(individual, normalised=1.0),
            replace(stored, cost=builder.cost(separate)),
            self._row(PRETRAINED, builder, base, 1 + heads),
        ]

    def statics(self, specs: Sequence[MethodSpec]) -> list[Row]:
        """Returns a row per method; one that cannot handle these models says why in its row."""
        rows = []
        for spec in tqdm(specs, desc="compare", unit="method", disable=not self._progress):
            try:
                rows.append(self._static(spec))
            except InputError as error:
                logger.warning("Method '%s' is left out: %s", spec.name, error)
                rows.append(Row(spec.name, spec.mapping, note=str(error).split(". ")[0]))
        return rows

    def _static(self, spec: MethodSpec) -> Row:
        """Returns what all tasks merged into one model score."""
        project = self._project
        builder = self._builder(spec, CodecSpec.resolve("full"))
        grouping = Configuration(project.space().all_merged().grouping)
        began = time.perf_counter()
        builder.gather()
        for key in builder.keys(grouping):
            builder.expert(key)
        seconds = time.perf_counter() - began
        chains = {task: builder.chain(grouping, task) for task in project.family.tasks}
        row = self._row(spec.name, builder, chains, builder.cost(grouping))
        return replace(row, settings=spec.mapping, seconds=seconds)

    def _builder(self, spec: MethodSpec, codec: CodecSpec) -> ExpertBuilder:
        project = self._project
        known = GatheredOnce(project, self._folder, progress=self._progress)
        limit = 5 * project.family.parameters  # one whole model at full precision, and what its quantisation adds
        return ExpertBuilder(project.family, project.components, [spec], codec, limit_bytes=limit, gathered=known)

    def _row(self, name: str, builder: ExpertBuilder, chains: Mapping[str, Chain], cost: float | None) -> Row:
        """Returns what chains score on validation and test rows."""
        dtype = DTYPES[self._project.recipe.search.dtype]
        scores = {}
        for split, runs in self._rows.items():
            evaluator = Evaluator(builder, runs, dtype)
            scores[split] = {task: evaluator.score(task, chain) for task, chain in chains.items()}
        test = scores["test"]
        share = normalised_performance(test, self._own) if self._own else None
        return Row(
            name,
            cost=cost,
            validation=mean_score(scores["validation"]),
            test=mean_score(test),
            normalised=share,
            scores=test,
        )
