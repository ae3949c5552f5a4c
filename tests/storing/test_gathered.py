"""What was gathered, in files: found by the tensors' names, and only where it was gathered from the same."""

from pathlib import Path

import pytest
import torch

from hf_merge.errors import CheckpointDamaged
from hf_merge.merging.methods import Gathered
from hf_merge.storing.gathered import GatheredFile, gathered_path, write_gathered


def test_what_is_written_is_found_with_its_axis(tmp_path: Path) -> None:
    held = {"a.weight": Gathered(torch.arange(4.0).view(2, 2), 0), "b/c.weight": Gathered(torch.ones(3), 1)}
    write_gathered(tmp_path / "x.safetensors", held)
    file = GatheredFile(tmp_path / "x.safetensors")
    for name, part in held.items():
        found = file.find(name)
        assert found is not None
        assert torch.equal(found.values, part.values) and found.axis == part.axis
    assert file.find("c.weight") is None


def test_another_origin_is_another_file(tmp_path: Path) -> None:
    first = gathered_path(tmp_path, "task", {"rows": "1", "weights": "x"})
    assert first == gathered_path(tmp_path, "task", {"weights": "x", "rows": "1"})
    assert first != gathered_path(tmp_path, "task", {"rows": "2", "weights": "x"})
    assert first != gathered_path(tmp_path, "other", {"rows": "1", "weights": "x"})


def test_a_damaged_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(b"\x00" * 20)
    with pytest.raises(CheckpointDamaged):
        GatheredFile(tmp_path / "x.safetensors").find("a")
