"""What a search tells: every evaluation once, replayed ones not, and no flood where nobody watches."""

import fcntl
import io
import json
import os
import pty
import struct
import termios
from collections.abc import Iterator, Mapping
from contextlib import redirect_stderr, suppress
from pathlib import Path
from typing import Any

import pytest

from hf_merge.searching.configuration import Configuration
from hf_merge.searching.evaluation import Evaluation
from hf_merge.searching.running import Reuse
from hf_merge.searching.search import Measured
from hf_merge.storing.timings import Timings, read_timings
from hf_merge.workflow.progress import Progress, event_line, followed


POINTS = [(0.3, 0.6), (0.9, 0.8), (0.5, 0.5), (0.25, 0.4), (0.6, 0.9)]
REUSE = Reuse(pairs_asked=3, pairs_run=2, blocks_asked=12, blocks_run=9)


def measured(cost: float, performance: float) -> Measured:
    return Measured(Configuration(((0, 0),)), Evaluation({"a": performance}, cost, REUSE))


class Clock:
    """Seconds that a test says."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def run(path: Path, replayed: int = 0, upto: int = len(POINTS), listener: Any = None) -> list[Mapping[str, Any]]:
    """Returns what a search tells that takes 100 s for its references, 10 s an evaluation and 1 s a replayed one."""
    told: list[Mapping[str, Any]] = []
    clock = Clock()
    with Timings(path, replayed) as timings:
        progress = Progress(len(POINTS), replayed, timings, listener or told.append, clock)
        progress.started(["a"], 2)
        clock.now += 0 if replayed else 100
        progress.references({"a": 0.9}, {"a": 0.1})
        for number, point in enumerate(POINTS[:upto], start=1):
            clock.now += 10 if number > replayed else 1
            progress.evaluated(measured(*point), number / 10)
        if upto == len(POINTS):
            progress.finished()
    return told


def test_events_come_in_order_with_what_was_reached_so_far(tmp_path: Path) -> None:
    started, references, *evaluations, finished = run(tmp_path / "timings.jsonl")
    assert started == {"event": "started", "tasks": ["a"], "total": 5, "processes": 2}
    assert references == {"event": "references", "individual": {"a": 0.9}, "pretrained": {"a": 0.1}}
    assert [event["event"] for event in evaluations] == ["evaluation"] * 5
    assert [event["number"] for event in evaluations] == [1, 2, 3, 4, 5]
    assert [(event["cost"], event["performance"]) for event in evaluations] == POINTS
    assert [event["front"] for event in evaluations] == [1, 2, 2, 3, 3]
    assert [event["hypervolume"] for event in evaluations] == [0.1, 0.2, 0.3, 0.4, 0.5]
    assert [event["elapsed_seconds"] for event in evaluations] == [110, 120, 130, 140, 150]
    assert [event["remaining_seconds"] for event in evaluations] == [40, 30, 20, 10, 0]
    assert evaluations[0]["best"] == {"0.25": None, "0.5": 0.6, "1": 0.6}
    assert finished["best"] == {"0.25": 0.4, "0.5": 0.6, "1": 0.9}
    assert (finished["number"], finished["pairs_asked"], finished["blocks_run"]) == (5, 15, 45)


@pytest.mark.parametrize("replayed", [1, 3, 5])
def test_a_resumed_search_goes_on_counting_and_tells_no_replayed_evaluation(tmp_path: Path, replayed: int) -> None:
    path = tmp_path / "timings.jsonl"
    whole = run(tmp_path / "whole.jsonl")
    run(path, upto=replayed)
    resumed = run(path, replayed)
    assert [event["event"] for event in resumed] == [
        "started", "references", "resumed", *["evaluation"] * (5 - replayed), "finished",
    ]  # fmt: skip
    assert resumed[2]["number"] == replayed
    assert resumed[3:] == whole[2 + replayed :]  # the very times and counts of a search that nobody stopped
    assert read_timings(path) == read_timings(tmp_path / "whole.jsonl")


def test_without_times_of_earlier_parts_the_rest_is_told_all_the_same(tmp_path: Path) -> None:
    resumed = run(tmp_path / "timings.jsonl", 3)
    assert [event.get("elapsed_seconds") for event in resumed[2:]] == [0, 10, 20, 20]
    assert [event["remaining_seconds"] for event in resumed[3:5]] == [10, 0]
    assert not (tmp_path / "timings.jsonl").exists()


def test_a_line_lost_between_journal_and_times_costs_its_own_seconds_only(tmp_path: Path) -> None:
    path = tmp_path / "timings.jsonl"
    run(path, upto=2)
    resumed = run(path, 3)
    assert [event["elapsed_seconds"] for event in resumed[2:5]] == [120, 130, 140]
    assert [timing.number for timing in read_timings(path)] == [1, 2, 4, 5]


def test_an_event_is_a_line_of_json_on_stderr(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = run(tmp_path / "timings.jsonl", listener=event_line)
    shown = capsys.readouterr()
    assert told == [] and shown.out == ""
    events = [json.loads(line) for line in shown.err.splitlines()]
    assert events == run(tmp_path / "again.jsonl")


# For people


@pytest.fixture
def log() -> io.StringIO:
    """Returns what stderr is where it is no terminal; a test puts it there itself, for pytest would take it away."""
    return io.StringIO()


@pytest.fixture
def terminal() -> Iterator["Terminal"]:
    """Returns a terminal 100 columns wide, to be stderr."""
    with Terminal(100) as opened:
        yield opened


class Terminal:
    """A terminal of a width, and what was written to it."""

    def __init__(self, columns: int) -> None:
        self._master, slave = pty.openpty()
        os.set_blocking(self._master, False)
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        self.stream = os.fdopen(slave, "w", encoding="utf-8")

    def __enter__(self) -> "Terminal":
        return self

    def __exit__(self, *_: object) -> None:
        self.stream.close()
        os.close(self._master)

    def shown(self) -> list[str]:
        """Returns what stood in the line since the last call, one after the other."""
        return [text.strip() for text in self.read().split("\r") if text.strip()]

    def read(self) -> str:
        """Returns what was written since the last call."""
        self.stream.flush()
        parts = []
        with suppress(BlockingIOError):
            while part := os.read(self._master, 2**16):
                parts.append(part)
        return b"".join(parts).decode()


def search_of(count: int, progress: Progress, seconds: float, clock: Clock, done: int = 0) -> None:
    progress.started(["a", "b"], 1)
    progress.references({"a": 0.9}, {"a": 0.1})
    for number in range(1, count + 1):
        clock.now += seconds if number > done else 0
        progress.evaluated(measured(*POINTS[number % len(POINTS)]), 0.5)
    progress.finished()


def test_a_log_gets_a_line_in_half_a_minute_and_no_carriage_returns(log: io.StringIO, tmp_path: Path) -> None:
    clock = Clock()
    with redirect_stderr(log), followed(300, 0, tmp_path / "timings.jsonl", True, clock) as progress:
        search_of(300, progress, 1.0, clock)
    lines = log.getvalue().splitlines()
    assert "\r" not in log.getvalue()
    assert lines[0] == "search: 300 evaluations of 2 tasks, processes: 1"
    assert lines[1] == "search: the fine-tunes score P = 0.9000, the base P = 0.1000"
    assert len(lines) == 3 + 300 // 30
    assert lines[2] == (
        "search: 30/300 evaluations [00:30<04:30], front 3, HV 0.5000, P(0.25) 0.400 P(0.5) 0.600 P(1) 0.900"
    )
    assert lines[-1].startswith("search: 300/300 evaluations [05:00], front 3")


def test_a_short_search_still_leaves_its_beginning_and_its_end_in_a_log(log: io.StringIO, tmp_path: Path) -> None:
    with redirect_stderr(log), followed(3, 2, tmp_path / "timings.jsonl", True) as progress:
        search_of(3, progress, 0.0, Clock())
    lines = [line for line in log.getvalue().splitlines() if line.startswith("search: ")]
    assert len(lines) == 4 and lines[2].startswith("search: 2/3 evaluations") and "3/3" in lines[3]


def test_a_terminal_shows_one_bar_with_the_best_of_each_budget(terminal: Terminal, tmp_path: Path) -> None:
    with redirect_stderr(terminal.stream), followed(5, 0, tmp_path / "timings.jsonl", True) as progress:
        search_of(5, progress, 0.0, Clock())
    shown = terminal.shown()
    assert shown[0].startswith("references: 0/5") and shown[1].startswith("search: 0/5")
    assert shown[-1].startswith("search: 5/5") and "front 3, HV 0.5000, P(0.25) 0.400" in shown[-1]
    assert max(map(len, shown)) <= 100


def test_the_time_left_is_told_from_the_evaluations_that_are_really_done(terminal: Terminal, tmp_path: Path) -> None:
    with redirect_stderr(terminal.stream), followed(300, 299, tmp_path / "timings.jsonl", True) as progress:
        search_of(300, progress, 0.0, Clock(), done=299)
    resumed = next(text for text in terminal.shown() if text.startswith("search: 299/300"))
    assert "<?" in resumed  # nothing is known yet: what was replayed says nothing about the time


def test_a_bar_ends_with_the_search_that_fails(terminal: Terminal, tmp_path: Path) -> None:
    with (
        redirect_stderr(terminal.stream),
        pytest.raises(KeyboardInterrupt),
        followed(5, 0, tmp_path / "timings.jsonl", True) as progress,
    ):
        progress.started(["a"], 1)
        progress.references({"a": 0.9}, {"a": 0.1})
        raise KeyboardInterrupt
    print("after", file=terminal.stream)
    assert terminal.read().endswith("\r\nafter\r\n")


def test_a_terminal_without_a_width_gets_lines(tmp_path: Path) -> None:
    with Terminal(0) as opened:
        with redirect_stderr(opened.stream), followed(2, 0, tmp_path / "timings.jsonl", True) as progress:
            search_of(2, progress, 0.0, Clock())
        assert opened.shown()[0] == "search: 2 evaluations of 2 tasks, processes: 1"


def test_nobody_is_told_where_nobody_wants_to_know(log: io.StringIO, tmp_path: Path) -> None:
    with redirect_stderr(log), followed(5, 0, tmp_path / "timings.jsonl", False) as progress:
        search_of(5, progress, 0.0, Clock())
    assert log.getvalue() == ""
    assert len(read_timings(tmp_path / "timings.jsonl")) == 5
