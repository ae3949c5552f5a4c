"""A recipe made concrete: sources pulled and pinned, checkpoints aligned, components cut, rows read and batched."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from hf_merge.errors import CheckpointDamaged, HubError, RecipeError
from hf_merge.merging.codecs import CodecSpec
from hf_merge.merging.components import BASE, Component, Place, Shape, cut, places, require_granularity
from hf_merge.merging.methods import MethodSpec
from hf_merge.modeling.adapters import adapter_shapes
from hf_merge.modeling.assembly import Head, Kind, TaskModel, require_kind, used_names
from hf_merge.modeling.inputs import Batch, image_batches, load_image_processor, load_tokenizer, text_batches
from hf_merge.modeling.layouts import names_in_memory
from hf_merge.modeling.processors import require_same_processors
from hf_merge.recipe import DataSpec, Recipe, TaskSpec, settings_of
from hf_merge.searching.running import TaskRun
from hf_merge.searching.space import SearchSpace
from hf_merge.searching.splits import BUILDERS, check_source
from hf_merge.searching.tasks import Rows, TaskData, load_task
from hf_merge.storing import hub
from hf_merge.storing.adapted import align_adapted
from hf_merge.storing.adapters import Adapter
from hf_merge.storing.checkpoints import Checkpoint
from hf_merge.storing.families import Family, FineTune, align


logger = logging.getLogger(__name__)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Project:
    """A recipe with everything that follows from it before a weight is read.

    Attributes:
        recipe: The recipe, every Hub source pinned to a commit.
        family: The aligned base and fine-tunes, opened.
        components: The partition of the backbone.
        method: How groups are merged.
        codec: How experts are stored.
        kind: Whether the tasks read text or images.
    """

    recipe: Recipe
    family: Family
    components: tuple[Component, ...]
    method: MethodSpec
    codec: CodecSpec
    kind: Kind

    @property
    def heads(self) -> dict[str, Head]:
        """What each task's head answers, by task."""
        return {task.name: _head(task, self.family.tasks[task.name]) for task in self.recipe.tasks}

    @property
    def adapter(self) -> dict[str, Shape]:
        """The shapes of the adapters' own tensors; empty where the tasks are whole fine-tunes."""
        return adapter_shapes(self.family.shapes)

    def space(self) -> SearchSpace:
        """Returns the configurations among which a search chooses."""
        shared = frozenset(component.name for component in self.components if component.shared)
        return SearchSpace(tuple(component.name for component in self.components), tuple(self.family.tasks), shared)

    def places(self) -> dict[str, Place]:
        """Returns where every tensor stands in its model; an adapter's stands with the weight that it acts on."""
        return _places(self.family)

    def reader_folders(self) -> list[Path]:
        """Returns where a tokenizer or processor may lie: the base first, then the fine-tunes."""
        return [self.family.base.folder, *(tuned.source.folder for tuned in self.family.tasks.values())]


@contextmanager
def open_project(
    recipe: Recipe, *, headers_only: bool = False, access: hub.Access = hub.AS_USUAL
) -> Iterator[Project]:
    """Opens a recipe: pulls what is on the Hub, checks configurations and headers, and closes the files at the end.

    Args:
        recipe: The recipe.
        headers_only: Leave the weights on the Hub; whoever reads one gets an error.
        access: How to reach the Hub.

    Raises:
        RecipeError: A method, codec or hyperparameter is unknown or impossible, or tasks of two kinds are mixed.
        ModelMismatch: The checkpoints cannot be merged; every clash is listed.
        HubError: A source cannot be pulled.
    """
    method = MethodSpec.resolve(*settings_of(recipe.merge.methods[0]))
    codec = CodecSpec.resolve(*settings_of(recipe.merge.codecs[0]))
    require_granularity(recipe.merge.granularity)
    kind = _kind(recipe)
    with _Opening(headers_only, access) as opening:
        base = opening.open("base", recipe.base.model, recipe.base.revision)
        tuned = {task.name: opening.open_task(task) for task in recipe.tasks}
        require_kind(base.config, kind)
        family = _aligned(base, tuned, kind)
        pinned = _pinned(recipe, base, tuned, access)
        components = _components(family, recipe.merge.granularity, recipe.merge.stages)
        yield Project(pinned, family, components, method, codec, kind)


def load_rows(recipe: Recipe, heads: Mapping[str, Head]) -> dict[str, TaskData]:
    """Returns every task's rows: to search, to train the router, and to test.

    Args:
        recipe: Where the rows are.
        heads: What each task's head answers; only tasks named here are loaded.

    Raises:
        DatasetError: A task's data lack what it needs.
    """
    return {
        task.name: load_task(
            task,
            validation_rows=recipe.search.validation_rows,
            router_rows=recipe.router.rows_per_task,
            seed=recipe.search.seed,
            num_labels=heads[task.name].num_labels,
            label_names=heads[task.name].labels,
        )
        for task in recipe.tasks
        if task.name in heads
    }


class Reader:
    """The tokenizer or image processor of a project, and the batches that it makes.

    Attributes:
        pad_token_id: What the tokenizer pads with, or None for images.
    """

    def __init__(self, project: Project) -> None:
        """Loads the reader of the first folder that has one: the base's, else a fine-tune's."""
        folders = project.reader_folders()
        marks = (
            ("tokenizer.json", "vocab.txt", "tokenizer_config.json")
            if project.kind == "text"
            else ("preprocessor_config.json",)
        )
        folder = next((folder for folder in folders if any((folder / mark).is_file() for mark in marks)), folders[0])
        self.folder, self._search = folder, project.recipe.search
        self._tokenizer = load_tokenizer(folder) if project.kind == "text" else None
        self._processor = load_image_processor(folder) if project.kind == "image" else None
        if project.kind == "image":
            tuned = project.family.tasks
            require_same_processors(folder, {task: tuned[task].source.folder for task in tuned})
        self.pad_token_id: int | None = getattr(self._tokenizer, "pad_token_id", None)

    def batches(self, rows: Rows) -> list[Batch]:
        """Returns rows as model inputs, arranged once: texts sorted by length, images in order."""
        size = self._search.batch_size
        if self._processor is not None:
            return image_batches(self._processor, rows.images or (), batch_size=size)
        if self._tokenizer is None:
            raise RuntimeError("A reader has either a tokenizer or a processor.")
        return text_batches(
            self._tokenizer, rows.texts or (), rows.pairs, batch_size=size, max_length=self._search.max_length
        )


def task_runs(project: Project, rows: Mapping[str, Rows], reader: Reader) -> dict[str, TaskRun]:
    """Returns the tasks ready to be evaluated on the given rows, heads set in the recipe's computing type."""
    dtype = DTYPES[project.recipe.search.dtype]
    runs = {}
    for task in project.recipe.tasks:
        tuned = project.family.tasks[task.name]
        model = TaskModel(
            project.family.base.config,
            project.kind,
            project.heads[task.name],
            pad_token_id=reader.pad_token_id,
            adapter=project.adapter,
            trunk=project.family.base.trunk,
        )
        model.set_head({name: tuned.read_head(name).to(dtype) for name in tuned.head})
        runs[task.name] = TaskRun(
            task.name, model, reader.batches(rows[task.name]), rows[task.name].labels, task.metric
        )
    return runs


class _Opening(ExitStack):
    """Checkpoints being opened, and closed again together."""

    def __init__(self, headers_only: bool, access: hub.Access) -> None:
        super().__init__()
        self._access, self._scratch = access, Path()
        self._headers_only = headers_only
        if headers_only:
            self._scratch = Path(self.enter_context(TemporaryDirectory(prefix="hf-merge-")))

    def open(self, name: str, source: str, revision: str | None) -> Checkpoint:
        """Returns a checkpoint opened, pulled first where it is on the Hub."""
        if self._headers_only:
            resolved = hub.pull_headers(source, revision, self._scratch / name, access=self._access)
        else:
            resolved = hub.pull_checkpoint(source, revision, access=self._access)
        checkpoint = Checkpoint(source, resolved.folder, resolved.revision, headers_only=self._headers_only)
        return self.enter_context(checkpoint)

    def open_task(self, task: TaskSpec) -> Checkpoint | Adapter:
        """Returns a task's checkpoint or adapter opened, pulled first where it is on the Hub."""
        if task.adapter is None:
            return self.open(f"task {task.name}", task.source, task.revision)
        resolved = hub.pull_checkpoint(task.adapter, task.revision, access=self._access)
        return self.enter_context(Adapter(task.adapter, resolved.folder, resolved.revision))


def _aligned(base: Checkpoint, tuned: Mapping[str, Checkpoint | Adapter], kind: Kind) -> Family:
    whole = {task: held for task, held in tuned.items() if isinstance(held, Checkpoint)}
    if len(whole) == len(tuned):
        return align(base, whole)
    headless = next((task for task, held in tuned.items() if isinstance(held, Adapter) and not held.whole()), None)
    if headless is not None:
        raise CheckpointDamaged(
            f"Task '{headless}' ({tuned[headless].source}): the adapter holds no head, which a classifier needs. "
            "Train it with task_type SEQ_CLS, or name the head in modules_to_save."
        )
    used = used_names(base.config, kind, base.backbone().values(), base.trunk)
    return align_adapted(base, tuned, used, names_in_memory(base.config))


def _head(task: TaskSpec, tuned: FineTune) -> Head:
    """Returns what a task's head answers, its labels named by the recipe where its checkpoint does not."""
    head = Head.of(tuned.config)
    if task.labels is None or task.labels == head.labels:
        return head
    if head.labels is not None or len(task.labels) != head.num_labels:
        found = f"{head.num_labels} outputs" if head.labels is None else f"the labels {', '.join(head.labels)}"
        raise RecipeError(
            f"Task '{task.name}': the recipe names the labels {', '.join(task.labels)}, and {task.source} has "
            f"{found}. Leave `labels` out, or name one for each output, in their order."
        )
    return replace(head, labels=task.labels)


def _places(family: Family) -> dict[str, Place]:
    of_base = places(family.of_base)
    return {name: of_base[family.adapted.get(name, name)] for name in family.shapes}


def _components(family: Family, granularity: str, stages: int) -> tuple[Component, ...]:
    """Returns the partition of the backbone: of adapters their own tensors, and the base as one more component."""
    placed = _places(family)
    if not family.adapted:
        return cut(placed, granularity, stages=stages)
    shared = tuple(sorted(name for name in placed if name not in family.adapted))
    own = cut({name: placed[name] for name in family.adapted}, granularity, stages=stages)
    return (Component(BASE, shared, shared=True), *own)


def _pinned(recipe: Recipe, base: Checkpoint, tuned: Mapping[str, Checkpoint | Adapter], access: hub.Access) -> Recipe:
    """Returns the recipe with every Hub source pinned to the commit that was pulled, every local path absolute."""
    tasks = tuple(
        task.model_copy(
            update={
                task.source_key: _address(tuned[task.name]),
                "revision": tuned[task.name].revision,
                "data": _located(task, access),
            }
        )
        for task in recipe.tasks
    )
    pinned = recipe.base.model_copy(update={"model": _address(base), "revision": base.revision})
    return recipe.model_copy(update={"base": pinned, "tasks": tasks})


def _address(checkpoint: Checkpoint | Adapter) -> str:
    return checkpoint.source if checkpoint.revision is not None else str(checkpoint.folder.absolute())


def _located(task: TaskSpec, access: hub.Access) -> DataSpec:
    """Returns where rows are, a data set on the Hub at one commit, local files by absolute path."""
    data = task.data
    check_source(task)
    if data.path not in BUILDERS and not Path(data.path).exists():
        return data.model_copy(update={"revision": _pinned_dataset(data, access)})
    if data.data_files is None:
        return data.model_copy(update={"path": str(Path(data.path).absolute())})
    files = {
        split: str(Path(file).absolute()) if Path(file).exists() else file for split, file in data.data_files.items()
    }
    return data.model_copy(update={"data_files": files})


def _pinned_dataset(data: DataSpec, access: hub.Access) -> str | None:
    try:
        return hub.pin_dataset(data.path, data.revision, access)
    except HubError:
        if access.offline:
            return data.revision  # `datasets` keeps what it has read in a cache of its own
        raise


def _kind(recipe: Recipe) -> Kind:
    images = [task.name for task in recipe.tasks if task.data.image is not None]
    if not images:
        return "text"
    texts = [task.name for task in recipe.tasks if task.data.image is None]
    if texts:
        raise RecipeError(
            f"Task '{texts[0]}' reads text and task '{images[0]}' reads images; one base serves one kind."
        )
    return "image"
