"""The times of a search: kept over any number of parts, and never a reason to stop one."""

import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from hf_merge.errors import ResourceError
from hf_merge.storing import disk
from hf_merge.storing.durable import Journal
from hf_merge.storing.timings import Timing, Timings, read_timings


def timing(number: int, seconds: float | None = None) -> Timing:
    return Timing(number, 1.5 * number if seconds is None else seconds, 0.1 * number, 5, 3, 60, 40)


def write(path: Path, *timings: Timing) -> None:
    with Timings(path, 0) as opened:
        for item in timings:
            opened.append(item)


def test_what_was_kept_is_read_by_rising_number_and_the_later_line_counts(tmp_path: Path) -> None:
    path = tmp_path / "timings.jsonl"
    write(path, timing(1), timing(2), timing(2, 9.0), timing(4))
    assert read_timings(path) == (timing(1), timing(2, 9.0), timing(4))
    with Timings(path, 4) as again:
        assert again.earlier == {1: timing(1), 2: timing(2, 9.0), 4: timing(4)}
        again.append(timing(5))
    assert read_timings(path)[-1] == timing(5)


def test_a_file_that_is_missing_is_told_where_there_should_be_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "timings.jsonl"
    assert read_timings(path) == ()
    with Timings(path, 3) as timings:
        timings.append(timing(4))
    assert not path.exists() and timings.earlier == {}
    assert f"goes on without times, as {path} is missing" in caplog.text


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[12] ^= 1
    path.write_bytes(content)


def of_another_kind(path: Path) -> None:
    path.unlink()
    with Journal(path) as journal:
        journal.append({"kind": "inputs"})


def of_impossible_counts(path: Path) -> None:
    path.unlink()
    with Journal(path) as journal:
        journal.append(timing(1).record() | {"pairs_run": 6})


def of_negative_times(path: Path) -> None:
    path.unlink()
    with Journal(path) as journal:
        journal.append(timing(1, -1.0).record())


def a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("damage", [flip, of_another_kind, of_impossible_counts, of_negative_times, a_folder])
def test_a_file_that_cannot_be_used_is_told_and_left_as_it_is(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: Callable[[Path], None]
) -> None:
    path = tmp_path / "timings.jsonl"
    write(path, timing(1), timing(2))
    damage(path)
    before = path.read_bytes() if path.is_file() else None
    assert read_timings(path) == ()
    with Timings(path, 2) as timings:
        assert timings.earlier == {}
        timings.append(timing(3))
    assert (path.read_bytes() if path.is_file() else None) == before
    assert [record.levelno for record in caplog.records] == [logging.WARNING] * 2
    assert all("without times" in r.message or "No times" in r.message for r in caplog.records)
    assert caplog.text.count(str(path)) >= 2


def test_a_torn_last_line_is_cut_by_the_writer_and_left_out_by_the_reader(tmp_path: Path) -> None:
    path = tmp_path / "timings.jsonl"
    write(path, timing(1), timing(2))
    torn = path.read_bytes()[:-7]
    path.write_bytes(torn)
    assert read_timings(path) == (timing(1),)
    assert path.read_bytes() == torn
    with Timings(path, 2) as timings:
        timings.append(timing(2))
    assert read_timings(path) == (timing(1), timing(2))


def test_a_disk_that_refuses_ends_the_times_and_not_the_search(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "timings.jsonl"

    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with Timings(path, 0) as timings:
        timings.append(timing(1))
        monkeypatch.setattr(disk, "write_all", refuse)
        timings.append(timing(2))
        monkeypatch.undo()
        timings.append(timing(3))
    assert read_timings(path) == (timing(1),)
    assert caplog.text.count("goes on without times") == 1 and "No space left" in caplog.text


def test_times_are_read_while_they_are_written(tmp_path: Path) -> None:
    path = tmp_path / "timings.jsonl"
    with Timings(path, 0) as timings:
        timings.append(timing(1))
        assert read_timings(path) == (timing(1),)
        timings.append(timing(2))
    assert len(read_timings(path)) == 2


def test_a_folder_that_cannot_be_written_is_no_reason_to_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise ResourceError("no")

    monkeypatch.setattr(disk, "open_file", refuse)
    with Timings(tmp_path / "timings.jsonl", 0) as timings:
        timings.append(timing(1))
