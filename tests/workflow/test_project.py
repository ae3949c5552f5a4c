"""A recipe made concrete: everything pinned and absolute, files closed, rows and batches of the right kind."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from shutil import copyfile, copytree, ignore_patterns

import pytest
import torch

from hf_merge.errors import (
    CheckpointDamaged,
    InputError,
    ModelMismatch,
    RecipeError,
    ResourceError,
    UnsupportedArchitecture,
)
from hf_merge.recipe import Recipe
from hf_merge.workflow.project import Reader, open_project, task_runs
from hf_merge.workflow.rows import search_rows
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
        rows = search_rows(project)
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


@pytest.mark.parametrize(("layout", "column"), [("vit", "text"), ("bert", "image")])
def test_columns_that_the_base_cannot_read_are_refused_before_any_row(
    tiny_family: Callable[[str], TinyFamily], layout: str, column: str
) -> None:
    document = tiny_family(layout).recipe()
    tasks = [task | {"data": {"path": "nowhere", column: "x", "label": "label"}} for task in document["tasks"]]
    recipe = Recipe.parse(document | {"tasks": tasks}, "test")
    with pytest.raises(UnsupportedArchitecture, match=f"no {column} classification model"), open_project(recipe):
        pass


def test_a_base_in_4_bit_is_refused_with_the_way_out(tiny_family: Callable[[str], TinyFamily], tmp_path: Path) -> None:
    family = tiny_family("bert")
    copytree(family.base, tmp_path / "base")
    config = json.loads((tmp_path / "base" / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (tmp_path / "base" / "config.json").write_text(json.dumps(config))
    recipe = Recipe.parse(family.recipe() | {"base": {"model": str(tmp_path / "base")}}, "test")
    with (
        pytest.raises(ModelMismatch, match=r"quantised .*call \.dequantize\(\), save_pretrained"),
        open_project(recipe),
    ):
        pass


def test_a_family_without_a_processor_is_refused(tiny_family: Callable[[str], TinyFamily], tmp_path: Path) -> None:
    recipe = _without_processors(tiny_family("vit"), tmp_path)
    with open_project(recipe) as project, pytest.raises(CheckpointDamaged, match=r"no preprocessor_config\.json in"):
        Reader(project)


def test_a_fine_tune_may_have_the_processor_that_the_base_lacks(
    tiny_family: Callable[[str], TinyFamily], tmp_path: Path
) -> None:
    family = tiny_family("vit")
    recipe = _without_processors(family, tmp_path)
    copyfile(family.base / "preprocessor_config.json", tmp_path / "colours" / "preprocessor_config.json")
    with open_project(recipe) as project:
        assert Reader(project).folder == tmp_path / "colours"


def test_a_fine_tune_on_other_pictures_is_refused(tiny_family: Callable[[str], TinyFamily], tmp_path: Path) -> None:
    family = tiny_family("vit")
    recipe = _without_processors(family, tmp_path)
    settings = json.loads((family.base / "preprocessor_config.json").read_text())
    (tmp_path / "base" / "preprocessor_config.json").write_text(json.dumps(settings))
    (tmp_path / "colours" / "preprocessor_config.json").write_text(json.dumps(settings | {"image_mean": [0.1] * 3}))
    with open_project(recipe) as project, pytest.raises(ModelMismatch, match="task 'colours': image_mean is"):
        Reader(project)


def _without_processors(family: TinyFamily, folder: Path) -> Recipe:
    """Returns the recipe of a copy of a family that lacks every image processor."""
    for source in (family.base, *(task.folder for task in family.tasks.values())):
        copytree(source, folder / source.name, ignore=ignore_patterns("preprocessor_config.json"))
    document = family.recipe()
    tasks = [task | {"model": str(folder / task["name"])} for task in document["tasks"]]
    return Recipe.parse(document | {"base": {"model": str(folder / "base")}, "tasks": tasks}, "test")
