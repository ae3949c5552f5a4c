"""What was gathered, in files: found by the tensors' names, and only where it was gathered from the same."""

from pathlib import Path

import pytest
import torch

from hf_merge.errors import CheckpointDamaged
from hf_merge.merging.methods import Gathered
from hf_merge.storing.gathered import GatheredFile, gathered_path, write_gathered
from hf_merge.storing.headers import Header, parse_header


def test_what_is_written_is_found_with_its_axis(tmp_path: Path) -> None:
    held = {"a.weight": Gathered(torch.arange(4.0).view(2, 2), 0), "b/c.weight": Gathered(torch.ones(3), 1)}
    write_gathered(tmp_path / "x.safetensors", held)
    file = GatheredFile(tmp_path / "x.safetensors")
    for name, part in held.items():
        found = file.find(name)
        assert found is not None
        assert torch.equal(found.values, part.values) and found.axis == part.axis
    assert file.find("c.weight") is None


def test_the_header_is_read_once_and_again_where_the_file_was_written_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[Path] = []

    def parse(descriptor: int, path: Path) -> Header:
        read.append(path)
        return parse_header(descriptor, path)

    monkeypatch.setattr("hf_merge.storing.tensors.parse_header", parse)
    path, held = tmp_path / "x.safetensors", {"a": Gathered(torch.arange(3.0), 0), "b": Gathered(torch.ones(2), 1)}
    file = GatheredFile(path)
    for times, changed in ((1, held), (2, {"c": Gathered(torch.zeros(5), 1), "b": Gathered(torch.arange(4.0), 0)})):
        write_gathered(path, changed)
        for name in (*changed, *changed):
            found, anew = file.find(name), GatheredFile(path).find(name)
            assert found is not None and anew is not None
            assert torch.equal(found.values, anew.values) and found.axis == anew.axis == changed[name].axis
        assert len(read) - 4 * times == times, "the others read theirs each time"
    assert file.find("a") is None


def test_another_origin_is_another_file(tmp_path: Path) -> None:
    first = gathered_path(tmp_path, "task", {"rows": "1", "weights": "x"})
    assert first == gathered_path(tmp_path, "task", {"weights": "x", "rows": "1"})
    assert first != gathered_path(tmp_path, "task", {"rows": "2", "weights": "x"})
    assert first != gathered_path(tmp_path, "other", {"rows": "1", "weights": "x"})


def test_a_damaged_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(b"\x00" * 20)
    with pytest.raises(CheckpointDamaged):
        GatheredFile(tmp_path / "x.safetensors").find("a")
