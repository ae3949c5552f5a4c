"""Runs that a comparison tells of beside merge methods: measured, and of the same checkpoints and data."""

from collections.abc import Sequence
from pathlib import Path

from hf_merge.errors import RunFolderError
from hf_merge.recipe import Recipe
from hf_merge.workflow.comparison import MeasuredRun
from hf_merge.workflow.project import Project
from hf_merge.workflow.run_folder import read_report, read_run, require_same_weights


def read_runs(project: Project, runs: Sequence[Path]) -> tuple[list[MeasuredRun], list[MeasuredRun]]:
    """Returns front and test table of every run, and apart those of searches for one merged model.

    Args:
        project: The opened recipe that they are compared under.
        runs: Run folders whose front was measured by `hf-merge report`.

    Raises:
        RunFolderError: A run is of other checkpoints or data, on another number of validation rows, by another method
            than G1 compares it with, not measured, or named twice.
    """
    found: list[MeasuredRun] = []
    merged: list[MeasuredRun] = []
    digests = project.family.digests() if runs else {}
    for place, run in enumerate(runs):
        if any(run.resolve() == other.resolve() for other in runs[:place]):
            raise RunFolderError(f"{run} is named twice; name every run once.")
        front, recipe = read_run(run)
        report = read_report(run, front)
        if report is None:
            raise RunFolderError(f"{run} was not measured on test rows. Run: hf-merge report {run}")
        require_same_weights(run, front, digests)
        _require_same_rows(run, recipe, project.recipe)
        if recipe.search.grouping == "merged":
            merged.append((front, report))
            continue
        if front.method != project.method.as_json():
            raise RunFolderError(
                f"{run} merges by {front.method}, and the recipe by {project.method.as_json()}: G1 would compare it "
                "with another method. Name runs of the same recipe."
            )
        found.append((front, report))
    return found, merged


def _require_same_rows(run: Path, searched: Recipe, here: Recipe) -> None:
    """Checks that a run was scored on the tasks' rows: as many of the same data, though its own seed drew them."""
    there, wanted = searched.search.validation_rows, here.search.validation_rows
    if there != wanted:
        raise RunFolderError(
            f"{run} was searched on {there} validation rows a task, and search.validation_rows is {wanted} here. "
            "Give the recipe of the run."
        )
    data = {task.name: task.data for task in searched.tasks}
    other = next((task.name for task in here.tasks if data.get(task.name) != task.data), None)
    if other is not None:
        raise RunFolderError(f"{run} was searched on other data of task '{other}'. Give the recipe of the run.")
