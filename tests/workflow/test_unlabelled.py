"""Rows without labels: the first of the router's, none of those that select or are reported."""

from collections.abc import Callable, Mapping
from dataclasses import replace

import pytest

from hf_merge.merging import methods
from hf_merge.merging.methods import MethodSpec, Need
from hf_merge.modeling.assembly import Head
from hf_merge.recipe import Recipe
from hf_merge.searching.tasks import TaskData
from hf_merge.workflow import unlabelled
from hf_merge.workflow.project import open_project
from hf_merge.workflow.rows import load_rows
from hf_merge.workflow.unlabelled import origin, rows_together, unlabelled_rows
from tests.tiny_models import TinyFamily


Families = Callable[[str], TinyFamily]


def test_they_are_the_first_of_the_routers_rows(tiny_family: Families) -> None:
    spec = MethodSpec.resolve("expert_merging", {"rows": 7})
    with open_project(Recipe.parse(tiny_family("distilbert").recipe(), "test")) as project:
        rows = unlabelled_rows(project, project.recipe.tasks[:2], spec)
        known = load_rows(project.recipe, project.heads)
    assert list(rows) == [task.name for task in project.recipe.tasks[:2]]
    for task, part in rows.items():
        assert len(part) == 7 and part.texts == (known[task].router.texts or ())[:7]


def test_they_are_loaded_once_for_a_task_and_are_the_same_as_anew(
    tiny_family: Families, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[list[str]] = []

    def load(recipe: Recipe, heads: Mapping[str, Head]) -> dict[str, TaskData]:
        loaded.append(list(heads))
        return load_rows(recipe, heads)

    monkeypatch.setattr(unlabelled, "load_rows", load)
    few, more = (MethodSpec.resolve("expert_merging", {"rows": count}) for count in (4, 7))
    with open_project(Recipe.parse(tiny_family("distilbert").recipe(), "test")) as project:
        tasks = project.recipe.tasks
        first = unlabelled_rows(project, tasks[:2], few)
        both = unlabelled_rows(project, [tasks[2], tasks[1]], few)
        fuller = unlabelled_rows(project, tasks[:1], more)
        anew = unlabelled_rows(replace(project), tasks, few)
        assert project.reader is project.reader
    names = [task.name for task in tasks]
    assert loaded == [names[:2], names[2:3], names[:1], names]
    assert list(both) == [names[2], names[1]] and both[names[1]] is first[names[1]]
    assert [len(rows) for rows in (*first.values(), *both.values(), *fuller.values())] == [4, 4, 4, 4, 7]
    for name, rows in (first | both).items():
        assert rows is not anew[name] and rows.texts == anew[name].texts


def test_whatever_decides_what_is_gathered_is_in_its_origin(tiny_family: Families) -> None:
    family = tiny_family("distilbert")
    few, more = (MethodSpec.resolve("fisher", {"rows": count}) for count in (4, 5))
    found = []
    for seed, spec in ((0, few), (0, more), (1, few)):
        with open_project(Recipe.parse(family.recipe(search={"seed": seed}), "test")) as project:
            task = project.recipe.tasks[0]
            found.append(origin(project, task, spec, Need.SQUARED_GRADIENTS))
            assert origin(project, project.recipe.tasks[1], spec, Need.SQUARED_GRADIENTS) != found[-1]
    assert len({str(sorted(one.items())) for one in found}) == 3


@pytest.mark.parametrize(
    ("method", "settings", "sizes"),
    [
        ("adamerging", {"batch": 5}, (5, 5)),
        ("expert_merging", {}, (1, 1)),
        ("fisher", {}, (1, 1)),
        ("regmean", {}, (2, 32)),
    ],
)
def test_how_many_rows_go_together_is_in_the_origin(
    tiny_family: Families, method: str, settings: dict[str, int], sizes: tuple[int, int]
) -> None:
    spec, found = MethodSpec.resolve(method, settings), []
    need = methods.get(method).needs
    assert need is not None
    for batch_size in (2, 32):
        with open_project(Recipe.parse(tiny_family("bert").recipe(search={"batch_size": batch_size}), "t")) as project:
            found.append((rows_together(project, spec), origin(project, project.recipe.tasks[0], spec, need)))
    assert tuple(together for together, _ in found) == sizes
    assert [decided["together"] for _, decided in found] == [str(size) for size in sizes]
    assert (found[0] == found[1]) == (sizes[0] == sizes[1])
