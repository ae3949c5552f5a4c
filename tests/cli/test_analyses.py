"""`hf-merge report --analyses` as its user meets it."""

import json
import shutil
from pathlib import Path

import pytest
import yaml

from hf_merge.workflow.report import report
from tests.test_cli import document, refuse, run
from tests.tiny_runs import TinyRun, write_recipe


pytestmark = pytest.mark.slow  # every test is a whole command or two


@pytest.fixture(scope="module")
def measured(tiny_run: TinyRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = Path(shutil.copytree(tiny_run.folder, tmp_path_factory.mktemp("measured") / "run"))
    report(folder, progress=False)
    return folder


def test_the_tables_are_printed_and_written(tiny_run: TinyRun, measured: Path) -> None:
    shown = run("report", measured, "--analyses")
    assert shown.exit_code == 0, shown.stderr
    for title in ("Marginal utility of storage", "Who shares what", "Sensitivity of components"):
        assert title in shown.stdout
    assert all(component in shown.stdout for component in tiny_run.front.components)
    for name in ("analyses.json", "analyses.md", "associations.png", "sensitivity.png"):
        assert (measured / name).is_file()


def test_json_is_one_document_and_the_one_in_the_folder(measured: Path) -> None:
    found = document(run("report", measured, "--analyses", "--json"))
    assert found == json.loads((measured / "analyses.json").read_text())
    assert found["unseen"] is None


def test_seeds_are_pooled(tiny_run: TinyRun, measured: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(measured, tmp_path / "other"))
    found = document(run("report", measured, "--analyses", "--with", other, "--json"))
    assert found["configurations"] == 2 * len(tiny_run.front.points)
    assert found["runs"] == [str(measured), str(other)]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--search", "--analyses"], "give one of them"),
        (["--with", "elsewhere"], "--with goes with --analyses"),
        (["--unseen", "recipe.yaml"], "--unseen goes with --analyses"),
        (["--analyses", "--with", "elsewhere"], "elsewhere is no run folder"),
        (["--analyses", "--unseen", "missing.yaml"], "Cannot read the recipe missing.yaml"),
    ],
)
def test_options_that_make_no_sense_are_refused(measured: Path, options: list[str], said: str) -> None:
    refuse(run("report", measured, *options), said)


def test_a_task_that_was_merged_is_refused_as_unseen(tiny_run: TinyRun, measured: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "unseen.yaml", yaml.safe_load(tiny_run.recipe_file.read_text()))
    refuse(run("report", measured, "--analyses", "--unseen", recipe), "Task 'animals'", "is no unseen task")
