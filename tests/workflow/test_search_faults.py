"""A search whose journal is damaged, whose folder is busy, or whose disk fails: said clearly, and nothing is lost."""

import errno
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from hf_merge.cli import app
from hf_merge.errors import ResourceError, RunFolderError
from hf_merge.recipe import Recipe
from hf_merge.storing import disk
from hf_merge.storing.durable import FolderLock, Journal
from hf_merge.storing.families import Family
from hf_merge.workflow.records import read_history
from hf_merge.workflow.run_folder import FRONT_FILE, JOURNAL_FILE, RECIPE_FILE
from hf_merge.workflow.search import search
from tests import killing
from tests.failing_disk import fail_at
from tests.tiny_runs import (
    SEARCH,
    SEARCH_MODULES,
    TinyRun,
    continue_search,
    require_beginning,
    require_same,
    write_recipe,
)


PAGE_BYTES = 4096
ADVICE = {errno.ENOSPC: "make room", errno.EDQUOT: "make room", errno.EIO: "Check the folder"}


def refuse(code: int, *words: object) -> str:
    """Returns the message of a search that ends with that exit code and one message, and no traceback."""
    found = CliRunner().invoke(app, ["search", *map(str, words)])
    assert found.exit_code == code, (found.stderr, found.exception)
    assert found.stdout == ""
    assert found.stderr.count("Error: ") == 1 and "Traceback" not in found.stderr
    return found.stderr[found.stderr.index("Error: ") :]


def copied(run: TinyRun, out: Path, journal: bytes) -> Path:
    """Returns a run folder with another journal."""
    out.mkdir()
    shutil.copy(run.folder / RECIPE_FILE, out)
    (out / JOURNAL_FILE).write_bytes(journal)
    return out


def whole_journal(run: TinyRun) -> tuple[bytes, int]:
    """Returns the journal of a finished run, and where its last line begins."""
    whole = (run.folder / JOURNAL_FILE).read_bytes()
    return whole, whole[:-1].rindex(b"\n") + 1


# The journal


def test_every_cut_of_the_last_record_leaves_the_history_before_it(
    tiny_run: TinyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk, "sync", lambda _: None)
    whole, last = whole_journal(tiny_run)
    (tmp_path / "whole").write_bytes(whole)
    with Journal(tmp_path / "whole") as journal:
        before = read_history(journal.records()[:-1], "")
    for length in range(last, len(whole)):
        (tmp_path / "cut").write_bytes(whole[:length])
        with Journal(tmp_path / "cut") as journal:
            assert read_history(journal.records(), "") == before, length
        assert (tmp_path / "cut").read_bytes() == whole[:last], length


@pytest.mark.parametrize(
    "lengths",
    [
        (40, -1),
        pytest.param((1, 250, -2), marks=pytest.mark.slow),
        pytest.param(None, marks=pytest.mark.soak),
    ],
    ids=["two", "some", "every"],
)
def test_a_search_goes_on_from_a_cut_anywhere_in_its_last_record(
    tiny_run: TinyRun, tmp_path: Path, lengths: tuple[int, ...] | None
) -> None:
    whole, last = whole_journal(tiny_run)
    for length in range(1, len(whole) - last) if lengths is None else lengths:
        torn = whole[last:][:length]
        out = copied(tiny_run, tmp_path / str(length), whole[:last] + torn)
        search(tiny_run.recipe, out, resume=True, progress=False)
        require_same(tiny_run.folder, out)


@pytest.mark.parametrize("step", [7, pytest.param(1, marks=pytest.mark.soak)])
def test_every_flipped_byte_in_the_middle_is_reported_with_file_and_line(
    tiny_run: TinyRun, tmp_path: Path, step: int
) -> None:
    whole, last = whole_journal(tiny_run)
    bits = random.Random(0)
    for position in range(0, last, step):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << bits.randrange(8)
        (tmp_path / "journal").write_bytes(damaged)
        line = whole[:position].count(b"\n") + 1
        with pytest.raises(RunFolderError, match=rf"journal: line {line} is damaged .*delete it|choose another"):
            Journal(tmp_path / "journal")
        assert (tmp_path / "journal").read_bytes() == damaged


@pytest.mark.parametrize("times", [1, pytest.param(4, marks=pytest.mark.slow)])
def test_a_search_stops_at_a_damaged_line_and_its_advice_is_a_way_out(
    tiny_run: TinyRun, tmp_path: Path, times: int
) -> None:
    whole, last = whole_journal(tiny_run)
    positions = random.Random(1)
    for number in range(times):
        position = positions.randrange(whole.index(b"\n") + 1, last)
        lines = whole[:position].count(b"\n")
        damaged = whole[:position] + bytes([whole[position] ^ 4]) + whole[position + 1 :]
        out = copied(tiny_run, tmp_path / str(number), damaged)
        message = refuse(2, tiny_run.recipe_file, "--out", out, "--resume")
        assert f"{out / JOURNAL_FILE}: line {lines + 1} is damaged" in message
        assert f"delete it and all after it to keep the {lines} before" in message
        assert (out / JOURNAL_FILE).read_bytes() == damaged
        (out / JOURNAL_FILE).write_bytes(b"".join(damaged.splitlines(keepends=True)[:lines]))
        search(tiny_run.recipe, out, resume=True, progress=False)
        require_same(tiny_run.folder, out)


# The folder that is busy


def search_and_wait(recipe: Path, out: Path, begun: Any, go_on: Any) -> None:
    """Searches, and waits in the middle: runs in a process of its own."""
    append = Journal.append

    def waiting(self: Journal, record: Any) -> None:
        append(self, record)
        if self.path.name == JOURNAL_FILE and record.get("number") == SEARCH["evaluations"] // 2:
            begun.set()
            go_on.wait(killing.PATIENCE_SECONDS)

    pytest.MonkeyPatch().setattr(Journal, "append", waiting)
    search(Recipe.load(recipe), out, progress=False)


@pytest.mark.slow
def test_a_second_search_is_told_within_a_second_who_is_at_work_and_the_first_is_not_disturbed(
    tiny_run: TinyRun, tmp_path: Path
) -> None:
    killing.preload(*SEARCH_MODULES)
    out, begun, go_on = tmp_path / "run", killing.event(), killing.event()
    with killing.running(search_and_wait, tiny_run.recipe_file, out, begun, go_on) as first:
        assert begun.wait(killing.PATIENCE_SECONDS)
        for options in ((), ("--resume",), ("--resume", "--num-processes", 2)):
            start = time.monotonic()
            message = refuse(2, tiny_run.recipe_file, "--out", out, *options)
            assert time.monotonic() - start < 1.0
            assert f"{out} is in use by process {first.pid} on {os.uname().nodename} since 2" in message
            assert "Wait until it ends, or choose another folder." in message
        go_on.set()
        first.join(killing.PATIENCE_SECONDS)
        assert first.exitcode == 0
    require_same(tiny_run.folder, out)


def test_the_command_finds_a_busy_folder_before_it_loads_anything(tiny_run: TinyRun, tmp_path: Path) -> None:
    code = (
        "import sys\nfrom hf_merge.cli import main\n"
        "try: main()\nfinally: print([name for name in ('torch', 'transformers', 'sklearn') if name in sys.modules])"
    )
    words = ["search", tiny_run.recipe_file, "--out", tmp_path, "--resume"]
    with FolderLock(tmp_path):
        found = subprocess.run([sys.executable, "-c", code, *map(str, words)], capture_output=True, text=True)
    assert found.returncode == 2
    assert f"in use by process {os.getpid()} " in found.stderr
    assert found.stdout == "[]\n"


def test_a_search_finds_a_busy_folder_before_it_opens_a_checkpoint(
    tiny_run: TinyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hf_merge.workflow.search.open_project", lambda *_, **__: pytest.fail("opened"))
    out = copied(tiny_run, tmp_path / "run", b"")
    with FolderLock(out), pytest.raises(RunFolderError, match=f"in use by process {os.getpid()} "):
        search(tiny_run.recipe, out, resume=True, progress=False)


@pytest.mark.parametrize(("seed", "said"), [(0, "already holds this run"), (7, "holds the run of another recipe")])
def test_a_run_that_began_and_ended_while_this_one_was_loading_is_left_alone(
    tiny_run: TinyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int, said: str
) -> None:
    out, files, digests = tmp_path / "run", (RECIPE_FILE, JOURNAL_FILE, FRONT_FILE), Family.digests

    def digests_while_another_searches(self: Family) -> dict[str, str]:
        out.mkdir()
        for name in files:
            shutil.copy(tiny_run.folder / name, out)
        return digests(self)

    monkeypatch.setattr(Family, "digests", digests_while_another_searches)
    document = tiny_run.document | {"search": {**SEARCH, "seed": seed}}
    with pytest.raises(RunFolderError, match=said):
        search(Recipe.parse(document, "test"), out, progress=False)
    for name in files:
        assert (out / name).read_bytes() == (tiny_run.folder / name).read_bytes()


def search_or_say_busy(recipe: Path, out: Path) -> None:
    """Runs in a process of its own, which ends with 2 where another one has the folder."""
    try:
        search(Recipe.load(recipe), out, progress=False)
    except RunFolderError:
        sys.exit(2)


@pytest.mark.slow
def test_of_searches_that_begin_together_in_a_new_folder_one_goes_through(tiny_run: TinyRun, tmp_path: Path) -> None:
    killing.preload(*SEARCH_MODULES)
    processes = [killing.start(search_or_say_busy, tiny_run.recipe_file, tmp_path / "run") for _ in range(4)]
    assert sorted(killing.end(process) for process in processes) == [0, 2, 2, 2]
    require_same(tiny_run.folder, tmp_path / "run")


# The disk that fails


FAILURES = (
    (errno.ENOSPC, "write_all"),
    (errno.EDQUOT, "write_all"),
    (errno.EIO, "sync"),
    (errno.EROFS, "open_file"),
    (errno.EACCES, "open_file"),
)
# One of each operation, at the first write and later; the slow suite has all at both.
QUICK_FAILURES = {(errno.ENOSPC, 30), (errno.EIO, 30), (errno.EROFS, 0)}


def failing(code: int, *operations: str) -> Callable[[str], None]:
    def fault(operation: str) -> None:
        if operation in operations:
            raise OSError(code, os.strerror(code))

    return fault


@pytest.mark.parametrize(
    ("code", "operation", "write"),
    [
        pytest.param(
            code,
            operation,
            write,
            id=f"{errno.errorcode[code]}-{operation}-{write}",
            marks=() if (code, write) in QUICK_FAILURES else pytest.mark.slow,
        )
        for code, operation in FAILURES
        for write in (0, 30)
    ],
)
def test_a_disk_that_fails_is_named_with_its_advice_and_the_search_goes_on_later(
    tiny_run: TinyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: int, code: int, operation: str
) -> None:
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        fail_at(patch, write, failing(code, operation))
        message = refuse(ResourceError.exit_code, tiny_run.recipe_file, "--out", out)
    assert str(out) in message and os.strerror(code) in message
    assert ADVICE.get(code, "Check the folder and its rights") in message and "run again" in message
    lines = require_beginning(tiny_run.folder, out)
    assert (lines > 0) == (write > 0)
    search(tiny_run.recipe, out, resume=True, progress=False)
    require_same(tiny_run.folder, out)


@pytest.mark.slow
def test_a_disk_that_fails_at_one_write_after_another_costs_no_record(
    tiny_run: TinyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each search goes on from what the one before left, and gets three writes further."""
    out, codes = tmp_path / "run", (errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EROFS)
    for write in count(step=3):
        code = codes[write % len(codes)]
        operations = ("open_file", "write_all", "sync", "replace", *(["truncate"] if code == errno.EIO else []))
        try:
            with monkeypatch.context() as patch:
                fail_at(patch, write, failing(code, *operations))
                continue_search(tiny_run.recipe_file, out)
            break
        except ResourceError as error:
            assert str(out) in str(error) and os.strerror(code) in str(error)
        require_beginning(tiny_run.folder, out)
    assert write > 20
    require_same(tiny_run.folder, out)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Returns a file system of sixteen pages."""
    folder = tmp_path / "disk"
    folder.mkdir()
    options = ["-t", "tmpfs", "-o", f"size={16 * PAGE_BYTES}", "tmpfs", str(folder)]
    mounted = subprocess.run(["mount", *options], capture_output=True, text=True) if shutil.which("mount") else None
    if mounted is None or mounted.returncode:
        pytest.skip("a disk that is really full or read-only needs the right to mount one")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("free_pages", [0, 4, *(pytest.param(pages, marks=pytest.mark.slow) for pages in (2, 5))])
def test_a_disk_that_is_really_full_is_said_and_the_search_goes_on_when_there_is_room(
    tiny_run: TinyRun, small_disk: Path, free_pages: int
) -> None:
    out, filling = small_disk / "run", small_disk / "filling"
    out.mkdir()
    filling.write_bytes(bytes((16 - free_pages) * PAGE_BYTES))
    message = refuse(ResourceError.exit_code, tiny_run.recipe_file, "--out", out)
    assert str(out) in message and "No space left on device" in message and "make room, then run again" in message
    require_beginning(tiny_run.folder, out)
    filling.unlink()
    search(tiny_run.recipe, out, resume=True, progress=False)
    require_same(tiny_run.folder, out)


def test_a_folder_that_is_really_read_only_is_said_before_anything_is_loaded(
    tiny_run: TinyRun, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, last = whole_journal(tiny_run)
    out = copied(tiny_run, small_disk / "run", whole[:last])
    with FolderLock(out):
        pass
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with monkeypatch.context() as patch:
        patch.setattr("hf_merge.workflow.search.open_project", lambda *_, **__: pytest.fail("opened"))
        message = refuse(ResourceError.exit_code, tiny_run.recipe_file, "--out", out, "--resume")
    assert str(out) in message and "Read-only file system" in message and "Check the folder and its rights" in message
    assert "Read-only" in refuse(ResourceError.exit_code, tiny_run.recipe_file, "--out", small_disk / "new")
    subprocess.run(["mount", "-o", "remount,rw", str(small_disk)], check=True)
    search(tiny_run.recipe, out, resume=True, progress=False)
    require_same(tiny_run.folder, out)


@pytest.mark.parametrize("free_pages", [0, 1])
def test_a_full_cache_of_rows_is_said_and_not_the_file_that_is_whole(
    tiny_run: TinyRun, small_disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free_pages: int
) -> None:
    cache = small_disk / "cache"
    cache.mkdir()
    (small_disk / "filling").write_bytes(bytes((16 - free_pages) * PAGE_BYTES))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", cache)
    message = refuse(ResourceError.exit_code, tiny_run.recipe_file, "--out", tmp_path / "run")
    assert f"{cache}: the system answers" in message and "bytes are free there: make room" in message
    assert not (tmp_path / "run").exists()


def test_a_folder_that_may_not_be_read_is_said(
    tiny_run: TinyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(path: Path) -> Iterator[Path]:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    out = copied(tiny_run, tmp_path / "run", b"")
    recipe = write_recipe(tmp_path / "recipe.yaml", tiny_run.document)
    monkeypatch.setattr(Path, "iterdir", forbidden)
    assert f"{out}: the system answers 'Permission denied'" in refuse(5, recipe, "--out", out, "--resume")
