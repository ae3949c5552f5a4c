"""Durable writing: whole or absent after kill -9 at every step, after every failing operation, at every torn byte."""

import errno
import json
import os
import random
import signal
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_merge.errors import LimitExceeded, ResourceError, RunFolderError
from hf_merge.storing import disk
from hf_merge.storing.durable import FolderLock, Journal, atomic_file, sweep_partials, sync_file, write_atomic


OPERATIONS = ("open_file", "write_all", "sync", "replace", "truncate", "unlink")
# The child kills itself at its n-th operation on the disk; a write is half done first, so that lines are torn too.
KILLED = """
import os, signal, sys
from pathlib import Path
from hf_merge.storing import disk
from hf_merge.storing.durable import Journal, write_atomic

folder, left = Path(sys.argv[1]), int(sys.argv[2])

def mortal(name, real):
    def operation(*arguments):
        global left
        left -= 1
        if left < 0:
            if name == "write_all":
                os.write(arguments[0], bytes(arguments[1])[: len(arguments[1]) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*arguments)
    return operation

for name in OPERATIONS:
    setattr(disk, name, mortal(name, getattr(disk, name)))
with Journal(folder / "journal.jsonl") as journal:
    for _ in range(2):
        number = len(journal.records())
        journal.append({"number": number})
        os.write(1, b"%d\\n" % number)
        write_atomic(folder / "front.json", b"%d" % number * 1000)
""".replace("OPERATIONS", repr(OPERATIONS))
APPENDING = """
import os, sys
from pathlib import Path
from hf_merge.storing.durable import Journal
with Journal(Path(sys.argv[1])) as journal:
    while True:
        number = len(journal.records())
        journal.append({"number": number, "filling": "x" * (number % 50)})
        os.write(1, b"%d\\n" % number)
"""
HOLDING = """
import os, sys, time
from pathlib import Path
from hf_merge.storing.durable import FolderLock
with FolderLock(Path(sys.argv[1])):
    if len(sys.argv) == 2:
        os.write(1, b"held\\n")
    elif os.fork() == 0:
        os.write(1, b"held\\n")  # by the child, which has then let go of what it inherited
        os.close(1)
        time.sleep(60)
        os._exit(0)
    time.sleep(60)
"""

FORKING = """
import os, sys, time
from pathlib import Path
from hf_merge.storing.durable import FolderLock
with FolderLock(Path(sys.argv[1])) as lock:
    child = os.fork()
    if child == 0:
        lock.__exit__(None, None, None)
        os._exit(0)
    os.waitpid(child, 0)
    os.write(1, b"child left\\n")
    time.sleep(60)
"""


def numbers(journal: Journal) -> list[Any]:
    return [record["number"] for record in journal.records()]


def line_of(record: dict[str, Any], checksum: int) -> tuple[bytes, int]:
    data = json.dumps(record, separators=(",", ":")).encode()
    checksum = zlib.crc32(data, checksum)
    sealed = record | {"bytes": len(data), "crc32": f"{checksum:08x}"}
    return json.dumps(sealed, separators=(",", ":")).encode() + b"\n", checksum


@pytest.fixture
def journal_path(tmp_path: Path) -> Path:
    path = tmp_path / "journal.jsonl"
    with Journal(path) as journal:
        for number in range(4):
            journal.append({"number": number, "text": "ä\n"})
    return path


class TestWriteAtomic:
    def test_content_arrives_and_nothing_is_left_beside_it(self, tmp_path: Path) -> None:
        for data in (b"", b"old", b"new" * 100_000):
            write_atomic(tmp_path / "a", data)
            assert (tmp_path / "a").read_bytes() == data
        assert [path.name for path in tmp_path.iterdir()] == ["a"]

    def test_rights_are_those_of_an_ordinary_file(self, tmp_path: Path) -> None:
        write_atomic(tmp_path / "a", b"x")
        (tmp_path / "b").write_bytes(b"x")
        assert (tmp_path / "a").stat().st_mode == (tmp_path / "b").stat().st_mode

    def test_the_longest_name_a_folder_takes_can_be_written(self, tmp_path: Path) -> None:
        write_atomic(tmp_path / ("n" * 255), b"x")

    def test_an_error_inside_the_block_leaves_the_old_file(self, tmp_path: Path) -> None:
        write_atomic(tmp_path / "a", b"old")
        with pytest.raises(KeyError), atomic_file(tmp_path / "a") as file:
            file.write(b"half")
            raise KeyError
        assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("a", b"old")]

    def test_a_link_is_replaced_not_followed(self, tmp_path: Path) -> None:
        (tmp_path / "target").write_bytes(b"keep")
        (tmp_path / "a").symlink_to("target")
        write_atomic(tmp_path / "a", b"new")
        assert (tmp_path / "target").read_bytes() == b"keep"

    def test_a_missing_folder_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(ResourceError, match=r"none/a: the system answers 'No such file"):
            write_atomic(tmp_path / "none" / "a", b"x")

    def test_short_writes_are_continued(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        real = os.write
        monkeypatch.setattr(os, "write", lambda descriptor, data: real(descriptor, bytes(data)[:7]))
        write_atomic(tmp_path / "a", b"0123456789" * 10)
        assert (tmp_path / "a").read_bytes() == b"0123456789" * 10


def test_a_file_that_something_else_wrote_is_synced_with_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").write_bytes(b"x")
    synced: list[str] = []
    monkeypatch.setattr(
        disk, "sync", lambda descriptor: synced.append(str(Path(f"/proc/self/fd/{descriptor}").readlink()))
    )
    sync_file(tmp_path / "a")
    assert synced == [str(tmp_path / "a"), str(tmp_path)]
    with pytest.raises(ResourceError, match="No such file"):
        sync_file(tmp_path / "none")


def test_sweeping_removes_only_our_partial_files(tmp_path: Path) -> None:
    (tmp_path / "members").mkdir()
    ours = [tmp_path / ".0123456789abcdef.part", tmp_path / "members" / ".ffffffffffffffff.part"]
    others = [tmp_path / "thesis.part", tmp_path / ".part", tmp_path / "a.0123456789abcdef.part"]
    for path in ours + others:
        path.touch()
    assert sweep_partials(tmp_path) == 2
    assert sorted(path for path in tmp_path.rglob("*") if path.is_file()) == sorted(others)


class TestFailingDisk:
    """Every operation fails once with each error: the class is right, the path is named, nothing durable is harmed."""

    @pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EROFS])
    @pytest.mark.parametrize("operation", ["open_file", "write_all", "sync", "replace", "sync_folder"])
    def test_a_whole_file_stays_old_or_becomes_new(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, operation: str, code: int
    ) -> None:
        path = tmp_path / "a"
        write_atomic(path, b"old")
        with monkeypatch.context() as patch:
            patch.setattr(disk, operation, failing(code))
            with pytest.raises(ResourceError) as caught:
                write_atomic(path, b"new")
        assert str(path) in str(caught.value)
        assert os.strerror(code) in str(caught.value)
        assert ("bytes are free" in str(caught.value)) == (code == errno.ENOSPC)
        assert path.read_bytes() == (b"new" if operation == "sync_folder" else b"old")
        assert len(list(tmp_path.iterdir())) == 1

    @pytest.mark.parametrize("operation", ["write_all", "sync"])
    @pytest.mark.parametrize("truncating_fails", [False, True])
    def test_the_journal_keeps_what_it_acknowledged(
        self, journal_path: Path, monkeypatch: pytest.MonkeyPatch, operation: str, truncating_fails: bool
    ) -> None:
        journal = Journal(journal_path)
        with monkeypatch.context() as patch:
            patch.setattr(disk, operation, failing(errno.ENOSPC, half_written=operation == "write_all"))
            if truncating_fails:
                patch.setattr(disk, "truncate", failing(errno.EIO))
            with pytest.raises(ResourceError, match="make room"):
                journal.append({"number": 4})
        with pytest.raises(ResourceError, match="closed"):
            journal.append({"number": 5})
        with Journal(journal_path) as again:
            assert numbers(again)[:4] == [0, 1, 2, 3]
            again.append({"number": 9})
        with Journal(journal_path) as again:
            assert numbers(again)[-1] == 9


def failing(code: int, *, half_written: bool = False) -> Any:
    def operation(descriptor: Any, *arguments: Any) -> None:
        if half_written:
            os.write(descriptor, bytes(arguments[0])[:9])
        raise OSError(code, os.strerror(code))

    return operation


class TestJournal:
    def test_records_come_back_in_order(self, journal_path: Path) -> None:
        with Journal(journal_path) as journal:
            assert journal.cut_bytes == 0
            assert journal.records() == tuple({"number": number, "text": "ä\n"} for number in range(4))
            journal.close()

    def test_a_line_is_a_json_object_that_ends_with_its_length_and_checksum(self, tmp_path: Path) -> None:
        records: list[dict[str, Any]] = [{"a": 1}, {}, {"b": [0.1, None], "c": {"bytes": 1, "crc32": "00000000"}}]
        with Journal(tmp_path / "j") as journal:
            for record in records:
                journal.append(record)
            assert journal.records() == tuple(records)
        checksum, expected = 0, b""
        for record in records:
            line, checksum = line_of(record, checksum)
            expected += line
        assert (tmp_path / "j").read_bytes() == expected

    def test_any_reader_of_json_lines_takes_it(self, journal_path: Path) -> None:
        read = [json.loads(line) for line in journal_path.read_text(encoding="utf-8").splitlines()]
        assert [(entry["number"], entry["text"]) for entry in read] == [(number, "ä\n") for number in range(4)]
        assert [list(entry)[-2:] for entry in read] == [["bytes", "crc32"]] * 4

    @pytest.mark.parametrize("key", ["bytes", "crc32"])
    def test_the_journals_own_keys_are_refused_in_a_record(self, journal_path: Path, key: str) -> None:
        whole = journal_path.read_bytes()
        with Journal(journal_path) as journal, pytest.raises(ValueError, match=f"'{key}' is the journal's own"):
            journal.append({"number": 4, key: 1})
        assert journal_path.read_bytes() == whole

    def test_every_cut_loses_the_torn_line_only_and_appends_again(self, journal_path: Path) -> None:
        whole = journal_path.read_bytes()
        for length in range(len(whole)):
            journal_path.write_bytes(whole[:length])
            kept = whole[:length].count(b"\n")
            with Journal(journal_path) as journal:
                assert numbers(journal) == list(range(kept))
                assert journal.cut_bytes == length - (whole[:length].rfind(b"\n") + 1)
                journal.append({"number": kept})
            with Journal(journal_path) as journal:
                assert numbers(journal) == list(range(kept + 1))
                assert journal.cut_bytes == 0

    def test_a_reader_leaves_the_journal_as_it_is_even_while_it_is_written(self, journal_path: Path) -> None:
        whole = journal_path.read_bytes()
        for length in (len(whole), len(whole) - 5):
            journal_path.write_bytes(whole[:length])
            with Journal(journal_path, read_only=True) as reader:
                assert numbers(reader) == list(range(whole[:length].count(b"\n")))
                assert reader.cut_bytes == length - (whole[:length].rfind(b"\n") + 1)
                with pytest.raises(ResourceError):
                    reader.append({"number": 9})
            assert journal_path.read_bytes() == whole[:length]
        with Journal(journal_path) as writer, Journal(journal_path, read_only=True) as reader:
            assert numbers(reader) == numbers(writer)
        with pytest.raises(ResourceError, match="No such file"):
            Journal(journal_path.with_name("other"), read_only=True)
        assert not journal_path.with_name("other").exists()

    def test_every_flipped_byte_before_the_last_line_is_reported(self, journal_path: Path) -> None:
        whole = journal_path.read_bytes()
        last = whole[:-1].rfind(b"\n") + 1
        for position in range(last):
            for mask in (0x01, 0x80):
                journal_path.write_bytes(flipped(whole, position, mask))
                line = whole[:position].count(b"\n") + 1
                with pytest.raises(RunFolderError, match=f"line {line} is damaged"):
                    Journal(journal_path)
                assert len(journal_path.read_bytes()) == len(whole)

    def test_a_flipped_byte_in_the_last_line_costs_that_line(self, journal_path: Path) -> None:
        whole = journal_path.read_bytes()
        last = whole[:-1].rfind(b"\n") + 1
        for position in range(last, len(whole)):
            journal_path.write_bytes(flipped(whole, position, 0x40))
            try:
                with Journal(journal_path) as journal:
                    assert numbers(journal) == [0, 1, 2]
            except RunFolderError:
                assert len(journal_path.read_bytes()) == len(whole)

    @pytest.mark.parametrize("order", [(0, 1, 1, 2, 3), (0, 2, 1, 3), (1, 2, 3), (0, 1, 3, 3)])
    def test_doubled_swapped_and_missing_lines_are_reported(self, journal_path: Path, order: tuple[int, ...]) -> None:
        lines = journal_path.read_bytes().splitlines(keepends=True)
        journal_path.write_bytes(b"".join(lines[index] for index in order))
        with pytest.raises(RunFolderError, match=r"delete it and all after it|choose another folder"):
            Journal(journal_path)

    def test_the_way_out_that_the_message_names_works(self, journal_path: Path) -> None:
        lines = journal_path.read_bytes().splitlines(keepends=True)
        journal_path.write_bytes(b"".join([*lines[:2], b"garbage\n", *lines[2:]]))
        with pytest.raises(RunFolderError, match=r"line 3 .* keep the 2 before"):
            Journal(journal_path)
        journal_path.write_bytes(b"".join(lines[:2]))
        with Journal(journal_path) as journal:
            assert numbers(journal) == [0, 1]

    def test_blocks_that_never_reached_the_disk_are_cut(self, journal_path: Path) -> None:
        whole = journal_path.read_bytes()
        for content, kept in ((whole + bytes(100), 4), (bytes(512), 0)):
            journal_path.write_bytes(content)
            with Journal(journal_path) as journal:
                assert numbers(journal) == list(range(kept))

    @pytest.mark.parametrize(
        "content",
        [
            b'{"a": 1}',
            b'{"a": 1}\n',
            b'{"a":1}',
            b'{"a":1}\n',
            b'{"a": 1',
            b'{"a":"{"}',
            b'{"a":1,"bytes":7,"crc32":"00000000"}',
            b'{"a":1,"bytes":7,"crc32":"00000000"}\n',
            b"[1",
            b"hello",
            b"1, 2",
            b"\n",
            b"\0hello",
            b"12 deadbeeX",
        ],
    )
    def test_a_file_of_somebody_else_is_left_alone(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "j").write_bytes(content)
        with pytest.raises(RunFolderError, match="no line of a journal"):
            Journal(tmp_path / "j")
        assert (tmp_path / "j").read_bytes() == content

    @pytest.mark.parametrize("data", [b"[1}", b"1}", b"}", b'{"a":}', b'{"a":1,"a":2}', b'{"bytes":1}'])
    def test_a_line_that_is_no_object_of_ours_is_refused_whatever_its_checksum(
        self, tmp_path: Path, data: bytes
    ) -> None:
        content = b'%s,"bytes":%d,"crc32":"%08x"}\n' % (data[:-1], len(data), zlib.crc32(data))
        (tmp_path / "j").write_bytes(content)
        with pytest.raises(RunFolderError, match=r"line 1: is no valid JSON|line 1: the key .* is given twice"):
            Journal(tmp_path / "j")
        assert (tmp_path / "j").read_bytes() == content

    @pytest.mark.parametrize("between", [b"", b" ", b"\0", b"\x0b"])
    def test_two_lines_in_one_are_no_torn_line_even_where_the_first_is_damaged(
        self, journal_path: Path, between: bytes
    ) -> None:
        lines = journal_path.read_bytes().splitlines(keepends=True)
        for first in (lines[2], flipped(lines[2], 12, 0x01)):
            content = b"".join([*lines[:2], first[:-1], between, lines[3]])
            journal_path.write_bytes(content)
            with pytest.raises(RunFolderError, match="line 3 is damaged"):
                Journal(journal_path)
            assert journal_path.read_bytes() == content

    def test_every_cut_of_a_first_line_full_of_braces_and_quotes_is_known_as_ours(self, tmp_path: Path) -> None:
        whole = line_of({"a{": '}}"\\"{', "b": [{"c": {}}, {"bytes": 1, "crc32": "00000000"}, {}], "d": "}]"}, 0)[0]
        for length in range(1, len(whole)):
            (tmp_path / "j").write_bytes(whole[:length])
            with Journal(tmp_path / "j") as journal:
                assert (journal.records(), journal.cut_bytes) == ((), length)

    def test_what_could_not_be_read_back_is_not_written(self, journal_path: Path) -> None:
        whole = journal_path.read_bytes()
        deep: list[Any] = []
        for _ in range(20):
            deep = [deep]
        with Journal(journal_path) as journal:
            with pytest.raises(ValueError, match="JSON compliant"):
                journal.append({"number": float("nan")})
            with pytest.raises(LimitExceeded):
                journal.append({"number": deep})
            assert journal_path.read_bytes() == whole
            journal.append({"number": 4})
        with Journal(journal_path) as journal:
            assert numbers(journal) == [0, 1, 2, 3, 4]

    def test_a_folder_in_its_place_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(ResourceError, match="Is a directory"):
            Journal(tmp_path)

    @settings(max_examples=25, deadline=None)
    @given(st.lists(st.dictionaries(st.text(max_size=5), st.integers() | st.text(max_size=9), max_size=3), max_size=5))
    def test_whatever_is_appended_comes_back(
        self, tmp_path_factory: pytest.TempPathFactory, records: list[dict[str, Any]]
    ) -> None:
        path = tmp_path_factory.mktemp("journal") / "j"
        records = json.loads(json.dumps(records).replace("\\ud", "\\u0"))
        with Journal(path) as journal:
            for record in records:
                journal.append(record)
            assert journal.records() == tuple(records)
        with Journal(path) as journal:
            assert journal.records() == tuple(records)


def flipped(data: bytes, position: int, mask: int) -> bytes:
    return data[:position] + bytes([data[position] ^ mask]) + data[position + 1 :]


class TestKill:
    def test_killed_at_every_step_the_journal_loses_nothing_and_the_file_is_whole(self, tmp_path: Path) -> None:
        """Each round runs on what the killed one before left, and gets one operation further."""
        kept: list[int] = []
        for steps in range(40):
            run = subprocess.run(
                [sys.executable, "-S", "-c", KILLED, str(tmp_path), str(steps)],
                capture_output=True,
                timeout=30,
                check=False,
            )
            acknowledged = [int(line) for line in run.stdout.split()]
            with Journal(tmp_path / "journal.jsonl") as journal:
                found = numbers(journal)
            assert found == list(range(len(found)))
            assert len(kept) + len(acknowledged) <= len(found) <= len(kept) + len(acknowledged) + 1
            kept = found
            if (tmp_path / "front.json").exists():
                content = (tmp_path / "front.json").read_bytes()
                assert content in {b"%d" % number * 1000 for number in found[-2:]}
            if run.returncode == 0:
                break
            assert run.returncode == -signal.SIGKILL
        else:
            pytest.fail("never reached the end")
        assert steps > 10
        assert sweep_partials(tmp_path) > 0
        assert sorted(path.name for path in tmp_path.iterdir()) == ["front.json", "journal.jsonl"]

    def test_killed_at_any_time_no_acknowledged_record_is_lost(self, tmp_path: Path) -> None:
        chance, total = random.Random(0), 0
        for _ in range(5):
            with running(APPENDING, tmp_path / "j") as process:
                assert process.stdout is not None
                first = process.stdout.readline()
                time.sleep(chance.uniform(0, 0.05))
                process.kill()
                acknowledged = [int(line) for line in (first + process.stdout.read()).splitlines() if line]
            with Journal(tmp_path / "j") as journal:
                assert numbers(journal) == list(range(len(journal.records())))
                assert total + len(acknowledged) <= len(journal.records()) <= total + len(acknowledged) + 1
                total = len(journal.records())


class running:  # noqa: N801 - reads as a verb in `with running(...)`
    def __init__(self, program: str, *arguments: object) -> None:
        command = [sys.executable, "-S", "-c", program, *map(str, arguments)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE)

    def __enter__(self) -> subprocess.Popen[bytes]:
        return self.process

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()


class TestFolderLock:
    def test_the_second_is_told_who_holds_it_and_since_when(self, tmp_path: Path) -> None:
        since = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
        with FolderLock(tmp_path, clock=lambda: since), pytest.raises(RunFolderError) as caught, FolderLock(tmp_path):
            pytest.fail("both hold it")
        assert f"process {os.getpid()} on {os.uname().nodename} since 2026-01-02 03:04:05" in str(caught.value)
        with FolderLock(tmp_path):
            pass

    def test_a_name_left_by_a_longer_one_does_not_shine_through(self, tmp_path: Path) -> None:
        (tmp_path / ".lock").write_text("x" * 500)
        with FolderLock(tmp_path):
            assert (tmp_path / ".lock").read_text().startswith(f"process {os.getpid()} ")
            assert len((tmp_path / ".lock").read_text().splitlines()) == 1

    def test_a_holder_without_a_name_is_busy_too(self, tmp_path: Path) -> None:
        with FolderLock(tmp_path):
            (tmp_path / ".lock").write_text("")
            with pytest.raises(RunFolderError, match="a process that has just started"), FolderLock(tmp_path):
                pytest.fail("both hold it")

    @pytest.mark.parametrize("with_child", [False, True])
    def test_kill_9_frees_it_at_once_even_when_a_worker_lives_on(self, tmp_path: Path, with_child: bool) -> None:
        with running(HOLDING, tmp_path, *["fork"] * with_child) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"held\n"
            with pytest.raises(RunFolderError, match=f"process {process.pid} "), FolderLock(tmp_path):
                pytest.fail("both hold it")
            children = children_of(process.pid)
            process.kill()
            process.wait()
            try:
                with FolderLock(tmp_path):
                    assert len(children) == with_child
            finally:
                for child in children:
                    os.kill(child, signal.SIGKILL)

    def test_a_forked_child_does_not_free_its_parents_lock(self, tmp_path: Path) -> None:
        with running(FORKING, tmp_path) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"child left\n"
            with pytest.raises(RunFolderError, match=f"process {process.pid} "), FolderLock(tmp_path):
                pytest.fail("both hold it")

    def test_no_descriptor_is_left_open(self, tmp_path: Path) -> None:
        before = len(list(Path("/proc/self/fd").iterdir()))
        for _ in range(3):
            with FolderLock(tmp_path), pytest.raises(RunFolderError), FolderLock(tmp_path):
                pass
        assert len(list(Path("/proc/self/fd").iterdir())) == before

    def test_file_systems_without_locks_are_refused(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("fcntl.flock", failing(errno.ENOLCK))
        with pytest.raises(ResourceError, match="choose a folder on a local disk"), FolderLock(tmp_path):
            pytest.fail("held without a lock")

    def test_a_link_in_place_of_the_lock_is_not_written_through(self, tmp_path: Path) -> None:
        (tmp_path / "precious").write_text("precious")
        (tmp_path / ".lock").symlink_to("precious")
        with pytest.raises(ResourceError), FolderLock(tmp_path):
            pytest.fail("held through a link")
        assert (tmp_path / "precious").read_text() == "precious"


def children_of(process: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Children find the package even where it is not installed."""
    root = str(Path(disk.__file__).parents[2])
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH")))))
    yield
