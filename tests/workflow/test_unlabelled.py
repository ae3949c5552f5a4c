"""Rows without labels: the first of the router's, none of those that select or are reported."""

from collections.abc import Callable

from hf_merge.merging.methods import MethodSpec, Need
from hf_merge.recipe import Recipe
from hf_merge.workflow.project import load_rows, open_project
from hf_merge.workflow.unlabelled import origin, unlabelled_rows
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
