"""Files that survive kill -9 and power loss: whole-file writes, an append-only journal, and a lock on a folder.

There is one way to write. A whole file goes to a `.part` beside its target, is synced, renamed, and its folder synced:
a reader sees the old file or the new one. A line of the journal is a JSON object that ends with its own length and a
checksum that goes on from the line before, so whatever was not written whole is known. The lock is the kernel's
(`flock`), freed however its holder dies.
"""

import fcntl
import os
import re
import secrets
import socket
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from hf_merge.errors import ResourceError, RunFolderError
from hf_merge.storing import disk
from hf_merge.storing.limits import LIMITS
from hf_merge.storing.strict_json import JsonValue, dumps, loads


_PARTIAL = re.compile(r"\.[0-9a-f]{16}\.part")
_RESERVED = ("bytes", "crc32")
# The end of one line and the beginning of the next, with whatever stands where the newline was. A comma would be JSON.
_GLUED = re.compile(rb'"bytes":[0-9]{1,10},"crc32":"[0-9a-f]{8}"\}[^,]?\{', re.DOTALL)
# Compact JSON cut anywhere; what has spaces outside its texts, or is complete without our keys, is somebody else's.
_STRING = rb'"(?:[^"\\]|\\.)*+"'
_BEGINNING = re.compile(rb'\{(?:%s|[^"\s])*+(?:"(?:[^"\\]|\\.)*+\\?)?' % _STRING, re.DOTALL)
_LOCK_NAME = ".lock"


def write_atomic(path: Path, data: bytes) -> None:
    """Writes `data` to `path` so that a reader, at any time and after any crash, finds the old content or the new.

    Raises:
        ResourceError: The disk refused; `path` is as it was.
    """
    with atomic_file(path) as file:
        file.write(data)


@contextmanager
def atomic_file(path: Path) -> Iterator[FileIO]:
    """Yields an unbuffered binary file that becomes `path` when the block ends well, and vanishes otherwise.

    Raises:
        ResourceError: The disk refused; `path` is as it was.
    """
    part = path.parent / f".{secrets.token_hex(8)}.part"
    with disk.naming(path):
        file = _PartFile(disk.open_file(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL), path)
    try:
        with file:
            yield file
            with disk.naming(path):
                disk.sync(file.fileno())
        with disk.naming(path):
            disk.replace(part, path)
    except BaseException:
        with suppress(OSError):
            disk.unlink(part)
        raise
    with disk.naming(path):
        disk.sync_folder(path.parent)


def sync_file(path: Path) -> None:
    """Returns when a file that something else wrote, such as the safetensors library, is on the disk with its name.

    Raises:
        ResourceError: The disk refused.
    """
    with disk.naming(path):
        descriptor = disk.open_file(path, os.O_RDONLY)
        try:
            disk.sync(descriptor)
        finally:
            os.close(descriptor)
        disk.sync_folder(path.parent)


def sweep_partials(folder: Path) -> int:
    """Removes what killed writers left below `folder`, and returns how many files that were; hold the folder's lock.

    Raises:
        ResourceError: A file cannot be removed.
    """
    swept = 0
    for parent, _, names in os.walk(folder):
        for name in filter(_PARTIAL.fullmatch, names):
            with disk.naming(Path(parent, name)):
                disk.unlink(Path(parent, name))
            swept += 1
    return swept


class Journal:
    """An append-only file of JSON objects, one line each, which any reader of JSON lines takes.

    The last two keys of a line are the journal's own: `bytes`, the length of the record as JSON without them, and
    `crc32`, the CRC-32 of all records' JSON up to and with this one, in hex. So a line that is doubled, moved or
    missing is found as surely as a flipped bit. Opening a journal creates it, or checks every line and cuts off a last
    one that a crash left unfinished. Only one process may have it open: hold the folder's lock.

    Attributes:
        path: Where it lies.
        cut_bytes: How many bytes of an unfinished last line were cut off, or left out; 0 after a clean end.
    """

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        """Opens the journal at `path`; with `read_only` it must be there, is left as it is, and may be in use.

        Raises:
            RunFolderError: A line before the last is damaged, or this is no journal.
            ResourceError: The file cannot be read or written.
        """
        self.path = path
        self._records: list[dict[str, JsonValue]] = []
        self._checksum = 0
        with disk.naming(path):
            existed = read_only or path.exists()
            flags = os.O_RDONLY if read_only else os.O_RDWR | os.O_CREAT | os.O_APPEND
            self._descriptor: int | None = disk.open_file(path, flags)
            try:
                self._end, self.cut_bytes = self._recover(path.read_bytes())
                if self.cut_bytes and not read_only:
                    disk.truncate(self._descriptor, self._end)
                    disk.sync(self._descriptor)
                if not existed:
                    disk.sync_folder(path.parent)
            except BaseException:
                self.close()
                raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def records(self) -> tuple[dict[str, JsonValue], ...]:
        """Returns every record, oldest first, without the journal's own keys."""
        return tuple(self._records)

    def append(self, record: Mapping[str, Any]) -> None:
        """Adds a record; when this returns, the record is on the disk.

        Raises:
            ResourceError: The disk refused, now or before; the journal is closed and holds every record acknowledged.
            ValueError: The record holds NaN or infinity, or a key that is the journal's own.
            LimitExceeded: The record is larger or deeper than a journal takes.
        """
        taken = [key for key in _RESERVED if key in record]
        if taken:
            raise ValueError(f"The key '{taken[0]}' is the journal's own; give the record's another name.")
        line, checksum = _sealed(dumps(dict(record))[:-1], self._checksum)
        parsed = _parse(line, str(self.path))
        if self._descriptor is None:
            raise ResourceError(f"{self.path} is closed; open the journal again to append.")
        try:
            with disk.naming(self.path):
                disk.write_all(self._descriptor, line)
                disk.sync(self._descriptor)
        except ResourceError:
            # A half-written line must not stay: the next one would be glued to it.
            with suppress(OSError):
                disk.truncate(self._descriptor, self._end)
            self.close()
            raise
        self._end += len(line)
        self._checksum = checksum
        self._records.append(parsed)

    def close(self) -> None:
        """Closes the file; every record appended is on the disk already."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _recover(self, content: bytes) -> tuple[int, int]:
        """Reads all whole lines; returns where they end, and how many bytes of an unfinished line follow."""
        start = 0
        while start < len(content):
            end = content.find(b"\n", start) + 1 or len(content)
            line = content[start:end]
            checksum = self._checksum_of(line)
            if checksum is None:
                if end < len(content) or not self._is_unfinished(line):
                    raise self._damage(len(self._records) + 1)
                return start, len(line)
            self._records.append(_parse(line, f"{self.path}, line {len(self._records) + 1}"))
            self._checksum = checksum
            start = end
        return start, 0

    def _checksum_of(self, line: bytes) -> int | None:
        """Returns the checksum of a whole line, or None where `append` would not have written the line here."""
        head, _, _ = line.rpartition(b'"bytes":')
        expected, checksum = _sealed(head.removesuffix(b",") + b"}", self._checksum)
        return checksum if line == expected else None

    def _is_unfinished(self, line: bytes) -> bool:
        """Returns whether a last line is what a crash leaves, not two lines in one, nor a file that is not ours."""
        if _GLUED.search(line):
            return False
        if self._records:
            return True
        if b"\0" in line:  # blocks that never reached the disk; no JSON holds zeros
            return line.startswith(b'{"') or not line.strip(b"\0")
        if self._checksum_of(line + b"\n") is not None:
            return True
        bare = re.sub(_STRING, b"", line, flags=re.DOTALL).partition(b'"')[0]
        return _BEGINNING.fullmatch(line) is not None and bare.count(b"{") > bare.count(b"}")

    def _damage(self, number: int) -> RunFolderError:
        kept = f"delete it and all after it to keep the {number - 1} before" if number > 1 else "choose another folder"
        return RunFolderError(
            f"{self.path}: line {number} is damaged or no line of a journal: its length or checksum does not fit. "
            f"Restore the file from a copy, or {kept}; what is gone is done again."
        )


class FolderLock:
    """The exclusive right to write in a folder, as a context manager; the kernel frees it even after kill -9."""

    def __init__(self, folder: Path, clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self.folder = folder
        self._clock = clock
        self._descriptor = -1

    def __enter__(self) -> Self:
        """Takes the lock at once or not at all.

        Raises:
            RunFolderError: Another process holds it; the message names its pid, its host and since when.
            ResourceError: The folder cannot be written, or its file system knows no locks.
        """
        path = self.folder / _LOCK_NAME
        with disk.naming(path):
            descriptor = disk.open_file(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW)
            try:
                self._take(descriptor)
            except BaseException:
                os.close(descriptor)
                raise
        self._descriptor = descriptor
        _HELD.add(descriptor)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._descriptor in _HELD:
            _HELD.discard(self._descriptor)
            os.close(self._descriptor)

    def _take(self, descriptor: int) -> None:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as busy:
            holder = os.pread(descriptor, LIMITS.text_characters, 0).decode("ascii", "replace").strip()
            raise RunFolderError(
                f"{self.folder} is in use by {holder or 'a process that has just started'}. "
                "Wait until it ends, or choose another folder."
            ) from busy
        disk.truncate(descriptor, 0)
        since = self._clock().isoformat(sep=" ", timespec="seconds")
        disk.write_all(descriptor, f"process {os.getpid()} on {socket.gethostname()} since {since}\n".encode())


_HELD: set[int] = set()


def _drop_inherited() -> None:
    """Closes a forked child's copies of its parent's locks, lest a worker that outlives it keep the folder busy."""
    for descriptor in _HELD:
        os.close(descriptor)
    _HELD.clear()


os.register_at_fork(after_in_child=_drop_inherited)


class _PartFile(FileIO):
    """A file whose `write` writes everything, or raises a ResourceError that names the target."""

    def __init__(self, descriptor: int, target: Path) -> None:
        super().__init__(descriptor, "wb")
        self._target = target

    def write(self, data: Any, /) -> int:
        with disk.naming(self._target):
            return disk.write_all(self.fileno(), data)


def _sealed(data: bytes, checksum: int) -> tuple[bytes, int]:
    """Returns the line of a record and the checksum up to it, from the record's JSON and the checksum before it."""
    checksum = zlib.crc32(data, checksum)
    comma = b"" if data == b"{}" else b","
    return b'%s%s"bytes":%d,"crc32":"%08x"}\n' % (data[:-1], comma, len(data), checksum), checksum


def _parse(line: bytes, place: str) -> dict[str, JsonValue]:
    record = loads(line, place, limit_bytes=LIMITS.journal_line_bytes, error=RunFolderError)
    if not isinstance(record, dict):
        raise RunFolderError(f"{place}: holds no JSON object, so hf-merge did not write it.")
    return {key: value for key, value in record.items() if key not in _RESERVED}
