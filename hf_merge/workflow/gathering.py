"""What a merge method needs beside the weights, gathered once from every fine-tune on rows without their labels."""

import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import torch

from hf_merge.errors import InputError, NonFiniteWeights
from hf_merge.merging import methods
from hf_merge.merging.methods import Gathered, MethodSpec, Need
from hf_merge.modeling.gathering import gather
from hf_merge.recipe import TaskSpec
from hf_merge.searching.tasks import Rows
from hf_merge.storing import disk
from hf_merge.storing.gathered import GatheredFile, gathered_path, write_gathered
from hf_merge.workflow.bars import waiting
from hf_merge.workflow.project import Project, Reader, headed_model, load_rows


logger = logging.getLogger(__name__)


def gathered(project: Project, method: MethodSpec, folder: Path, *, progress: bool) -> dict[str, GatheredFile]:
    """Returns what a method needs of every task's fine-tune; gathered now where `folder` does not hold it.

    The rows are the first of those that train the router: none of them is a row that selects or that is reported.

    Args:
        project: The opened recipe.
        method: The method, with its settings.
        folder: Where what was gathered is kept; made if need be.
        progress: Show progress on stderr.

    Raises:
        InputError: The tasks are adapters.
        NonFiniteWeights: A fine-tune answers NaN.
        DatasetError: A task's data lack what they need.
    """
    need = methods.get(method.name).needs
    if need is None:
        return {}
    if project.family.adapted:
        raise InputError(
            f"Merge method '{method.name}' looks into whole fine-tunes while they run, and these tasks are adapters. "
            "Choose a method that needs weights alone: task_arithmetic, ties."
        )
    paths = {
        task.name: gathered_path(folder, task.name, _origin(project, task, method, need))
        for task in project.recipe.tasks
    }
    missing = [task for task in project.recipe.tasks if not paths[task.name].is_file()]
    if missing:
        with disk.naming(folder):
            folder.mkdir(parents=True, exist_ok=True)
        rows = _rows(project, missing, method)
        reader = Reader(project)
        with waiting(progress, f"gathering for {method.name}", sum(map(len, rows.values())), "row") as bar:
            for task in missing:
                found = _gather(project, task, need, rows[task.name], reader, bar.update)
                write_gathered(paths[task.name], found)
    return {task: GatheredFile(path) for task, path in paths.items()}


class GatheredOnce(Mapping[str, GatheredFile]):
    """What a method needs of every task's fine-tune, gathered when it is first asked for."""

    def __init__(self, project: Project, method: MethodSpec, folder: Path, *, progress: bool) -> None:
        """Prepares to call `gathered` with these."""
        self._call = partial(gathered, project, method, folder, progress=progress)
        self._tasks = tuple(project.family.tasks) if methods.get(method.name).needs is not None else ()
        self._found: dict[str, GatheredFile] | None = None

    def __getitem__(self, task: str) -> GatheredFile:
        if task not in self._tasks:
            raise KeyError(task)
        if self._found is None:
            self._found = self._call()
        return self._found[task]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tasks)

    def __len__(self) -> int:
        return len(self._tasks)


def _rows(project: Project, tasks: Sequence[TaskSpec], method: MethodSpec) -> dict[str, Rows]:
    """Returns the rows to gather from, by task."""
    wanted = int(method.mapping["rows"])
    heads = {task.name: project.heads[task.name] for task in tasks}
    rows = {task: data.router.first(wanted) for task, data in load_rows(project.recipe, heads).items()}
    for task, part in rows.items():
        if len(part) < wanted:
            logger.warning("Task '%s': '%s' asks for %d rows, and %d are there.", task, method.name, wanted, len(part))
    return rows


def _gather(
    project: Project, task: TaskSpec, need: Need, rows: Rows, reader: Reader, advance: Callable[[int], object]
) -> dict[str, Gathered]:
    """Returns what is gathered of one fine-tune."""
    family, tuned = project.family, project.family.tasks[task.name]
    trunk = family.base.trunk
    model = headed_model(project, task, reader, torch.float32)
    model.set_backbone({name: tuned.read(name).view(shape) for name, shape in family.shapes.items()}, trunk)
    model.require_complete()
    names = {model.own_name(name, trunk): name for name in family.shapes}
    found = gather(need, model, names, reader.run(project, task, model, rows).batches, advance)
    broken = next((name for name, part in found.items() if not bool(part.values.isfinite().all())), None)
    if broken is not None:
        raise NonFiniteWeights(
            f"Task '{task.name}': {need.value} of '{broken}' are not finite. Repair or leave out the checkpoint."
        )
    without = len(names) - len(found)
    if without and need is Need.SQUARED_GRADIENTS:
        logger.warning("Task '%s': %d tensors are run fused, or are buffers; they are averaged.", task.name, without)
    return found


def _origin(project: Project, task: TaskSpec, method: MethodSpec, need: Need) -> dict[str, str]:
    """Returns everything that decides what is gathered of a task."""
    search = project.recipe.search
    return {
        "need": need.value,
        "rows": str(int(method.mapping["rows"])),
        "weights": project.family.tasks[task.name].source.digest(),
        "data": json.dumps(task.data.model_dump(mode="json"), sort_keys=True),
        "drawn": f"{search.seed}/{search.validation_rows}/{project.recipe.router.rows_per_task}/{search.max_length}",
    }
