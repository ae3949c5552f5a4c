"""What the package says while a command runs, on stderr."""

import logging
import os

import typer


def show_messages() -> None:
    """Shows our own messages on stderr, and keeps other libraries' bars and notices away."""
    ours = logging.getLogger("hf_merge")
    ours.setLevel(logging.INFO)
    if not any(isinstance(handler, _Messages) for handler in ours.handlers):
        ours.addHandler(_Messages())
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")


class _Messages(logging.Handler):
    """Writes our messages to whatever stderr is at the moment."""

    def emit(self, record: logging.LogRecord) -> None:
        typer.echo(f"{record.levelname.capitalize()}: {record.getMessage()}", err=True)
