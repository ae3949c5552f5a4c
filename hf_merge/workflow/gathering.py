"""What a merge method needs beside the weights, gathered once from the fine-tunes on rows without their labels."""

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import torch

from hf_merge.errors import InputError, NonFiniteWeights, RecipeError
from hf_merge.merging import methods
from hf_merge.merging.grouping import Grouping
from hf_merge.merging.methods import Gathered, MethodSpec, Need
from hf_merge.modeling.gathering import gather
from hf_merge.recipe import TaskSpec
from hf_merge.searching.rows import Rows
from hf_merge.storing import disk
from hf_merge.storing.gathered import GatheredFile, gathered_path, write_gathered
from hf_merge.workflow.bars import waiting
from hf_merge.workflow.fitting import fitted, groups_within, merged_groups
from hf_merge.workflow.project import Project, headed_model
from hf_merge.workflow.unlabelled import origin, rows_together, unlabelled_rows


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
    _require_whole(project, method)
    if need.is_joint:
        return fitted(project, method, folder, merged_groups(project, project.family.tasks), progress=progress)
    origins = {task.name: origin(project, task, method, need) for task in project.recipe.tasks}
    paths = {task: gathered_path(folder, task, origins[task]) for task in origins}
    missing = [task for task in project.recipe.tasks if not paths[task.name].is_file()]
    if missing:
        with disk.naming(folder):
            folder.mkdir(parents=True, exist_ok=True)
        rows, together = unlabelled_rows(project, missing, method), rows_together(project, method)
        with waiting(progress, f"gathering for {method.name}", sum(map(len, rows.values())), "row") as bar:
            for task in missing:
                found = _gather(project, task, need, rows[task.name], together, bar.update)
                write_gathered(paths[task.name], found)
    return {task: GatheredFile(path) for task, path in paths.items()}


class GatheredOnce:
    """What merge methods need of the fine-tunes, gathered when it is first asked for.

    What depends on one fine-tune alone is gathered once for a method. Coefficients are fitted for each group that
    asks, with all of its tasks merged everywhere; or, for a method that names the configuration `within` which they
    are fitted, once for all of its groups together.
    """

    def __init__(
        self, project: Project, folder: Path, *, within: Mapping[str, Grouping] = MappingProxyType({}), progress: bool
    ) -> None:
        """Prepares to gather into a folder.

        Args:
            project: The opened recipe.
            folder: Where what was gathered is kept; made if need be.
            within: The groupings of the configurations that methods may name, by id.
            progress: Show progress on stderr.
        """
        self._project, self._folder, self._within, self._progress = project, folder, within, progress
        self._found: dict[tuple[MethodSpec, tuple[str, ...]], Mapping[str, GatheredFile]] = {}

    def of(self, method: MethodSpec, members: Sequence[str]) -> Mapping[str, GatheredFile]:
        """Returns what was gathered for a method and a group of tasks, by task.

        Raises:
            RecipeError: The method names a configuration that is not known here.
        """
        need = methods.get(method.name).needs
        if need is None or len(members) < 2:
            return {}
        apart = need.is_joint and "within" not in method.mapping
        key = method, tuple(members) if apart else tuple(self._project.family.tasks)
        if key not in self._found:
            self._found[key] = self._gathered(method, need, key[1])
        return self._found[key]

    def _gathered(self, method: MethodSpec, need: Need, tasks: tuple[str, ...]) -> Mapping[str, GatheredFile]:
        project, folder, within = self._project, self._folder, method.mapping.get("within")
        if not need.is_joint:
            return gathered(project, method, folder, progress=self._progress)
        _require_whole(project, method)
        if within is None:
            return fitted(project, method, folder, merged_groups(project, tasks), progress=self._progress)
        grouping = self._within.get(str(within))
        if grouping is None:
            raise RecipeError(
                f"Merge method '{method.name}': within is '{within}', and no such configuration is known here. Leave "
                "it out: hf-merge refine sets it."
            )
        return fitted(project, method, folder, groups_within(project, grouping), progress=self._progress)


def _require_whole(project: Project, method: MethodSpec) -> None:
    if project.family.adapted:
        raise InputError(
            f"Merge method '{method.name}' looks into whole fine-tunes while they run, and these tasks are adapters. "
            "Choose a method that needs weights alone: task_arithmetic, ties."
        )


def _gather(
    project: Project, task: TaskSpec, need: Need, rows: Rows, together: int, advance: Callable[[int], object]
) -> dict[str, Gathered]:
    """Returns what is gathered of one fine-tune, at most so many rows together."""
    family, tuned = project.family, project.family.tasks[task.name]
    reader, trunk = project.reader, family.base.trunk
    model = headed_model(project, task, reader, torch.float32)
    model.set_backbone({name: tuned.read(name).view(shape) for name, shape in family.shapes.items()}, trunk)
    model.require_complete()
    names = {model.own_name(name, trunk): name for name in family.shapes}
    found = gather(need, model, names, reader.run(project, task, model, rows, together).batches, advance)
    broken = next((name for name, part in found.items() if not bool(part.values.isfinite().all())), None)
    if broken is not None:
        raise NonFiniteWeights(
            f"Task '{task.name}': {need.value} of '{broken}' are not finite. Repair or leave out the checkpoint."
        )
    without = len(names) - len(found)
    if without and need is Need.SQUARED_GRADIENTS:
        logger.warning("Task '%s': %d tensors are run fused, or are buffers; they are averaged.", task.name, without)
    return found
