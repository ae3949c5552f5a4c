"""A recipe made concrete: sources pulled and pinned, checkpoints aligned, components cut, rows read and batched."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import torch

from hf_merge.errors import RecipeError
from hf_merge.merging import codecs
from hf_merge.merging.codecs import CodecSpec
from hf_merge.merging.components import Component, Place, Shape
from hf_merge.merging.methods import MethodSpec
from hf_merge.modeling.adapters import adapter_shapes
from hf_merge.modeling.assembly import CPU, Head, Kind, TaskModel
from hf_merge.modeling.hearing import Hearing
from hf_merge.modeling.inputs import Batch, image_batches, load_image_processor, load_tokenizer, text_batches
from hf_merge.modeling.language import SpecialTokens, task_model
from hf_merge.modeling.processors import PROCESSOR_FILE, require_same_processors
from hf_merge.modeling.prompts import Prompter
from hf_merge.modeling.vocabularies import require_same_tokenizer
from hf_merge.recipe import Recipe, TaskSpec, settings_of
from hf_merge.recipe.kinds import require_one_kind
from hf_merge.searching.rows import Rows
from hf_merge.searching.running import TaskRun
from hf_merge.searching.space import SearchSpace
from hf_merge.storing import hub
from hf_merge.storing.checkpoints import Checkpoint
from hf_merge.storing.families import Family
from hf_merge.storing.language import LanguageCheckpoint
from hf_merge.workflow.opening import aligned, head_of, pinned_recipe, settled_kind
from hf_merge.workflow.sources import Opening, components_of, places_in, require_cut
from hf_merge.workflow.speaking import asked_run


logger = logging.getLogger(__name__)
_Spec = TypeVar("_Spec", MethodSpec, CodecSpec)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Project:
    """A recipe with everything that follows from it before a weight is read.

    Attributes:
        recipe: The recipe, every Hub source pinned to a commit.
        family: The aligned base and fine-tunes, opened.
        components: The partition of the backbone.
        methods: How groups are merged: one method, or several to choose among for each component.
        codecs: How experts are stored: by one codec, or by several to choose among for each component.
        kind: What the tasks read, and how they answer.
        unlabelled: The first rows of tasks' routers that were loaded so far, by task and how many.
    """

    recipe: Recipe
    family: Family
    components: tuple[Component, ...]
    methods: tuple[MethodSpec, ...]
    codecs: tuple[CodecSpec, ...]
    kind: Kind
    unlabelled: dict[tuple[str, int], Rows] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def method(self) -> MethodSpec:
        """The first merge method, which is the only one of most recipes."""
        return self.methods[0]

    @property
    def codec(self) -> CodecSpec:
        """The first codec, which is the only one of most recipes, and stores shared experts."""
        return self.codecs[0]

    @property
    def heads(self) -> dict[str, Head]:
        """What each task's head answers, by task."""
        return {task.name: head_of(task, self.family.tasks[task.name]) for task in self.recipe.tasks}

    @property
    def adapter(self) -> dict[str, Shape]:
        """The shapes of the adapters' own tensors; empty where the tasks are whole fine-tunes."""
        return adapter_shapes(self.family.shapes)

    def space(self) -> SearchSpace:
        """Returns the configurations among which a search chooses."""
        shared = frozenset(component.name for component in self.components if component.shared)
        names, merged = tuple(component.name for component in self.components), self.recipe.search.grouping == "merged"
        residual = frozenset(index for index, codec in enumerate(self.codecs) if codec.residual)
        whole = frozenset(
            (component.name, index)
            for index in residual
            for component in self.components
            if not self.codecs[index].quantises_any({name: self.family.shapes[name] for name in component.tensors})
        )
        tasks = tuple(self.family.tasks)
        return SearchSpace(names, tasks, shared, len(self.methods), merged, len(self.codecs), residual, whole)

    @cached_property
    def reader(self) -> "Reader":
        """The reader of its inputs, loaded when it is first needed."""
        return Reader(self)

    def places(self) -> dict[str, Place]:
        """Returns where every tensor stands in its model; an adapter's stands with the weight that it acts on."""
        return places_in(self.family)

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
    methods = method_specs(recipe)
    stored = codec_specs(recipe)
    require_cut(recipe.merge)
    reads = require_one_kind(recipe)
    with Opening(headers_only, access, LanguageCheckpoint if reads == "language" else Checkpoint) as opening:
        base = opening.open("base", recipe.base.model, recipe.base.revision)
        tuned = {task.name: opening.open_task(task) for task in recipe.tasks}
        kind = settled_kind(reads, base, tuned)
        family = aligned(base, tuned, kind)
        pinned = pinned_recipe(recipe, base, tuned, access)
        components = components_of(family, recipe.merge)
        yield Project(pinned, family, components, methods, stored, kind)


def method_specs(recipe: Recipe) -> tuple[MethodSpec, ...]:
    """Returns the merge methods of a recipe, in its order.

    Raises:
        RecipeError: A method or hyperparameter is unknown or impossible, or two entries mean the same.
    """
    return _once("methods", [MethodSpec.resolve(*settings_of(entry)) for entry in recipe.merge.methods])


def codec_specs(recipe: Recipe) -> tuple[CodecSpec, ...]:
    """Returns the codecs of a recipe, in its order.

    Raises:
        RecipeError: A codec or setting is unknown or impossible, two entries mean the same, or the first codec stores
            differences, and nothing says from what.
    """
    specs = _once("codecs", [CodecSpec.resolve(*settings_of(entry)) for entry in recipe.merge.codecs])
    if specs[0].residual:
        whole = ", ".join(name for name, codec in codecs.available().items() if not codec.residual)
        raise RecipeError(
            f"merge.codecs begins with '{specs[0].name}', which stores differences from a shared expert; the first "
            f"codec stores the shared experts themselves. Put one of these before it: {whole}."
        )
    return specs


def _once(key: str, specs: Sequence[_Spec]) -> tuple[_Spec, ...]:
    doubled = next((spec for index, spec in enumerate(specs) if spec in specs[:index]), None)
    if doubled is not None:
        raise RecipeError(f"merge.{key} gives {doubled.as_json()} twice. Keep one of them.")
    return tuple(specs)


class Reader:
    """The tokenizer, image processor or feature extractor of a project, and the batches that it makes.

    Attributes:
        tokens: What the tokenizer pads and ends with.
    """

    def __init__(self, project: Project) -> None:
        """Loads the reader of the first folder that has one: the base's, else a fine-tune's.

        Raises:
            ModelMismatch: Another checkpoint has a tokenizer that gives other tokens.
        """
        folders = project.reader_folders()
        marks = (
            ("tokenizer.json", "vocab.txt", "tokenizer_config.json")
            if project.kind not in ("image", "audio")
            else (PROCESSOR_FILE,)
        )
        folder = next((folder for folder in folders if any((folder / mark).is_file() for mark in marks)), folders[0])
        self.folder, self._search, self._config = folder, project.recipe.search, project.family.base.config
        self._tokenizer = load_tokenizer(folder) if project.kind not in ("image", "audio") else None
        self._processor = load_image_processor(folder) if project.kind == "image" else None
        self._hearing = Hearing.load(folder) if project.kind == "audio" else None
        self.tokens = SpecialTokens.of(self._tokenizer)
        if self._tokenizer is not None:
            require_same_tokenizer(folder, self._tokenizer, folders)
        else:
            tuned = project.family.tasks
            require_same_processors(folder, {task: tuned[task].source.folder for task in tuned}, project.kind)

    def batches(self, rows: Rows, batch_size: int | None = None) -> list[Batch]:
        """Returns rows as they are, as model inputs, arranged once: texts and sounds sorted by length."""
        size = self._search.batch_size if batch_size is None else batch_size
        if self._processor is not None:
            return image_batches(self._processor, rows.images or (), batch_size=size)
        if self._hearing is not None:
            return self._hearing.batches(rows.sounds or (), batch_size=size)
        if self._tokenizer is None:
            raise RuntimeError("A reader has a tokenizer or a processor.")
        return text_batches(
            self._tokenizer,
            rows.texts or (),
            rows.pairs,
            batch_size=size,
            max_length=self._search.max_length,
            config=self._config,
        )

    def run(
        self, project: Project, task: TaskSpec, model: TaskModel, rows: Rows, batch_size: int | None = None
    ) -> TaskRun:
        """Returns a task ready to be evaluated: its rows as they are, or as what a language model is asked.

        At most `batch_size` rows share a batch; None is the recipe's, which counts every option of a row.
        """
        wording, config = task.data.wording, project.family.base.config
        if wording is None or self._tokenizer is None:
            return TaskRun(task.name, model, self.batches(rows, batch_size), rows.labels, task.metric)
        size = self._search.batch_size if batch_size is None else batch_size * len(wording.answers or [""])
        prompter = Prompter(self._tokenizer, project.kind, config, batch_size=size, max_length=self._search.max_length)
        return asked_run(task, model, rows, prompter)


def task_runs(
    project: Project, rows: Mapping[str, Rows], reader: Reader, device: torch.device = CPU
) -> dict[str, TaskRun]:
    """Returns the tasks ready to be evaluated on the given rows, heads set in the recipe's computing type.

    Args:
        project: The opened recipe.
        rows: The rows by task.
        reader: Makes batches of them.
        device: Where the models compute.
    """
    dtype = DTYPES[project.recipe.search.dtype]
    return {
        task.name: reader.run(project, task, headed_model(project, task, reader, dtype, device), rows[task.name])
        for task in project.recipe.tasks
    }


def headed_model(
    project: Project, task: TaskSpec, reader: Reader, dtype: torch.dtype, device: torch.device = CPU
) -> TaskModel:
    """Returns a task's model with its head set and its backbone still empty.

    Args:
        project: The opened recipe.
        task: The task.
        reader: Whose tokens pad and end.
        dtype: What the head computes in.
        device: Where the model computes.
    """
    base, tuned = project.family.base, project.family.tasks[task.name]
    model = task_model(
        base.config,
        project.kind,
        project.heads[task.name],
        reader.tokens,
        project.family.shapes,
        base.trunk,
        project.adapter,
    )
    model.move_buffers(device)
    model.set_head({name: tuned.read_head(name).to(device, dtype) for name in tuned.head})
    return model
