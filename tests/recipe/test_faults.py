"""What is wrong with a recipe is said in the words of its author: no jargon of the library that checks it."""

from typing import Any

import pytest

from hf_merge.errors import RecipeError
from hf_merge.recipe import Recipe


DATA = {"path": "org/data", "text": "text"}
TASK = {"name": "one", "model": "org/model", "data": DATA}
JARGON = ("Input", "tuple", "dictionary", "instance of", "pattern", "constrained", "literal", "[key]", "Spec", "None")


def told(**changes: Any) -> list[str]:
    """Returns the lines of the complaint about a recipe."""
    with pytest.raises(RecipeError) as caught:
        Recipe.parse({"base": {"model": "org/base"}, "tasks": [TASK]} | changes, "a test")
    return [line.strip() for line in str(caught.value).splitlines()[1:]]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"tasks": {"one": TASK}}, "tasks: should be a list, each entry on a line that begins with '-'"),
        ({"tasks": []}, "tasks: holds 0 entries; give 1 or more"),
        (
            {"tasks": ["one"]},
            "tasks.0: should be a mapping, 'key: value', with some of name, model, adapter",
        ),
        ({"base": "/x"}, "base: should be a mapping, 'key: value', with some of model, revision (got '/x')"),
        ({"base": {"model": 3}}, "base.model: should be a text (got 3)"),
        ({"base": {"model": ""}}, "base.model: should not be empty (got '')"),
        ({"merge": ["ties"]}, "merge: should be a mapping, 'key: value', with some of methods, granularity"),
        ({"merge": {"methods": "ties"}}, "merge.methods: should be a list: [ties] (got 'ties')"),
        ({"merge": {"segments": {"a b": ["x"]}}}, "merge.segments.a b: should be letters, digits, '.', '_' and '-'"),
        (
            {"router": {"layers": "full"}},
            "router.layers: should be a number of blocks, 0 or more, or 'auto' or 'all'",
        ),
        ({"router": {"layers": True}}, "router.layers: should be a number of blocks"),
        (
            {"search": {"preset": "papr"}},
            "search.preset: should not be 'papr'. Did you mean 'paper'? Known",
        ),
        ({"search": {"preset": [["x"] * 99] * 99}}, "search.preset: should not be [['x', 'x'"),
        ({"search": {"evaluations": "many"}}, "search.evaluations: should be a whole number (got 'many')"),
        ({"search": {"evaluations": 2.5}}, "search.evaluations: should be a whole number (got 2.5)"),
        ({"search": {"seed": -1}}, "search.seed: should be greater than or equal to 0 (got -1)"),
        (
            {"tasks": [TASK | {"name": "small talk"}]},
            "tasks.0.name: should be letters, digits, '.', '_' and '-'",
        ),
        (
            {"tasks": [TASK | {"labels": [False, "a"]}]},
            "tasks.0.labels.0: should be a text (got False: YAML reads",
        ),
        (
            {"tasks": [TASK | {"data": None}]},
            "tasks.0.data: should be a mapping, 'key: value', with some of path",
        ),
        (
            {"tasks": [TASK | {"data": DATA | {"splits": {"valid": "dev"}}}]},
            "tasks.0.data.splits.valid: unknown key. Did you mean 'validation'? Known: test, train, validation.",
        ),
        (
            {"tasks": [TASK | {"data": DATA | {"txt": "x"}}]},
            "tasks.0.data.txt: unknown setting. Did you mean 'text'? Known: answers, audio,",
        ),
    ],
)
def test_a_fault_is_one_line_in_plain_words(changes: dict[str, Any], said: str) -> None:
    (line,) = told(**changes)
    assert line.startswith(said)
    assert not any(word in line for word in JARGON)


def test_faults_inside_a_list_are_told_in_its_place() -> None:
    lines = told(tasks=[TASK | {"metric": "acc"}, TASK | {"weight": -1}])
    assert [line.partition(":")[0] for line in lines] == ["tasks.0.metric", "tasks.1.weight"]


@pytest.mark.parametrize("section", ["merge", "search", "router"])
def test_a_section_with_nothing_in_it_is_as_good_as_none(section: str) -> None:
    recipe = {"base": {"model": "org/base"}, "tasks": [TASK]}
    assert Recipe.parse(recipe | {section: None}, "a test") == Recipe.parse(recipe, "a test")
