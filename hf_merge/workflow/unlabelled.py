"""Rows without their labels, for merge methods that look into fine-tunes while they run."""

import json
import logging
from collections.abc import Sequence

from hf_merge.merging import methods
from hf_merge.merging.methods import MethodSpec, Need
from hf_merge.recipe import TaskSpec
from hf_merge.searching.rows import Rows
from hf_merge.searching.splits import data_origin
from hf_merge.workflow.project import Project
from hf_merge.workflow.rows import load_rows


logger = logging.getLogger(__name__)


def unlabelled_rows(project: Project, tasks: Sequence[TaskSpec], method: MethodSpec) -> dict[str, Rows]:
    """Returns the rows that a method looks at, by task; fewer than it asks for are warned of.

    They are the first of those that train the router: none of them is a row that selects or that is reported. The
    project keeps them, since loading draws and decodes all splits and a search asks once for each group.

    Raises:
        DatasetError: A task's data lack what they need.
    """
    wanted = int(method.mapping["rows"])
    known = project.unlabelled
    heads = {task.name: project.heads[task.name] for task in tasks if (task.name, wanted) not in known}
    for name, data in load_rows(project.recipe, heads).items():
        known[name, wanted] = data.router.first(wanted)
    rows = {task.name: known[task.name, wanted] for task in tasks}
    for task, part in rows.items():
        if len(part) < wanted:
            logger.warning("Task '%s': '%s' asks for %d rows, and %d are there.", task, method.name, wanted, len(part))
    return rows


def rows_together(project: Project, method: MethodSpec) -> int:
    """Returns how many rows of a task a method looks at together, at most.

    That is its own `batch` where it has one. Products of inputs are summed over all rows, so that the recipe's batches
    serve; whatever else is asked is asked of each row alone, which then needs no padding.
    """
    if methods.get(method.name).needs is Need.INPUT_PRODUCTS:
        return project.recipe.search.batch_size
    return int(method.mapping.get("batch", 1))


def origin(project: Project, task: TaskSpec, method: MethodSpec, need: Need) -> dict[str, str]:
    """Returns everything that decides what is gathered of a task."""
    search = project.recipe.search
    return {
        "need": need.value,
        "rows": str(int(method.mapping["rows"])),
        "together": str(rows_together(project, method)),  # it decides how rows are padded and sums are rounded
        "weights": project.family.tasks[task.name].source.digest(),
        "data": json.dumps(data_origin(task), sort_keys=True),
        "drawn": f"{search.seed}/{search.validation_rows}/{project.recipe.router.rows_per_task}/{search.max_length}",
    }
