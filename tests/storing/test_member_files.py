"""The files of a member folder: only our own are removed, only settings of a sane size are copied."""

import json
import os
import stat
from pathlib import Path

import pytest
import torch

from hf_merge.errors import LimitExceeded, ResourceError, RunFolderError
from hf_merge.storing import disk
from hf_merge.storing.chain_entries import FileEntry
from hf_merge.storing.limits import LIMITS
from hf_merge.storing.member_files import (
    copy_file,
    empty_folder,
    file_entry,
    find_difference,
    unfinished_shard,
    write_settings,
    write_shard,
)


OURS = ("chains.json", "README.md", "config.json", "router.safetensors", "tokenizer.json", "vocab.txt")
CHAT = ("chat_template.jinja",)  # without it an instruct model knows no conversation
SHARDS = ("experts-00001-of-00002.safetensors", "experts-00002-of-00002.safetensors")


def fill(folder: Path, *names: str) -> None:
    folder.mkdir(exist_ok=True)
    for name in names:
        (folder / name).write_text(name)


def test_a_new_folder_is_made_with_its_parents(tmp_path: Path) -> None:
    empty_folder(tmp_path / "a" / "b")
    empty_folder(tmp_path / "a" / "b")
    assert list((tmp_path / "a" / "b").iterdir()) == []


@pytest.mark.parametrize(
    "names",
    [
        (*OURS, *SHARDS),
        (SHARDS[1],),
        ("config.json", "experts-00001.part"),
        ("chains.json",),
        ("config.json", SHARDS[0], ".0123456789abcdef.part"),
        (".0123456789abcdef.part",),
    ],
)
def test_a_member_is_removed_however_far_it_was_written(names: tuple[str, ...], tmp_path: Path) -> None:
    fill(tmp_path, *names)
    empty_folder(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "names",
    [
        (*OURS, *SHARDS, "notes.txt"),
        (*SHARDS, "experts-notes.txt"),
        ("experts-1.part", "chains.json"),
        ("config.json", "tokenizer.json", "vocab.txt"),
        ("README.md",),
        ("model.safetensors", "config.json"),
        (".git",),
        (".tmpAb3xYz",),
        (*SHARDS, ".tmpAb3xYz9"),
    ],
)
def test_what_is_not_ours_stays(names: tuple[str, ...], tmp_path: Path) -> None:
    fill(tmp_path, *names)
    with pytest.raises(RunFolderError, match="which hf-merge did not write"):
        empty_folder(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == set(names)


def test_what_a_writer_that_was_killed_left_goes_too(tmp_path: Path) -> None:
    fill(tmp_path, "experts-00001.part", ".tmpAb3xYz")
    empty_folder(tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_map_goes_first_and_the_shards_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path, *OURS, *SHARDS)
    gone: list[str] = []
    unlink = disk.unlink

    def noted(path: Path) -> None:
        gone.append(path.name)
        unlink(path)

    monkeypatch.setattr(disk, "unlink", noted)
    empty_folder(tmp_path)
    assert gone[0] == "chains.json"
    assert gone[-2:] == list(SHARDS)


def test_a_folder_that_cannot_be_made_is_an_error_of_the_disk(tmp_path: Path) -> None:
    fill(tmp_path, "file")
    with pytest.raises(ResourceError):
        empty_folder(tmp_path / "file" / "member")


def test_settings_come_from_the_first_folder_that_has_any(tmp_path: Path) -> None:
    fill(tmp_path / "nothing", "model.safetensors", "config.json", "notes.txt", "generation_config.json")
    fill(tmp_path / "first", "tokenizer.json", "vocab.txt", "config.json", "modeling.py", "training_args.bin", *CHAT)
    fill(tmp_path / "second", "tokenizer.json", "merges.txt")
    fill(tmp_path / "member")
    sources = [tmp_path / name for name in ("missing", "nothing", "first", "second")]
    written = write_settings(tmp_path / "member", {"model_type": "bert"}, sources)
    assert sorted(written) == [*CHAT, "config.json", "tokenizer.json", "vocab.txt"]
    assert {path.name for path in (tmp_path / "member").iterdir()} == set(written)
    assert json.loads((tmp_path / "member" / "config.json").read_text()) == {"model_type": "bert"}
    assert (tmp_path / "member" / "tokenizer.json").read_text() == "tokenizer.json"


def test_a_folder_with_a_whole_tokenizer_goes_before_one_with_a_part(tmp_path: Path) -> None:
    fill(tmp_path / "base", "config.json", "special_tokens_map.json")
    fill(tmp_path / "tuned", "tokenizer.json", "special_tokens_map.json")
    fill(tmp_path / "member")
    written = write_settings(tmp_path / "member", {}, [tmp_path / "base", tmp_path / "tuned"])
    assert written == ["config.json", "special_tokens_map.json", "tokenizer.json"]
    fill(tmp_path / "other")
    assert write_settings(tmp_path / "other", {}, [tmp_path / "base"]) == ["config.json", "special_tokens_map.json"]


@pytest.mark.parametrize("name", ["tokenizer.json", "preprocessor_config.json"])
def test_settings_that_no_reader_would_take_are_refused(name: str, tmp_path: Path) -> None:
    fill(tmp_path / "source")
    with (tmp_path / "source" / name).open("wb") as file:
        file.truncate(LIMITS.tokenizer_bytes + 1)
    fill(tmp_path / "member")
    with pytest.raises(LimitExceeded, match=name):
        write_settings(tmp_path / "member", {"model_type": "bert"}, [tmp_path / "source"])
    assert not (tmp_path / "member" / name).exists()


def test_a_copy_is_whole_or_not_there(tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(b"x" * 5_000_000)
    copy_file(tmp_path / "source", tmp_path / "target")
    assert (tmp_path / "target").read_bytes() == b"x" * 5_000_000
    with pytest.raises(ResourceError):
        copy_file(tmp_path / "gone", tmp_path / "other")
    assert {path.name for path in tmp_path.iterdir()} == {"source", "target"}


def test_differences_from_the_map_are_told(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(b"hello")
    entry = file_entry(path)
    assert entry == FileEntry("2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824", 5)
    assert find_difference(path, entry) is None
    assert find_difference(path, FileEntry(entry.sha256, 6)) == "has 5 bytes where chains.json promises 6"
    assert "SHA-256 2cf24dba5fb0a30e..." in str(find_difference(path, FileEntry("0" * 64, 5)))
    assert find_difference(tmp_path / "gone", entry) == "is missing where chains.json promises 5 bytes"


def test_unfinished_shards_are_known_by_name(tmp_path: Path) -> None:
    assert unfinished_shard(tmp_path, 12) == tmp_path / "experts-00012.part"


@pytest.mark.parametrize(("umask", "rights"), [(0o022, 0o644), (0o077, 0o600)])
def test_shards_have_the_rights_that_the_umask_leaves(umask: int, rights: int, tmp_path: Path) -> None:
    before = os.umask(umask)
    try:
        write_shard(tmp_path / "shard", {"a": torch.ones(2)})
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "shard").stat().st_mode) == rights
