"""Multi-task training, as a row of a comparison: one backbone trained on all tasks, in one checkpoint folder per task.

`examples/multitask.py` writes such folders; whoever trains by other means saves them the same way.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch

from hf_merge.errors import InputError
from hf_merge.merging.codecs import CodecSpec
from hf_merge.recipe import Recipe
from hf_merge.searching.building import ExpertBuilder, reference_chain
from hf_merge.searching.running import ChainRunner, TaskRun
from hf_merge.searching.states import StateCache
from hf_merge.storing import hub
from hf_merge.storing.families import Family
from hf_merge.workflow.project import DTYPES, Reader, open_project, task_runs
from hf_merge.workflow.rows import load_rows


@dataclass(frozen=True, eq=False)
class Multitask:
    """A multi-task model, ready to be asked.

    Attributes:
        cost: C: one backbone and all heads.
        validation: The tasks ready to be evaluated on validation rows, with this model's heads.
        test: The same on test rows.
        runner: Runs a task with the backbone.
    """

    cost: float
    validation: Mapping[str, TaskRun]
    test: Mapping[str, TaskRun]
    runner: ChainRunner

    def answer(self, run: TaskRun) -> torch.Tensor:
        """Returns the logits [rows, labels] of a task's rows."""
        return self.runner.logits(run, reference_chain(self.runner.builder.components, (run.name,)))[0]


@contextmanager
def open_multitask(recipe: Recipe, folder: Path, access: hub.Access = hub.AS_USUAL) -> Iterator[Multitask]:
    """Opens the checkpoints `folder/<task>` of one model that was trained on all tasks of a recipe.

    Args:
        recipe: The tasks and their data.
        folder: Where the checkpoints lie.
        access: How to reach the Hub, where the base is there.

    Raises:
        InputError: A task's checkpoint is missing, is of another base, or has another backbone than the first.
    """
    missing = next((task.name for task in recipe.tasks if not (folder / task.name).is_dir()), None)
    if missing is not None:
        raise InputError(
            f"{folder} holds no folder '{missing}': multi-task training leaves one checkpoint per task, as "
            "examples/multitask.py writes them."
        )
    tasks = tuple(
        task.model_copy(update={"model": str(folder / task.name), "adapter": None, "revision": None})
        for task in recipe.tasks
    )
    with open_project(recipe.model_copy(update={"tasks": tasks}), access=access) as project:
        family = project.family
        _require_one_backbone(family, folder)
        data, reader = load_rows(project.recipe, project.heads), Reader(project)
        builder = ExpertBuilder(
            family, project.components, project.methods, [CodecSpec.resolve("full")], limit_bytes=5 * family.parameters
        )
        yield Multitask(
            1 + family.head_parameters() / family.parameters,
            task_runs(project, {task: rows.search for task, rows in data.items()}, reader),
            task_runs(project, {task: rows.test for task, rows in data.items()}, reader),
            ChainRunner(builder, DTYPES[project.recipe.search.dtype], StateCache(0)),
        )


def _require_one_backbone(family: Family, folder: Path) -> None:
    """Raises InputError unless all checkpoints have the same backbone, weight for weight."""
    first, *others = family.tasks
    for name, shape in family.shapes.items():
        expected = family.tasks[first].read(name, torch.empty(prod(shape)))
        for task in others:
            if not torch.equal(family.tasks[task].read(name, torch.empty(prod(shape))), expected):
                raise InputError(
                    f"{folder / first} and {folder / task} differ in '{name}': these are several models and not one "
                    "that was trained on all tasks. Name fine-tunes as the recipe's tasks."
                )
