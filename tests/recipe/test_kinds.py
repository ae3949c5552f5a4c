"""What the tasks of a recipe ask for, and that one recipe asks for one kind."""

from typing import Any

import pytest

from hf_merge.errors import RecipeError
from hf_merge.recipe import Recipe
from hf_merge.recipe.kinds import reads, require_one_kind


DATA: dict[str, dict[str, Any]] = {
    "text": {"text": "sentence"},
    "image": {"image": "picture"},
    "audio": {"audio": "sound"},
    "language": {"text": "sentence", "template": "{text}", "answers": ["yes", "no"]},
}


def _recipe(*kinds: str) -> Recipe:
    tasks = [
        {"name": f"t{index}", "model": "some/model", "data": {"path": "some/data", **DATA[kind]}}
        for index, kind in enumerate(kinds)
    ]
    return Recipe.parse({"base": {"model": "some/base"}, "tasks": tasks}, "a test")


@pytest.mark.parametrize("kind", DATA)
def test_kinds_are_told_by_what_tasks_ask_for(kind: str) -> None:
    recipe = _recipe(kind, kind)
    assert require_one_kind(recipe) == kind
    assert [reads(task.data) for task in recipe.tasks] == [kind, kind]


@pytest.mark.parametrize(
    ("kinds", "said"),
    [
        (("language", "text"), "'t0' asks a language model and task 't1' reads text"),
        (("text", "text", "image"), "'t0' reads text and task 't2' reads images"),
    ],
)
def test_kinds_are_not_mixed(kinds: tuple[str, ...], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        require_one_kind(_recipe(*kinds))
