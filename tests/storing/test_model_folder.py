"""A model folder written tensor by tensor: what transformers and safetensors read, all of it or nothing."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from hf_merge.errors import ResourceError, RunFolderError
from hf_merge.storing import disk, model_folder
from hf_merge.storing.checkpoints import Checkpoint
from hf_merge.storing.model_folder import ModelFolder, require_free


TENSORS = {
    "model.embed_tokens.weight": torch.arange(15.0, dtype=torch.bfloat16).view(5, 3),  # an odd number of bytes in all
    "model.layers.0.mlp.weight": torch.arange(6.0).view(2, 3),
    "model.layers.1.mlp.weight": torch.arange(4.0, dtype=torch.float64),
    "model.norm.weight": torch.zeros(0),
}


@pytest.fixture
def like(tmp_path: Path) -> Checkpoint:
    folder = tmp_path / "like"
    folder.mkdir()
    save_file(TENSORS, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "tie_word_embeddings": False}))
    (folder / "generation_config.json").write_text("{}")
    (folder / "tokenizer.json").write_text("{}")
    return Checkpoint("like", folder)


def _write_all(out: Path, like: Checkpoint) -> None:
    with ModelFolder(out, like, [like.folder]) as folder:
        for name in reversed(like.specs):  # in any order
            folder.write(name, like.read(name) + 1)


def test_the_library_reads_every_tensor_back_in_its_own_type(tmp_path: Path, like: Checkpoint) -> None:
    _write_all(tmp_path / "out", like)
    found = load_file(tmp_path / "out" / "model.safetensors")
    assert {name: value.dtype for name, value in found.items()} == {name: v.dtype for name, v in TENSORS.items()}
    for name, value in TENSORS.items():
        assert torch.equal(found[name], value + 1)
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"model.safetensors", "config.json", "generation_config.json", "tokenizer.json"}


def test_a_copy_equals_the_original(tmp_path: Path, like: Checkpoint) -> None:
    with ModelFolder(tmp_path / "out", like, []) as folder:
        for name in like.specs:
            folder.copy(name)
    found = load_file(tmp_path / "out" / "model.safetensors")
    assert all(torch.equal(found[name], value) for name, value in TENSORS.items())


def test_what_is_larger_than_a_file_may_be_goes_into_several_with_an_index(
    tmp_path: Path, like: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_folder, "SHARD_BYTES", 40)
    _write_all(tmp_path / "out", like)
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_bytes())
    assert index["metadata"]["total_size"] == sum(value.nbytes for value in TENSORS.values())
    assert len(set(index["weight_map"].values())) > 1
    again = Checkpoint("out", tmp_path / "out")
    assert all(torch.equal(again.read(name), like.read(name) + 1) for name in TENSORS)


def test_nothing_is_left_of_a_folder_that_was_not_written_to_its_end(tmp_path: Path, like: Checkpoint) -> None:
    with pytest.raises(KeyError), ModelFolder(tmp_path / "out", like, []) as folder:
        folder.copy("model.norm.weight")
        raise KeyError("stop")
    with (
        pytest.raises(RuntimeError, match="3 tensors were not written"),
        ModelFolder(tmp_path / "out", like, []) as out,
    ):
        out.copy("model.norm.weight")
    assert [path.name for path in tmp_path.iterdir()] == ["like"]


def test_a_full_disk_is_told_and_leaves_nothing(
    tmp_path: Path, like: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(disk, "sync", refuse)
    with pytest.raises(ResourceError, match="make room"):
        _write_all(tmp_path / "out", like)
    assert [path.name for path in tmp_path.iterdir()] == ["like"]


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_is_there_already_is_not_written_over(tmp_path: Path, like: Checkpoint, kind: str) -> None:
    out = tmp_path / "out"
    if kind == "file":
        out.write_text("mine")
    else:
        out.mkdir()
        (out / "notes.txt").write_text("mine")
    with pytest.raises(RunFolderError, match="new or empty folder"):
        _write_all(out, like)
    assert (out if kind == "file" else out / "notes.txt").read_text() == "mine"


def test_an_empty_folder_is_taken(tmp_path: Path, like: Checkpoint) -> None:
    (tmp_path / "out").mkdir()
    _write_all(tmp_path / "out", like)
    assert (tmp_path / "out" / "config.json").is_file()


def test_the_folder_that_a_link_points_to_is_taken(tmp_path: Path, like: Checkpoint) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "elsewhere")
    _write_all(tmp_path / "out", like)
    assert (tmp_path / "out").is_symlink() and (tmp_path / "elsewhere" / "config.json").is_file()


@pytest.mark.parametrize(("out", "said"), [(".", "current folder"), ("here/..", "current folder"), ("on", "mount")])
def test_a_folder_that_no_other_can_replace_is_refused_at_once(
    tmp_path: Path, like: Checkpoint, monkeypatch: pytest.MonkeyPatch, out: str, said: str
) -> None:
    (tmp_path / "work" / "on").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setattr(Path, "is_mount", lambda path: path.name == "on")
    if out != "on":
        (tmp_path / "work" / "on").rmdir()
    with pytest.raises(RunFolderError, match=f"{said}.*Name a new folder"):
        require_free(Path(out))
    with pytest.raises(RunFolderError, match=said):
        _write_all(Path(out), like)
    assert {path.name for path in tmp_path.iterdir()} == {"like", "work"}


def test_what_a_killed_merge_left_is_swept_and_what_another_writes_is_not(tmp_path: Path, like: Checkpoint) -> None:
    others = {tmp_path / name for name in (".out.part", ".out2.11.partial", ".out.x.partial", "out.11.partial")}
    for path in (tmp_path / ".out.4711.partial", *others):
        path.mkdir()
        (path / "model.safetensors").write_bytes(b"0")
    with ModelFolder(tmp_path / "out", like, []) as slow:
        (written,) = tmp_path.glob(".out.????????????????.partial")
        _write_all(tmp_path / "out", like)
        assert written.is_dir()
        for name in like.specs:
            slow.copy(name)
        shutil.rmtree(tmp_path / "out")
    assert set(tmp_path.iterdir()) == {*others, tmp_path / "out", tmp_path / "like"}
