"""The router of a family: kept with what it was trained from, and trained anew where any of that has changed."""

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hf_merge.recipe import Recipe
from hf_merge.workflow.family_router import ROUTER_FILE, ROUTER_REPORT, provide_router
from hf_merge.workflow.project import Project, open_project
from tests.tiny_models import TinyFamily


Families = Callable[[str], TinyFamily]


@pytest.fixture
def project(tiny_family: Families) -> Iterator[Project]:
    router = {"rows_per_task": 30, "epochs": 3}
    recipe = Recipe.parse(tiny_family("bert").recipe(search={"validation_rows": 12}, router=router), "test")
    with open_project(recipe) as opened:
        yield opened


def provided(project: Project, folder: Path) -> bool:
    """Returns whether the router was trained now."""
    before = (folder / ROUTER_FILE).stat().st_mtime_ns if (folder / ROUTER_FILE).is_file() else 0
    provide_router(project, folder, progress=False)
    return (folder / ROUTER_FILE).stat().st_mtime_ns != before


def changed(project: Project, section: str, **settings: Any) -> Project:
    spec = getattr(project.recipe, section).model_copy(update=settings)
    return replace(project, recipe=project.recipe.model_copy(update={section: spec}))


def test_a_router_is_kept_until_something_that_decides_it_changes(project: Project, tmp_path: Path) -> None:
    assert provided(project, tmp_path) and not provided(project, tmp_path)
    assert not provided(changed(project, "search", batch_size=3), tmp_path)  # which decides the last bits at most
    for section, settings in (("search", {"seed": 7}), ("router", {"epochs": 2}), ("router", {"rows_per_task": 8})):
        assert provided(changed(project, section, **settings), tmp_path), settings


def test_a_router_of_data_that_changed_is_trained_anew(project: Project, tmp_path: Path) -> None:
    assert provided(project, tmp_path)
    file = Path((project.recipe.tasks[0].data.data_files or {})["train"])
    was = file.stat()
    try:
        os.utime(file, ns=(was.st_atime_ns, was.st_mtime_ns + 1))
        assert provided(project, tmp_path)
    finally:
        os.utime(file, ns=(was.st_atime_ns, was.st_mtime_ns))


def test_a_router_without_its_report_is_trained_anew(project: Project, tmp_path: Path) -> None:
    assert provided(project, tmp_path)
    report = json.loads((tmp_path / ROUTER_REPORT).read_text())
    assert set(report["accuracy"]) == set(project.family.tasks)
    (tmp_path / ROUTER_REPORT).unlink()  # as if it had been stopped before the report was written
    assert provided(project, tmp_path)
    assert json.loads((tmp_path / ROUTER_REPORT).read_text()) == report
