"""What is allowed but seldom meant is said, and nothing else."""

import logging
from pathlib import Path

import pytest

from hf_merge.recipe import Recipe
from hf_merge.workflow.search import ALL_MERGED, ALL_SEPARATE, search
from tests.tiny_runs import TinyRun


def test_one_task_is_allowed_and_explained(
    tiny_run: TinyRun, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    document = tiny_run.document | {"tasks": tiny_run.document["tasks"][:1]}
    with caplog.at_level(logging.WARNING, "hf_merge"):
        front = search(Recipe.parse(document, "test"), tmp_path / "one", progress=False)
    assert "One task only ('animals'): nothing can be merged" in caplog.text
    assert len(front.points) == 1
    assert front.controls[ALL_MERGED] == front.controls[ALL_SEPARATE] == front.points[0]


def test_twins_are_allowed_and_named(tiny_run: TinyRun, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tasks = tiny_run.document["tasks"]
    document = tiny_run.document | {"tasks": [tasks[0], tasks[0] | {"name": "twin"}, tasks[2]]}
    with caplog.at_level(logging.WARNING, "hf_merge"):
        search(Recipe.parse(document, "test"), tmp_path / "twins", progress=False)
    assert "Tasks 'animals' and 'twin' have the same backbone weights." in caplog.text
