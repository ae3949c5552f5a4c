"""Sources opened: each told where it belongs, heads named by who knows, adapters cut beside their base."""

import json
from collections.abc import Callable
from pathlib import Path
from shutil import copytree

import pytest
from safetensors.torch import load_file, save_file

from hf_merge.errors import CheckpointDamaged, RecipeError, UnsafeName
from hf_merge.recipe import Recipe
from hf_merge.storing.hub import Access
from hf_merge.workflow.origin import published_recipe
from hf_merge.workflow.project import open_project
from hf_merge.workflow.rows import load_rows
from hf_merge.workflow.search import search
from tests.hub_server import HubServer
from tests.storing.test_adapters import edited
from tests.tiny_models import TinyFamily
from tests.workflow.test_adapters import FULL, Build


def test_an_adapter_without_a_head_is_refused(tiny_adapters: Build, tmp_path: Path) -> None:
    family = tiny_adapters("bert", "ia3")
    folder = edited(family.tasks["animals"].folder, tmp_path / "headless")
    held = load_file(folder / "adapter_model.safetensors")
    save_file(
        {name: tensor for name, tensor in held.items() if "classifier" not in name},
        folder / "adapter_model.safetensors",
    )
    document = family.recipe(**FULL)
    document["tasks"][0]["adapter"] = str(folder)
    with pytest.raises(CheckpointDamaged, match="holds no head"):
        search(Recipe.parse(document, "test"), tmp_path / "run", progress=False)


def test_labels_that_the_checkpoint_names_otherwise_are_a_clash(tiny_family: Callable[[str], TinyFamily]) -> None:
    document = tiny_family("bert").recipe()
    document["tasks"][0]["labels"] = ["dog", "cat"]
    with (
        open_project(Recipe.parse(document, "test")) as project,
        pytest.raises(RecipeError, match=r"names the labels dog, cat, and .* has the labels cat, dog"),
    ):
        _ = project.heads


def test_labels_of_the_recipe_that_no_member_may_hold_are_refused_before_a_search(tiny_adapters: Build) -> None:
    document = tiny_adapters("bert", "lora").recipe()
    document["tasks"][0]["labels"] = ["cat", "dog\x07"]
    name = document["tasks"][0]["name"]
    with (
        open_project(Recipe.parse(document, "test")) as project,
        pytest.raises(RecipeError, match=rf"^The recipe: tasks\.{name}\.labels: .*Name the label otherwise"),
    ):
        _ = project.heads


def test_a_head_that_cannot_be_read_names_its_task(tiny_family: Callable[[str], TinyFamily], tmp_path: Path) -> None:
    document = tiny_family("bert").recipe()
    task = document["tasks"][0]
    folder = copytree(task["model"], tmp_path / "mute")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"id2label": {"0": "cat", "1": "dog\x07"}}))
    task["model"] = str(folder)
    with (
        open_project(Recipe.parse(document, "test")) as project,
        pytest.raises(UnsafeName, match=rf"^Task '{task['name']}' \(.*mute\): config\.json: id2label\.1: "),
    ):
        _ = project.heads


def test_files_of_a_local_folder_are_those_that_lie_in_it(
    tiny_family: Callable[[str], TinyFamily], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    document = tiny_family("bert").recipe()
    data = document["tasks"][0]["data"]
    files = {split: Path(file) for split, file in data["data_files"].items()}
    (tmp_path / "rows").mkdir()
    for split, file in files.items():
        (tmp_path / "rows" / f"{split}.parquet").write_bytes(file.read_bytes())
        (tmp_path / f"{split}.parquet").write_bytes(b"another file of this name")
    monkeypatch.chdir(tmp_path)
    data |= {"path": "./rows", "data_files": {split: f"{split}.parquet" for split in files}}
    with open_project(Recipe.parse(document, "test")) as project:
        pinned = project.recipe.tasks[0].data
        rows = load_rows(project.recipe, project.heads)
    assert pinned.path == str(tmp_path / "rows")
    assert pinned.data_files == {split: str(tmp_path / "rows" / f"{split}.parquet") for split in files}
    with open_project(Recipe.parse(tiny_family("bert").recipe(), "test")) as project:
        usual = load_rows(project.recipe, project.heads)
    task = document["tasks"][0]["name"]
    assert rows[task].test.digest() == usual[task].test.digest()


def test_patterns_of_files_are_seen_from_where_the_command_ran(
    tiny_family: Callable[[str], TinyFamily], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    document = tiny_family("bert").recipe()
    data = document["tasks"][0]["data"]
    for split, file in data["data_files"].items():
        (tmp_path / f"{split}-0.parquet").write_bytes(Path(file).read_bytes())
    monkeypatch.chdir(tmp_path)
    data["data_files"] = {split: f"{split}-*.parquet" for split in data["data_files"]}
    with open_project(Recipe.parse(document, "test")) as project:
        monkeypatch.chdir("/")
        assert load_rows(project.recipe, project.heads)


def test_adapters_on_the_hub_are_pinned_and_named_as_such(
    hub: HubServer, tiny_adapters: Build, tmp_path: Path
) -> None:
    family = tiny_adapters("bert", "lora")
    names = {"base": family.base} | {task: tiny.folder for task, tiny in family.tasks.items()}
    commits = {
        name: hub.publish(f"alice/{name}", {path.name: path.read_bytes() for path in folder.iterdir()})
        for name, folder in names.items()
    }
    document = family.recipe()
    document["base"]["model"] = "alice/base"
    for task in document["tasks"]:
        task["adapter"] = f"alice/{task['name']}"
    access = Access(cache_dir=tmp_path, endpoint=hub.endpoint, sleep=lambda _: None)
    with open_project(Recipe.parse(document, "test"), access=access) as project:
        pinned = project.recipe
        assert project.family.adapted
    assert pinned.base.revision == commits["base"]
    for task in pinned.tasks:
        assert (task.model, task.adapter, task.revision) == (None, f"alice/{task.name}", commits[task.name])
    assert Recipe.parse(pinned.model_dump(mode="json"), "test") == pinned
    told = published_recipe(pinned)
    assert "adapter: alice/animals" in told and str(tmp_path) not in told
