"""Methods that must look into fine-tunes: gathered once, from rows of their own, and merged by what was found."""

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.compute
import pyarrow.parquet
import pytest
import torch
from safetensors.torch import load_file

from hf_merge.errors import DatasetError, InputError
from hf_merge.merging.methods import MethodSpec
from hf_merge.recipe import Recipe
from hf_merge.workflow.build import build
from hf_merge.workflow.gathering import gathered
from hf_merge.workflow.merge import merge
from hf_merge.workflow.project import open_project
from hf_merge.workflow.run_folder import GATHERED_FOLDER, read_run
from hf_merge.workflow.search import search
from tests.tiny_models import TinyFamily
from tests.workflow.test_build import require_the_logits_of_the_search


Families = Callable[[str], TinyFamily]
FEW = {"rows": 6.0}


def test_fisher_is_the_weighted_mean_of_the_checkpoints(tiny_family: Families, tmp_path: Path) -> None:
    family = tiny_family("bert")
    recipe, kept = Recipe.parse(family.recipe(), "test"), tmp_path / "kept"
    merge(recipe, tmp_path / "out", method="fisher", settings=FEW, gathered=kept, progress=False)
    files = {name: next(kept.glob(f"{name}-*.safetensors")) for name in family.tasks}
    name = "encoder.layer.1.attention.self.query.weight"
    fishers = [load_file(file)[f"1/{name}"].double() + 1e-6 for file in files.values()]
    weights = [load_file(task.folder / "model.safetensors")[f"bert.{name}"].double() for task in family.tasks.values()]
    raised, held = torch.stack(fishers), torch.stack(weights)
    expected = (raised * held).sum(dim=0) / raised.sum(dim=0)
    found = load_file(tmp_path / "out" / "model.safetensors")[name].double()
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert not torch.allclose(found, held.mean(dim=0), atol=1e-4)


@pytest.mark.parametrize("method", ["fisher", "regmean"])
def test_what_was_kept_gives_the_same_bytes_and_is_not_gathered_again(
    tiny_family: Families, tmp_path: Path, method: str
) -> None:
    recipe, kept = Recipe.parse(tiny_family("distilbert").recipe(), "test"), tmp_path / "kept"
    merge(recipe, tmp_path / "a", method=method, settings=FEW, gathered=kept, progress=False)
    times = {path: path.stat().st_mtime_ns for path in kept.iterdir()}
    merge(recipe, tmp_path / "b", method=method, settings=FEW, gathered=kept, progress=False)
    merge(recipe, tmp_path / "c", method=method, settings=FEW, progress=False)
    assert times == {path: path.stat().st_mtime_ns for path in kept.iterdir()} and len(times) == 3
    files = [(tmp_path / name / "model.safetensors").read_bytes() for name in "abc"]
    assert files[0] == files[1] == files[2]


@pytest.mark.parametrize("method", ["fisher", "regmean"])
def test_what_was_kept_is_what_would_be_gathered_whatever_the_batches(
    tiny_family: Families, tmp_path: Path, method: str
) -> None:
    kept = tmp_path / "kept"
    for size in (2, 32):
        recipe = Recipe.parse(tiny_family("bert").recipe(search={"batch_size": size}), "test")
        merge(recipe, tmp_path / f"{size}", method=method, settings=FEW, gathered=kept, progress=False)
        merge(recipe, tmp_path / f"{size}-anew", method=method, settings=FEW, progress=False)
        files = [(tmp_path / name / "model.safetensors").read_bytes() for name in (f"{size}", f"{size}-anew")]
        assert files[0] == files[1]


def test_no_label_is_looked_at(tiny_family: Families, tmp_path: Path) -> None:
    recipe = Recipe.parse(tiny_family("bert").recipe(), "test")
    spec = MethodSpec.resolve("fisher", FEW)
    with open_project(recipe) as project:
        first = gathered(project, spec, tmp_path / "a", progress=False)
    swapped = tiny_family("bert").recipe()
    for task in swapped["tasks"]:
        table = pyarrow.parquet.read_table(task["data"]["data_files"]["train"])
        labels = pyarrow.compute.subtract(pyarrow.compute.max(table["label"]), table["label"])
        file = tmp_path / f"{task['name']}.parquet"
        pyarrow.parquet.write_table(table.set_column(table.schema.get_field_index("label"), "label", labels), file)
        task["data"]["data_files"] = {**task["data"]["data_files"], "train": str(file)}
    with open_project(Recipe.parse(swapped, "test")) as project:
        second = gathered(project, spec, tmp_path / "b", progress=False)
    name = "encoder.layer.0.output.dense.weight"
    for known in first:
        one, other = first[known].find(name), second[known].find(name)
        assert one is not None and other is not None
        assert np.array_equal(one.values.numpy(), other.values.numpy())


def test_too_few_rows_are_told(tiny_family: Families, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    recipe = Recipe.parse(tiny_family("bert").recipe(router={"rows_per_task": 5}), "test")
    with caplog.at_level(logging.WARNING):
        merge(recipe, tmp_path / "out", method="regmean", settings={"rows": 9.0}, progress=False)
    assert "Task 'animals': 'regmean' asks for 9 rows, and 5 are there." in caplog.text


def test_data_that_are_not_there_are_told_before_anything_is_written(tiny_family: Families, tmp_path: Path) -> None:
    document = tiny_family("bert").recipe()
    document["tasks"][1]["data"]["data_files"] = {"train": str(tmp_path / "nowhere.parquet")}
    with pytest.raises(DatasetError, match="nowhere"):
        merge(Recipe.parse(document, "test"), tmp_path / "out", method="fisher", progress=False)
    assert not any(tmp_path.iterdir())


def test_adapters_are_refused(tiny_adapters: Callable[[str, str], TinyFamily], tmp_path: Path) -> None:
    recipe = Recipe.parse(tiny_adapters("bert", "lora").recipe(), "test")
    with open_project(recipe) as project, pytest.raises(InputError, match="these tasks are adapters"):
        gathered(project, MethodSpec.resolve("fisher"), tmp_path / "kept", progress=False)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["fisher", "regmean"])
def test_a_search_gathers_once_and_its_members_are_what_it_scored(
    tiny_family: Families, tmp_path: Path, method: str
) -> None:
    family, run = tiny_family("bert"), tmp_path / "run"
    settings = {"evaluations": 6, "population": 4, "validation_rows": 20}
    document = family.recipe(
        merge={"methods": [{"name": method, "rows": 6}]}, search=settings, router={"rows_per_task": 20, "epochs": 1}
    )
    recipe = Recipe.parse(document, "test")
    front = search(recipe, run, progress=False)
    times = {path: path.stat().st_mtime_ns for path in (run / GATHERED_FOLDER).iterdir()}
    assert len(times) == len(family.tasks)
    build(run, progress=False)
    require_the_logits_of_the_search(read_run(run)[1], front.points, run)
    assert times == {path: path.stat().st_mtime_ns for path in (run / GATHERED_FOLDER).iterdir()}
    average = search(
        Recipe.parse({**document, "merge": {"methods": ["average"]}}, "test"), tmp_path / "average", progress=False
    )
    assert average.controls["all-merged"].performance != front.controls["all-merged"].performance
    assert search(recipe, tmp_path / "again", progress=False) == front


@pytest.mark.slow
def test_two_processes_find_the_same_front(tiny_family: Families, tmp_path: Path) -> None:
    settings = {"evaluations": 5, "population": 4, "validation_rows": 10}
    merge_section = {"methods": [{"name": "regmean", "rows": 4}]}
    recipe = Recipe.parse(tiny_family("bert").recipe(merge=merge_section, search=settings), "test")
    fronts = []
    for processes in (1, 2):
        search(recipe, tmp_path / str(processes), processes=processes, progress=False)
        fronts.append((tmp_path / str(processes) / "front.json").read_bytes())
    assert fronts[0] == fronts[1]
