"""Presets set what they say, and a recipe may say otherwise."""

from typing import Any

import pytest

from hf_merge.merging.methods import MethodSpec
from hf_merge.recipe import Recipe, settings_of
from hf_merge.recipe.presets import AUTOMERGE_METHODS, PRESETS


def _recipe(**sections: Any) -> Recipe:
    task = {"name": "a", "model": "m", "data": {"path": "parquet", "text": "t", "label": "l"}}
    return Recipe.parse({"base": {"model": "b"}, "tasks": [task], **sections}, "test")


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_sets_what_a_recipe_leaves_out(preset: str) -> None:
    search = _recipe(search={"preset": preset, "seed": 5}).search
    assert {name: getattr(search, name) for name in PRESETS[preset]} == PRESETS[preset]
    assert _recipe(search={"preset": preset, "evaluations": 33}).search.evaluations == 33


def test_automerge_brings_its_methods_unless_a_recipe_names_some() -> None:
    assert _recipe(search={"preset": "automerge"}).merge.methods == AUTOMERGE_METHODS
    named = _recipe(search={"preset": "automerge"}, merge={"methods": ["ties", "average"], "granularity": "layer"})
    assert named.merge.methods == ("ties", "average")
    assert _recipe(search={"preset": "automerge"}, merge={"granularity": "layer"}).merge.methods == AUTOMERGE_METHODS
    assert _recipe(search={"preset": "paper"}).merge.methods == ("task_arithmetic",)


def test_the_methods_of_automerge_are_all_known_and_all_different() -> None:
    specs = [MethodSpec.resolve(*settings_of(entry)) for entry in AUTOMERGE_METHODS]
    assert len(set(specs)) == len(specs)
    assert {spec.name for spec in specs} >= {"average", "task_arithmetic", "ties", "dare"}  # those of its study
