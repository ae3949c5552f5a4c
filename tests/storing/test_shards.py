"""Which files hold a checkpoint's weights: as transformers chooses them, and nothing that an index smuggles in."""

import json
from pathlib import Path

import pytest

from hf_merge.errors import CheckpointDamaged, PickleRefused, UnsafeName
from hf_merge.storing.shards import INDEX_FILE, WEIGHTS_FILE, find_shards


def write_index(folder: Path, weight_map: object) -> None:
    (folder / INDEX_FILE).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def test_one_file_needs_no_index(tmp_path: Path) -> None:
    (tmp_path / WEIGHTS_FILE).touch()
    write_index(tmp_path, {"a": "stale.safetensors"})
    shards = find_shards(tmp_path, "org/model")
    assert shards.paths == (tmp_path / WEIGHTS_FILE,)
    assert shards.index == {}


def test_an_index_names_each_shard_once(tmp_path: Path) -> None:
    names = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    for name in names:
        (tmp_path / name).touch()
    index = {"b": names[1], "a": names[0], "c": names[1]}
    write_index(tmp_path, index)
    shards = find_shards(tmp_path, "org/model")
    assert shards.paths == tuple(tmp_path / name for name in names)
    assert shards.index == index


@pytest.mark.parametrize(
    "name",
    ["../secret.safetensors", "/etc/passwd", "a/b.safetensors", "..", "", ".hidden.safetensors", "x.bin",
     "a\\b.safetensors", "a\x00.safetensors", "a" * 200 + ".safetensors", "model.safetensors\n", None, 3, ["x"]],
)  # fmt: skip
def test_an_index_names_plain_files_only(name: object, tmp_path: Path) -> None:
    write_index(tmp_path, {"a": name})
    with pytest.raises(UnsafeName, match=r"org/model: model\.safetensors\.index\.json names the shard"):
        find_shards(tmp_path, "org/model")


def test_missing_shards_are_named(tmp_path: Path) -> None:
    (tmp_path / "here.safetensors").touch()
    write_index(tmp_path, {"a": "here.safetensors", "b": "gone.safetensors"})
    with pytest.raises(CheckpointDamaged, match=r"names gone\.safetensors, not found"):
        find_shards(tmp_path, "org/model")


@pytest.mark.parametrize("weight_map", [None, [], {}, "model.safetensors"])
def test_an_index_without_a_map_is_refused(weight_map: object, tmp_path: Path) -> None:
    write_index(tmp_path, weight_map)
    with pytest.raises(CheckpointDamaged, match="no 'weight_map'"):
        find_shards(tmp_path, "org/model")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "pytorch_model-00001-of-00002.bin", "model.pt", "model.ckpt"])
def test_pickles_are_refused_with_what_to_do(name: str, tmp_path: Path) -> None:
    (tmp_path / name).touch()
    with pytest.raises(PickleRefused, match=r"run code when opened.*save_pretrained"):
        find_shards(tmp_path, "org/model")


def test_an_empty_folder_says_what_was_found(tmp_path: Path) -> None:
    with pytest.raises(CheckpointDamaged, match=r"no model\.safetensors in .*nothing"):
        find_shards(tmp_path, "org/model")
    (tmp_path / "notes.txt").touch()
    with pytest.raises(CheckpointDamaged, match=r"notes\.txt"):
        find_shards(tmp_path, "org/model")
