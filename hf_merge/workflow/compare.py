"""`hf-merge compare`: every static merge of a recipe's tasks measured on the same rows, beside what searches found.

Every method merges all tasks into one model, at full precision; each task keeps its head. Dynamic peers keep something
of each task beside it. What a search found is read from its run folder, where `hf-merge report` measured it on the
same test rows. Under routing a row that is sent to another task counts as in `hf-merge report`.
"""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType
from typing import TypeAlias

from torch import Tensor
from tqdm import tqdm

from hf_merge.errors import InputError, RecipeError, RunFolderError, nearest
from hf_merge.merging import methods
from hf_merge.merging.codecs import CodecSpec
from hf_merge.merging.cost import normalised
from hf_merge.merging.methods import MethodSpec
from hf_merge.recipe import Recipe, settings_of
from hf_merge.searching.building import Chain, ExpertBuilder, reference_chain
from hf_merge.searching.configuration import Configuration
from hf_merge.searching.evaluation import mean_score, predictions
from hf_merge.searching.metrics import score
from hf_merge.searching.running import ChainRunner, TaskRun
from hf_merge.searching.search import normalised_performance
from hf_merge.searching.states import StateCache
from hf_merge.storing import disk, hub
from hf_merge.storing.comparison_plot import Kind, plot_comparison
from hf_merge.storing.durable import write_atomic
from hf_merge.storing.strict_json import dumps
from hf_merge.workflow.compared_runs import read_runs
from hf_merge.workflow.comparison import Comparison, MeasuredRun, Row, as_markdown, marks, one_model_row, searched_rows
from hf_merge.workflow.gathering import GatheredOnce
from hf_merge.workflow.memory import PeakMemory
from hf_merge.workflow.multitask import Multitask, open_multitask
from hf_merge.workflow.peers import PEERS, answers
from hf_merge.workflow.project import DTYPES, Project, Reader, open_project, task_runs
from hf_merge.workflow.routing import Routing, as_routed, routing_of
from hf_merge.workflow.rows import load_rows
from hf_merge.workflow.run_folder import FRONT_FILE, GATHERED_FOLDER, JOURNAL_FILE


logger = logging.getLogger(__name__)
Answer: TypeAlias = Callable[[TaskRun], Tensor]
INDIVIDUAL, PRETRAINED, INT8 = "individual fine-tunes", "pre-trained base", "individual fine-tunes, int8"
MULTITASK = "multi-task training"


def compare(
    recipe: Recipe,
    *,
    chosen: Sequence[str] = (),
    settings: Mapping[str, Mapping[str, object]] = MappingProxyType({}),
    runs: Sequence[Path] = (),
    out: Path | None = None,
    routed: bool = False,
    multitask: Path | None = None,
    progress: bool = True,
    access: hub.Access = hub.AS_USUAL,
) -> Comparison:
    """Returns the table of all merge methods on a recipe's tasks, and of what searches of the same tasks found.

    Args:
        recipe: The tasks; its own merge methods are compared with the settings that it gives.
        chosen: The methods and peers to compare; by default all.
        settings: Hyperparameters by method, in place of the recipe's and of defaults.
        runs: Run folders whose front was measured by `hf-merge report`; several seeds of one recipe become means,
            those that search for one merged model (preset `automerge`) a mean of their own.
        out: A folder for `comparison.json`, `comparison.md`, `comparison.png`, the router and what methods gather;
            None writes nothing.
        routed: Train the recipe's router, and score every row with the task found by it as well.
        multitask: A folder with a checkpoint per task, all of one backbone that was trained on all tasks.
        progress: Show progress on stderr.
        access: How to reach the Hub, where the sources are there.

    Raises:
        RecipeError: A method, peer or hyperparameter is unknown or impossible.
        RunFolderError: A run is of other checkpoints, or was not measured; or `out` is a run folder.
        DatasetError: A task's data lack what they need.
        InputError: `multitask` holds no such model.
    """
    specs, peers = _specs(recipe, chosen, settings), [name for name in PEERS if not chosen or name in chosen]
    with ExitStack() as stack:
        project = stack.enter_context(open_project(recipe, access=access))
        found, merged = read_runs(project, runs)
        folder = out or Path(stack.enter_context(TemporaryDirectory(prefix="hf-merge-")))
        bench = _Bench(project, folder, progress, routed=routed)
        rows = bench.references()
        if multitask is not None:
            with open_multitask(project.recipe, multitask, access) as trained:
                rows.append(bench.multitask(trained))
        rows += [*bench.statics(specs), *bench.peers(peers)]
        rows += [*_searched(found, rows), *([one_model_row(merged)] if merged else [])]
        metrics = {task.name: task.metric for task in recipe.tasks}
        comparison = Comparison(project.family.parameters, metrics, tuple(rows))
    if out is not None:
        _write(comparison, out)
    return comparison


def _write(comparison: Comparison, out: Path) -> None:
    """Writes a comparison into a folder: for programs, for people, and as a picture."""
    with disk.naming(out):
        out.mkdir(parents=True, exist_ok=True)
    write_atomic(out / "comparison.json", dumps(comparison.as_json(), indent=1))
    write_atomic(out / "comparison.md", as_markdown(comparison).encode())
    write_atomic(out / "comparison.png", plot_comparison(marks(comparison)))


def _specs(recipe: Recipe, chosen: Sequence[str], settings: Mapping[str, Mapping[str, object]]) -> list[MethodSpec]:
    """Returns the methods to compare; the recipe's own with the first settings that it gives them."""
    own = dict(reversed([settings_of(entry) for entry in recipe.merge.methods]))
    first, _ = settings_of(recipe.merge.methods[0])
    known = [*methods.available(), *PEERS]
    unknown = next((name for name in (*chosen, *settings) if name not in known), None)
    if unknown is not None:
        raise RecipeError(f"Unknown merge method '{unknown}'.{nearest(unknown, known)}")
    idle = next((name for name in settings if name in PEERS or name not in (*(chosen or known), first)), None)
    if idle is not None:
        told = "takes none here" if idle in PEERS else f"is not compared, but {', '.join(chosen)}"
        raise RecipeError(f"A setting is given to '{idle}', which {told}. Leave it out, or name the method too.")
    names = [name for name in dict.fromkeys(chosen or known) if name not in PEERS]
    if first not in names:
        names.append(first)
    return [MethodSpec.resolve(name, {**own.get(name, {}), **settings.get(name, {})}) for name in names]


def _searched(runs: Sequence[MeasuredRun], rows: Sequence[Row]) -> list[Row]:
    """Returns the rows of what searches found, beside the methods that were measured; none without a search."""
    if not runs:
        return []
    own = str(runs[0][0].method["name"])
    rivals = (*methods.available(), *(title for title, _ in PEERS.values()))
    measured = {row.name: row.validation for row in rows if row.name in rivals and row.validation}
    if own not in measured:
        why = f"its own method '{own}' could not be measured, so there is nothing to beat"
        return [Row("MERGE", note=why, kind="searched")]
    return searched_rows(runs, measured[own], max(measured.values()))


class _Bench:
    """Validation and test rows of all tasks, on which anything that answers them can be scored."""

    def __init__(self, project: Project, folder: Path, progress: bool, *, routed: bool) -> None:
        if any((folder / name).exists() for name in (JOURNAL_FILE, FRONT_FILE)):
            raise RunFolderError(f"{folder} holds a run or a family, whose router would be replaced. Give another.")
        self._project, self._folder, self._progress = project, folder, progress
        data, reader = load_rows(project.recipe, project.heads), Reader(project)
        self._validation = task_runs(project, {task: rows.search for task, rows in data.items()}, reader)
        self._test = task_runs(project, {task: rows.test for task, rows in data.items()}, reader)
        self._routing = routing_of(project, data, self._test, reader, folder, progress=progress) if routed else None
        self._own: Mapping[str, float] = {}

    def references(self) -> list[Row]:
        """Returns what the fine-tunes and the base score, and the fine-tunes at 8 bits."""
        project, tasks = self._project, tuple(self._project.family.tasks)
        separate = Configuration(project.space().all_separate().grouping)
        builder = self._builder(project.method, _eight_bits(project))
        own = {task: reference_chain(project.components, (task,)) for task in tasks}
        base = {task: reference_chain(project.components, ()) for task in tasks}
        heads = project.family.head_parameters() / project.family.parameters
        individual = self._row(INDIVIDUAL, "reference", self._under(builder, own))
        self._own = individual.scores
        eight = self._under(builder, {task: builder.chain(separate, task) for task in tasks})
        stored = self._row(INT8, "reference", eight)
        return [
            replace(individual, cost=project.family.individual_cost(), normalised=1.0),
            replace(stored, cost=builder.cost(separate)),
            replace(self._row(PRETRAINED, "reference", self._under(builder, base)), cost=1 + heads),
        ]

    def multitask(self, trained: Multitask) -> Row:
        """Returns what one model scores that was trained on all tasks."""
        row = self._row(MULTITASK, "reference", trained.answer, runs=(trained.validation, trained.test))
        return replace(row, cost=trained.cost)

    def statics(self, specs: Sequence[MethodSpec]) -> list[Row]:
        """Returns a row per method; one that cannot handle these models says why in its row."""
        bar = tqdm(specs, desc="compare", unit="method", disable=not self._progress)
        return [self._or_why(Row(spec.name, spec.mapping, kind="static"), partial(self._static, spec)) for spec in bar]

    def peers(self, names: Sequence[str]) -> list[Row]:
        """Returns a row per dynamic peer; one that cannot handle these models says why in its row."""
        bar = tqdm(names, desc="compare", unit="peer", disable=not self._progress or not names)
        return [self._or_why(Row(PEERS[name][0], kind="peer"), partial(self._peer, name)) for name in bar]

    def _or_why(self, empty: Row, measure: Callable[[], Row]) -> Row:
        """Returns a row, or an empty one that says why there is none."""
        try:
            return measure()
        except InputError as error:
            logger.warning("'%s' is left out: %s", empty.name, error)
            return replace(empty, note=_first_sentence(error))

    def _static(self, spec: MethodSpec) -> Row:
        """Returns what all tasks merged into one model score."""
        project = self._project
        builder = self._builder(spec, CodecSpec.resolve("full"))
        grouping = Configuration(project.space().all_merged().grouping)
        there = self._gathered()
        began = time.perf_counter()
        with PeakMemory() as peak:
            builder.gather()
            for key in builder.keys(grouping):
                builder.expert(key)
        seconds = time.perf_counter() - began
        chains = {task: builder.chain(grouping, task) for task in project.family.tasks}
        row = self._row(spec.name, "static", self._under(builder, chains))
        cost = builder.cost(grouping)
        row = replace(row, settings=spec.mapping, cost=cost, seconds=seconds, peak_megabytes=peak.megabytes)
        if methods.get(spec.name).needs is None or self._gathered() != there:
            return row
        return replace(row, remark="what it gathers was there from before, so seconds and memory are without it")

    def _gathered(self) -> set[str]:
        """Returns the names of the files of what was gathered so far."""
        folder = self._folder / GATHERED_FOLDER
        return {path.name for path in folder.iterdir()} if folder.is_dir() else set()

    def _peer(self, name: str) -> Row:
        """Returns what a dynamic peer scores."""
        project, (title, make) = self._project, PEERS[name]
        began = time.perf_counter()
        with PeakMemory() as peak:
            peer = make(project, progress=self._progress)
        seconds = time.perf_counter() - began
        row = self._row(title, "peer", lambda run: answers(project, run, peer.weights(run.name)), peer.routed)
        return replace(
            row,
            settings=peer.settings,
            cost=normalised(peer.parameters + project.family.head_parameters(), project.family.parameters),
            seconds=seconds,
            peak_megabytes=peak.megabytes,
            remark="; ".join(part for part in (peer.remark, row.remark) if part is not None),
        )

    def _builder(self, spec: MethodSpec, codec: CodecSpec) -> ExpertBuilder:
        project = self._project
        known = GatheredOnce(project, self._folder / GATHERED_FOLDER, progress=self._progress)
        limit = 5 * project.family.parameters  # one whole model at full precision, and what its quantisation adds
        return ExpertBuilder(project.family, project.components, [spec], [codec], limit_bytes=limit, gathered=known)

    def _under(self, builder: ExpertBuilder, chains: Mapping[str, Chain]) -> Answer:
        """Returns what answers a task's rows under its chain."""
        runner = ChainRunner(builder, DTYPES[self._project.recipe.search.dtype], StateCache(0))
        return lambda run: runner.logits(run, chains[run.name])[0]

    def _row(
        self,
        name: str,
        kind: Kind,
        answer: Answer,
        routed: Callable[[TaskRun, Tensor], Tensor] | None = None,
        runs: tuple[Mapping[str, TaskRun], Mapping[str, TaskRun]] | None = None,
    ) -> Row:
        """Returns what `answer` scores on validation and test rows.

        Args:
            name: What the row is called.
            kind: What it is.
            answer: Returns the logits of a task's rows, the task known.
            routed: Returns them given the router's probabilities; by default rows are answered as if it were known,
                for what a router decides is the head alone, or a model that answers in another task's labels.
            runs: The tasks on validation and on test rows, where they have other heads than the fine-tunes'.
        """
        validating, testing = runs or (self._validation, self._test)
        validation = {
            task: score(run.metric, predictions(answer(run)), run.labels) for task, run in validating.items()
        }
        logits = {task: answer(run) for task, run in testing.items()}
        test = {task: score(run.metric, predictions(logits[task]), run.labels) for task, run in testing.items()}
        row = Row(name, kind=kind, validation=mean_score(validation), test=mean_score(test), scores=test)
        if self._own:
            row = replace(row, normalised=normalised_performance(test, self._own))
        return row if self._routing is None else self._with_routing(row, self._routing, logits, routed)

    def _with_routing(
        self,
        row: Row,
        routing: Routing,
        logits: Mapping[str, Tensor],
        routed: Callable[[TaskRun, Tensor], Tensor] | None,
    ) -> Row:
        """Returns a row with what it scores on test rows when a router has to find the task."""
        found = {}
        for task, run in self._test.items():
            try:
                given = logits[task] if routed is None else routed(run, routing.shares[task])
            except InputError as error:
                logger.warning("'%s' has no routed score: %s", row.name, error)
                return replace(row, remark=f"no routed score: {_first_sentence(error)}")
            found[task] = score(run.metric, as_routed(predictions(given), routing.own(task)), run.labels)
        return replace(row, routed=mean_score(found), routed_scores=found)


def _first_sentence(error: InputError) -> str:
    return str(error).split(". ")[0].removesuffix(".")


def _eight_bits(project: Project) -> CodecSpec:
    """Returns the recipe's codec of 8 bits, or the usual one where it has none that stores them."""
    ours = (codec for codec in project.codecs if codec.name == "int8" and codec.mapping["policy"] != "never")
    return next(ours, CodecSpec.resolve("int8"))
