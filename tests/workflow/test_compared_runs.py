"""Runs beside a comparison are of the same checkpoints and rows, or refused with what differs."""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from hf_merge.errors import RunFolderError
from hf_merge.recipe import Recipe
from hf_merge.storing import results
from hf_merge.workflow.compared_runs import read_runs
from hf_merge.workflow.comparison import MeasuredRun
from hf_merge.workflow.project import open_project
from hf_merge.workflow.run_folder import REPORT_FILE
from tests.tiny_models import TinyFamily
from tests.tiny_runs import TinyRun


Families = Callable[[str], TinyFamily]


def _read(recipe: Recipe, runs: Sequence[Path]) -> tuple[list[MeasuredRun], list[MeasuredRun]]:
    with open_project(recipe) as project:
        return read_runs(project, runs)


def test_a_run_comes_with_its_front_and_test_table(tiny_run: TinyRun, measured: Path) -> None:
    assert _read(tiny_run.recipe, [measured]) == ([(tiny_run.front, results.read(measured / REPORT_FILE))], [])
    assert _read(tiny_run.recipe, []) == ([], [])


def test_a_run_that_was_not_measured_is_refused(tiny_run: TinyRun, tmp_path: Path) -> None:
    # A copy: the run itself is every test's, and some other may have measured it by now.
    folder = shutil.copytree(tiny_run.folder, tmp_path / "run", ignore=shutil.ignore_patterns(REPORT_FILE))
    with pytest.raises(RunFolderError, match=r"was not measured on test rows. Run: hf-merge report"):
        _read(tiny_run.recipe, [folder])


def test_a_run_counts_once(tiny_run: TinyRun, measured: Path) -> None:
    with pytest.raises(RunFolderError, match="named twice"):
        _read(tiny_run.recipe, [measured, measured / ".." / measured.name])


def test_a_run_on_other_rows_is_refused(tiny_run: TinyRun, measured: Path) -> None:
    document = tiny_run.recipe.model_dump(mode="json")
    fewer = document | {"search": document["search"] | {"validation_rows": 23}}
    with pytest.raises(RunFolderError, match=r"searched on 24 validation rows a task, and .* is 23 here"):
        _read(Recipe.parse(fewer, "test"), [measured])
    first, *others = document["tasks"]
    other = first | {"data": first["data"] | {"data_files": others[0]["data"]["data_files"]}}
    with pytest.raises(RunFolderError, match=f"other data of task '{first['name']}'"):
        _read(Recipe.parse(document | {"tasks": [other, *others]}, "test"), [measured])


def test_a_run_of_other_checkpoints_is_refused(measured: Path, tiny_family: Families) -> None:
    recipe = Recipe.parse(tiny_family("distilbert").recipe(search={"validation_rows": 24}), "test")
    with pytest.raises(RunFolderError, match=r"The weights of base, task animals, .* are not those that"):
        _read(recipe, [measured])


def test_a_run_by_another_method_is_refused(tiny_run: TinyRun, measured: Path) -> None:
    merging = tiny_run.recipe.merge.model_copy(update={"methods": ("ties",)})
    recipe = tiny_run.recipe.model_copy(update={"merge": merging})
    with pytest.raises(RunFolderError, match="G1 would compare it with another method"):
        _read(recipe, [measured])
