"""The disk's operations: short writes continued, only regular files opened, the system's errors put into words."""

import errno
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from hf_merge.errors import CheckpointDamaged, InputError, ResourceError
from hf_merge.storing import disk


def test_every_byte_is_written_however_few_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: real(descriptor, bytes(data)[:3]))
    descriptor = disk.open_file(tmp_path / "a", os.O_WRONLY | os.O_CREAT)
    assert disk.write_all(descriptor, memoryview(b"0123456789").cast("B", (2, 5))) == 10
    os.close(descriptor)
    assert (tmp_path / "a").read_bytes() == b"0123456789"


def test_only_regular_files_are_opened_for_reading(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").write_bytes(b"x")
    (tmp_path / "link").symlink_to("file")
    (tmp_path / "loop").symlink_to("loop")
    before = len(list(Path("/proc/self/fd").iterdir()))
    for name, message in {
        "pipe": "no regular file",
        "": "no regular file",
        "none": "No such file",
        "loop": "Too many",
    }.items():
        with pytest.raises(CheckpointDamaged, match=message):
            disk.open_regular(tmp_path / name)
    with pytest.raises(CheckpointDamaged, match="cannot be opened"):
        disk.open_regular(tmp_path / "link", follow_links=False)
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    for name in ("file", "link"):
        os.close(disk.open_regular(tmp_path / name))


def test_the_callers_error_is_raised(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        disk.open_regular(tmp_path / "none", error=InputError)
    assert type(caught.value) is InputError


@pytest.mark.parametrize(
    ("code", "advice"),
    [
        (errno.ENOSPC, "bytes are free there: make room"),
        (errno.EDQUOT, "bytes are free there: make room"),
        (errno.ENOLCK, "a folder on a local disk"),
        (errno.EACCES, "Check the folder and its rights"),
        (errno.EMFILE, "Check the folder and its rights"),
    ],
)
def test_errors_of_the_system_name_path_cause_and_advice(tmp_path: Path, code: int, advice: str) -> None:
    with pytest.raises(ResourceError, match=advice) as caught, disk.naming(tmp_path / "a"):
        raise OSError(code, os.strerror(code))
    assert f"{tmp_path / 'a'}: the system answers '{os.strerror(code)}'" in str(caught.value)


def test_our_own_errors_pass_unchanged(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^mine$"), disk.naming(tmp_path):
        raise InputError("mine")


def test_unlinking_what_is_gone_is_no_error(tmp_path: Path) -> None:
    disk.unlink(tmp_path / "none")


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
def test_a_full_disk_below_an_error_of_others_is_found(tmp_path: Path, code: int) -> None:
    wrapped = ValueError("cannot make the file")
    wrapped.__cause__ = OSError(code, os.strerror(code))
    with pytest.raises(ResourceError, match=rf"{tmp_path}: the system answers '{os.strerror(code)}'"):
        disk.refuse_full(wrapped, tmp_path)


def test_an_error_without_a_number_is_that_of_a_full_disk_where_nothing_is_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=0))
    with pytest.raises(ResourceError, match=r"'No space left on device'. 0 bytes are free there"):
        disk.refuse_full(OSError("Not enough disk space."), tmp_path)


@pytest.mark.parametrize("error", [ValueError("no rows"), OSError(errno.ENOENT, "gone"), OSError("unknown")])
def test_other_errors_of_others_are_left_to_the_caller(tmp_path: Path, error: Exception) -> None:
    disk.refuse_full(error, tmp_path)
