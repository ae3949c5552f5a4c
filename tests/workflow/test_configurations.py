"""Points of a front become configurations again, whatever methods they name."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from hf_merge.errors import RecipeError
from hf_merge.merging.methods import MethodSpec
from hf_merge.recipe import Recipe
from hf_merge.searching.configuration import Configuration
from hf_merge.searching.evaluation import Evaluation
from hf_merge.storing.front import FrontPoint
from hf_merge.workflow.configurations import configuration_of, front_point, methods_of, new_builder
from hf_merge.workflow.project import open_project
from hf_merge.workflow.run_folder import read_run
from tests.tiny_models import TinyFamily
from tests.tiny_runs import TinyRun


Families = Callable[[str], TinyFamily]
TIES, AVERAGE = MethodSpec.resolve("ties"), MethodSpec.resolve("average")


def test_a_point_names_its_methods_and_gives_the_configuration_back(tiny_family: Families) -> None:
    methods = {"methods": ["average", "ties"]}
    with open_project(Recipe.parse(tiny_family("bert").recipe(merge=methods), "test")) as project:
        configuration = Configuration(((0, 0, 1), (0, 1, 2), (0, 0, 0), (0, 1, 1)), (1, 0, 1, 0))
        specs = [project.methods[number] for number in configuration.methods]
        scores = dict.fromkeys(project.family.tasks, 0.5)
        point = front_point(project, configuration.grouping, specs, (), Evaluation(scores, 0.4), scores)
        assert methods_of(point) == (TIES, AVERAGE, TIES, AVERAGE)
        assert configuration_of(point, new_builder(project)) == configuration
        other = front_point(project, configuration.grouping, [AVERAGE] * 4, (), Evaluation(scores, 0.4), scores)
        assert other.id != point.id


def test_without_methods_it_is_the_recipes_own(tiny_run: TinyRun) -> None:
    front, recipe = read_run(tiny_run.folder)
    with open_project(recipe) as project:
        builder = new_builder(project, tiny_run.folder, front)
        assert builder.methods == project.methods
        for point in front.points:
            assert configuration_of(point, builder) == Configuration(point.grouping)


def test_a_method_that_is_not_known_here_is_named() -> None:
    point = FrontPoint("c0300-abcdef", 0.3, 0.5, 0.5, {"a": 0.5}, ((0,),), methods=({"name": "telepathy"},))
    with pytest.raises(RecipeError, match="Unknown merge method 'telepathy'"):
        methods_of(point)
    assert methods_of(replace(point, methods=None)) == ()


def test_what_needs_rows_needs_a_run_folder(tiny_family: Families) -> None:
    recipe = Recipe.parse(tiny_family("bert").recipe(merge={"methods": ["average", "regmean"]}), "test")
    with open_project(recipe) as project, pytest.raises(ValueError, match="'regmean' needs a run folder"):
        new_builder(project)
