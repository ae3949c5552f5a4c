"""The rows of a recipe's tasks: to search, to train the router, and to test."""

from collections.abc import Mapping

from hf_merge.modeling.assembly import Head
from hf_merge.recipe import Recipe
from hf_merge.searching.rows import Rows
from hf_merge.searching.tasks import TaskData, load_task, load_test
from hf_merge.workflow.project import Project


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


def search_rows(project: Project) -> dict[str, Rows]:
    """Returns the rows of every task by which configurations are chosen.

    Raises:
        DatasetError: A task's data lack what it needs.
    """
    return {task: data.search for task, data in load_rows(project.recipe, project.heads).items()}


def load_test_rows(recipe: Recipe, heads: Mapping[str, Head]) -> dict[str, Rows]:
    """Returns every task's test rows, reading nothing else; arguments and errors are those of `load_rows`."""
    return {
        task.name: load_test(task, num_labels=heads[task.name].num_labels, label_names=heads[task.name].labels)
        for task in recipe.tasks
        if task.name in heads
    }
