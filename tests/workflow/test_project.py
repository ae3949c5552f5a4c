"""A recipe made concrete: everything pinned and absolute, files closed, rows and batches of the right kind."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from hf_merge.errors import InputError, RecipeError, ResourceError
from hf_merge.recipe import Recipe
from hf_merge.workflow.project import Reader, load_rows, open_project, task_runs
from tests.tiny_models import TinyFamily
from tests.tiny_runs import TinyRun


def test_local_paths_become_absolute(tiny_run: TinyRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tiny_run.family.base.parent)
    tasks = [task | {"model": task["name"]} for task in tiny_run.document["tasks"]]
    files = {split: os.path.relpath(file) for split, file in tasks[0]["data"]["data_files"].items()}
    tasks[0] = tasks[0] | {"data": tasks[0]["data"] | {"data_files": files}}
    document = tiny_run.document | {"base": {"model": "base"}, "tasks": tasks}
    with open_project(Recipe.parse(document, "test")) as project:
        assert project.recipe == tiny_run.recipe
        assert Path(project.recipe.base.model).is_absolute()


def test_files_are_closed_whatever_happens(tiny_run: TinyRun) -> None:
    with pytest.raises(InterruptedError), open_project(tiny_run.recipe) as project:
        name = next(iter(project.family.shapes))
        project.family.base.read(name)
        raise InterruptedError
    with pytest.raises(ResourceError):
        project.family.base.read(name)


def test_rows_are_three_disjoint_sets(tiny_run: TinyRun) -> None:
    with open_project(tiny_run.recipe) as project:
        data = load_rows(project.recipe, project.heads)
        only = load_rows(project.recipe, {"sizes": project.heads["sizes"]})
    assert list(only) == ["sizes"]
    for rows in data.values():
        parts = [set(part.texts or ()) for part in (rows.search, rows.router, rows.test)]
        assert all(parts) and len(set.union(*parts)) == sum(map(len, parts))
        assert len(rows.search) == 24


def test_heads_say_what_each_task_answers(tiny_run: TinyRun) -> None:
    with open_project(tiny_run.recipe) as project:
        heads = project.heads
    assert heads["colours"].labels == ("red", "green", "blue")
    assert heads["sizes"].num_labels == 1


@pytest.mark.parametrize("layout", ["bert", "vit"])
def test_tasks_are_made_ready_for_their_kind(tiny_family: Callable[[str], TinyFamily], layout: str) -> None:
    search = {"validation_rows": 8, "batch_size": 3}
    recipe = Recipe.parse(tiny_family(layout).recipe(search=search, router={"rows_per_task": 8}), "test")
    with open_project(recipe) as project:
        rows = {task: data.search for task, data in load_rows(project.recipe, project.heads).items()}
        reader = Reader(project)
        runs = task_runs(project, rows, reader)
        assert project.kind == ("image" if layout == "vit" else "text")
    assert (reader.tokens.pad is None) == (layout == "vit")
    for task, run in runs.items():
        assert sorted(row for batch in run.batches for row in batch.rows) == list(range(8))
        assert max(len(batch.rows) for batch in run.batches) == 3
        assert len(run.labels) == len(rows[task])
        assert all(isinstance(value, torch.Tensor) for batch in run.batches for value in batch.inputs.values())


def test_text_and_images_are_not_mixed(tiny_run: TinyRun) -> None:
    tasks = list(tiny_run.document["tasks"])
    data = {key: value for key, value in tasks[1]["data"].items() if key != "text"} | {"image": "image"}
    tasks[1] = tasks[1] | {"data": data}
    recipe = Recipe.parse(tiny_run.document | {"tasks": tasks}, "test")
    with (
        pytest.raises(RecipeError, match=r"'animals' reads text and task 'colours' reads images"),
        open_project(recipe),
    ):
        pass


def test_a_source_that_is_nothing_is_refused(tiny_run: TinyRun) -> None:
    recipe = Recipe.parse(tiny_run.document | {"base": {"model": "./no/such/folder"}}, "test")
    with pytest.raises(InputError, match="no/such/folder"), open_project(recipe):
        pass
