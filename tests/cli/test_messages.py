"""Messages of the package: on stderr, once each, however many commands one process runs."""

import logging

import pytest

from hf_merge.cli.messages import show_messages


def test_a_message_is_one_line_on_stderr_after_any_number_of_commands(capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):
        show_messages()
    logging.getLogger("hf_merge.storing.durable").warning("%d bytes", 3)
    logging.getLogger("hf_merge.workflow").debug("not for people")
    shown = capsys.readouterr()
    assert (shown.out, shown.err) == ("", "Warning: 3 bytes\n")
