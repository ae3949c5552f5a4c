"""The few operations on the disk through which all that is durable passes; tests count, fail and kill them here.

Callers name them through this module (`disk.sync(...)`): whoever replaces one here replaces it everywhere.
"""

import errno
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from hf_merge.errors import CheckpointDamaged, InputError, ResourceError


_FULL = (errno.ENOSPC, errno.EDQUOT)
_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)


def open_file(path: Path, flags: int) -> int:
    """Returns the descriptor of a file opened with `flags`, created with the rights that the umask leaves."""
    return os.open(path, flags | os.O_CLOEXEC, 0o666)


def open_regular(path: Path, *, follow_links: bool = True, error: type[InputError] = CheckpointDamaged) -> int:
    """Returns the descriptor of a regular file, for reading; what is checked is what was opened, so not a name.

    Raises:
        InputError: As `error`: there is no such file, it is something else, or a link where links are not followed.
    """
    # Without O_NONBLOCK a pipe of this name would make us wait for ever.
    flags = os.O_RDONLY | os.O_NONBLOCK | (0 if follow_links else os.O_NOFOLLOW)
    try:
        descriptor = open_file(path, flags)
    except OSError as refused:
        raise error(f"{path} cannot be opened: {refused.strerror}. Is the folder complete?") from refused
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise error(f"{path} is no regular file; put the file itself there.")
    return descriptor


def write_all(descriptor: int, data: Any) -> int:
    """Writes every byte of a buffer, however few the system takes at a time, and returns how many those are."""
    view = memoryview(data).cast("B")
    written = 0
    while written < len(view):
        written += os.write(descriptor, view[written:])
    return written


def sync(descriptor: int) -> None:
    """Returns when what was written is on the disk."""
    os.fsync(descriptor)


def sync_folder(folder: Path) -> None:
    """Returns when the folder's names are on the disk."""
    descriptor = open_file(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        sync(descriptor)
    finally:
        os.close(descriptor)


def replace(source: Path, target: Path) -> None:
    """Gives `source` the name `target` at once, in place of what had it."""
    source.replace(target)


def truncate(descriptor: int, length: int) -> None:
    """Cuts a file to `length` bytes."""
    os.ftruncate(descriptor, length)


def unlink(path: Path) -> None:
    """Removes a file if it is there."""
    path.unlink(missing_ok=True)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Turns what the system says inside the block into a ResourceError that names the path and what to do."""
    try:
        yield
    except OSError as error:
        advice = "Check the folder and its rights"
        if error.errno in _NO_LOCKS:
            advice = "This file system may know no locks: choose a folder on a local disk"
        if error.errno in _FULL:
            with suppress(OSError):
                advice = f"{shutil.disk_usage(path.parent).free} bytes are free there: make room"
        raise ResourceError(f"{path}: the system answers '{error.strerror}'. {advice}, then run again.") from error


def refuse_full(error: BaseException, folder: Path) -> None:
    """Returns where an error of somebody else's code has another root than a full or read-only disk below `folder`.

    Raises:
        ResourceError: It has that root; the folder is named.
    """
    while error.__cause__ is not None:
        error = error.__cause__
    if not isinstance(error, OSError):
        return
    code = error.errno
    if code is None and folder.is_dir() and not shutil.disk_usage(folder).free:
        code = errno.ENOSPC  # `datasets` looks before it writes, and its error has no number
    if code in (*_FULL, errno.EROFS):
        with naming(folder):
            raise OSError(code, os.strerror(code)) from error
