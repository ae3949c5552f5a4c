"""A plan: right from headers alone, and honest about what it estimates."""

import shutil
from math import prod
from pathlib import Path

import pytest
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from hf_merge.errors import ModelMismatch
from hf_merge.merging.cost import normalised
from hf_merge.recipe import Recipe
from hf_merge.workflow.configurations import new_builder
from hf_merge.workflow.plan import plan
from hf_merge.workflow.project import open_project
from hf_merge.workflow.tables import plan_table
from tests.tiny_runs import TinyRun


def with_every_weight_spoilt(run: TinyRun, folder: Path) -> Recipe:
    """Returns a recipe of copies whose data sections hold nothing but NaN; their headers are whole."""
    document = run.document | {"base": {"model": str(folder / "base")}, "tasks": []}
    sources = {"base": run.family.base} | {name: task.folder for name, task in run.family.tasks.items()}
    for name, source in sources.items():
        shutil.copytree(source, folder / name)
        path = folder / name / "model.safetensors"
        content = path.read_bytes()
        start = 8 + int.from_bytes(content[:8], "little")
        path.write_bytes(content[:start] + b"\xff" * (len(content) - start))
    document["tasks"] = [task | {"model": str(folder / task["name"])} for task in run.document["tasks"]]
    return Recipe.parse(document, "test")


def test_a_plan_reads_no_weights(tiny_run: TinyRun, tmp_path: Path) -> None:
    spoilt, whole = plan(with_every_weight_spoilt(tiny_run, tmp_path)), plan(tiny_run.recipe)
    assert (spoilt.components, spoilt.cost_all_merged) == (whole.components, whole.cost_all_merged)


def test_the_components_are_the_whole_backbone(tiny_run: TinyRun) -> None:
    found = plan(tiny_run.recipe)
    with safe_open(tiny_run.family.base / "model.safetensors", "pt") as file:
        total = sum(prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118
    assert found.parameters == total == sum(item.parameters for item in found.components) + 0
    assert [item.name for item in found.components] == ["embedding", "attention", "mlp", "norm"]
    assert (found.model_type, found.blocks, found.left_out, found.unplaced) == ("bert", 3, (), ())
    assert found.tasks == {"animals": 2 * 33, "colours": 3 * 33, "sizes": 33}


def test_the_costs_are_those_that_the_search_finds(tiny_run: TinyRun) -> None:
    found, controls = plan(tiny_run.recipe), tiny_run.front.controls
    assert found.cost_all_merged == pytest.approx(controls["all-merged"].cost)
    assert found.cost_all_separate == pytest.approx(controls["all-separate"].cost)
    assert found.configurations == 5**4 and found.evaluations == 9
    least, most = found.member_bytes
    assert 0 < least < most == round(4 * found.parameters * found.cost_all_separate)
    assert found.memory_bytes > 4 * 2 * found.parameters
    assert found.forward_seconds > 0


def test_every_clash_is_listed(tiny_run: TinyRun, tmp_path: Path) -> None:
    recipe = with_every_weight_spoilt(tiny_run, tmp_path)
    for name in ("animals", "sizes"):
        path = tmp_path / name / "config.json"
        path.write_text(path.read_text().replace('"hidden_act": "gelu"', '"hidden_act": "relu"'))
    with pytest.raises(ModelMismatch) as caught:
        plan(recipe)
    lines = [line for line in str(caught.value).splitlines() if "hidden_act is 'relu'" in line]
    assert len(lines) == 2 and "'animals'" in lines[0] and "'sizes'" in lines[1]


def test_every_codec_has_its_cost_shared_experts_among_them(tiny_run: TinyRun) -> None:
    codecs = ["int8", {"name": "delta", "bits": 4}, "int4"]
    recipe = Recipe.parse(tiny_run.document | {"merge": {"codecs": codecs}}, "test")
    found = plan(recipe)
    with open_project(recipe) as project:
        space, builder = project.space(), new_builder(project)
        built = [[builder.expert(key) for key in builder.keys(space.all_separate(codec))] for codec in range(3)]
        heads = project.family.head_parameters()
        exact = [
            normalised(sum(each.nbytes for each in experts) / 4 + heads, project.family.parameters)
            for experts in built
        ]
    assert [cost for _, cost in found.cost_by_codec] == pytest.approx(exact)
    assert [codec["name"] for codec, _ in found.cost_by_codec] == ["int8", "delta", "int4"]
    assert "all separate by the other codecs, C: delta (bits 4) " in plan_table(found)
    assert "other codecs" not in plan_table(plan(tiny_run.recipe))


def test_a_base_saved_in_half_precision_is_said_to_be_so(tiny_run: TinyRun, tmp_path: Path) -> None:
    assert plan(tiny_run.recipe).saved_bits == 32
    shutil.copytree(tiny_run.family.base, tmp_path / "base")
    path = tmp_path / "base" / "model.safetensors"
    save_file({name: tensor.half() for name, tensor in load_file(path).items()}, path, {"format": "pt"})
    found = plan(Recipe.parse(tiny_run.document | {"base": {"model": str(tmp_path / "base")}}, "test"))
    assert found.saved_bits == 16
    assert f"all merged {2 * found.cost_all_merged:.4f}" in plan_table(found)
