"""The rows of a recipe's tasks: three sets for each, and those that select are those that were drawn for it."""

from hf_merge.workflow.project import open_project
from hf_merge.workflow.rows import load_rows, load_test_rows, search_rows
from tests.tiny_runs import TinyRun


def test_rows_are_three_disjoint_sets(tiny_run: TinyRun) -> None:
    with open_project(tiny_run.recipe) as project:
        data = load_rows(project.recipe, project.heads)
        only = load_rows(project.recipe, {"sizes": project.heads["sizes"]})
    assert list(only) == ["sizes"]
    for rows in data.values():
        parts = [set(part.texts or ()) for part in (rows.search, rows.router, rows.test)]
        assert all(parts) and len(set.union(*parts)) == sum(map(len, parts))
        assert len(rows.search) == 24


def test_rows_that_select_and_rows_that_are_reported_are_those_of_the_whole(tiny_run: TinyRun) -> None:
    with open_project(tiny_run.recipe) as project:
        data, search = load_rows(project.recipe, project.heads), search_rows(project)
        test = load_test_rows(project.recipe, project.heads)
    assert {task: rows.digest() for task, rows in search.items()} == {
        task: rows.search.digest() for task, rows in data.items()
    }
    assert {task: rows.digest() for task, rows in test.items()} == {
        task: rows.test.digest() for task, rows in data.items()
    }
