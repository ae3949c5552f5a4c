"""Digests that are kept are those of the file as it lies there."""

from pathlib import Path

import pytest

from hf_merge.errors import CheckpointDamaged
from hf_merge.storing import digests
from hf_merge.storing.digests import KeptDigests
from hf_merge.storing.tensors import sha256_of


def test_a_file_is_read_once_and_again_when_it_was_written_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[Path] = []
    monkeypatch.setattr(digests, "sha256_of", lambda path: read.append(path) or sha256_of(path))  # type: ignore[func-returns-value]
    first, second, kept = tmp_path / "first", tmp_path / "second", KeptDigests()
    first.write_bytes(b"abc")
    second.write_bytes(b"other")
    for _ in range(3):
        assert [kept.of(first), kept.of(second)] == [sha256_of(first), sha256_of(second)]
    assert read == [first, second]
    first.unlink()
    first.write_bytes(b"abcd")
    assert kept.of(first) == sha256_of(first)
    assert read == [first, second, first]


def test_a_file_that_is_gone_is_told(tmp_path: Path) -> None:
    kept = KeptDigests()
    (tmp_path / "file").write_bytes(b"abc")
    kept.of(tmp_path / "file")
    (tmp_path / "file").unlink()
    with pytest.raises(CheckpointDamaged):
        kept.of(tmp_path / "file")
