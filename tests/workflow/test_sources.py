"""Sources opened: each told where it belongs, adapters cut beside their base."""

import pytest

from hf_merge.errors import CheckpointDamaged
from hf_merge.recipe import Recipe
from hf_merge.workflow.project import open_project
from tests.workflow.test_adapters import Build


@pytest.mark.parametrize(
    ("granularity", "expected"), [("model", ["base", "model"]), ("type", ["base", "attention", "mlp"])]
)
def test_adapters_are_cut_beside_their_base(tiny_adapters: Build, granularity: str, expected: list[str]) -> None:
    document = tiny_adapters("bert", "lora").recipe(merge={"granularity": granularity})
    with open_project(Recipe.parse(document, "test")) as project:
        assert [part.name for part in project.components] == expected
        assert [part.shared for part in project.components] == [True] + [False] * (len(expected) - 1)
        tensors = [name for part in project.components for name in part.tensors]
        assert sorted(tensors) == sorted(project.family.shapes)
        assert set(project.components[0].tensors) == set(project.family.of_base)


def test_an_adapter_given_as_a_model_or_as_the_base_is_told_where_it_belongs(tiny_adapters: Build) -> None:
    document = tiny_adapters("bert", "ia3").recipe()
    as_model = [{**task, "model": task["adapter"]} for task in document["tasks"]]
    for task in as_model:
        del task["adapter"]
    folder = document["tasks"][0]["adapter"]
    for other in ({**document, "tasks": as_model}, {**document, "base": {"model": folder}}):
        with (
            pytest.raises(CheckpointDamaged, match="is an adapter of peft"),
            open_project(Recipe.parse(other, "test")),
        ):
            pass
