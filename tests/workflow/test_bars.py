"""Bars for waiting: on a terminal only, and wiped at their end."""

import io
from contextlib import redirect_stderr

import pytest

from hf_merge.workflow.bars import on_terminal, waiting
from tests.workflow.test_progress import Terminal


def test_a_bar_is_wiped_from_the_terminal_and_none_is_shown_unasked() -> None:
    with Terminal(100) as terminal:
        with redirect_stderr(terminal.stream), waiting(True, "task vectors", 10, "parameter") as bar:
            bar.update(10)
        assert terminal.shown()[0].startswith("task vectors")
        with redirect_stderr(terminal.stream), waiting(False, "task vectors", 10, "parameter") as bar:
            bar.update(10)
        print("end", file=terminal.stream)
        assert terminal.shown() == ["end"]


@pytest.mark.parametrize("shown", [False, True])
def test_a_log_gets_no_bar(shown: bool) -> None:
    with redirect_stderr(io.StringIO()) as log, waiting(shown, "task vectors", 10, "parameter") as bar:
        assert not on_terminal()
        bar.update(10)
    assert log.getvalue() == ""


def test_a_terminal_without_a_width_gets_none() -> None:
    with Terminal(0) as terminal, redirect_stderr(terminal.stream):
        assert not on_terminal()
