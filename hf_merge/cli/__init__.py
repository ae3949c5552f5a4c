"""The command line: words in, words and exit codes out. Data go to stdout, progress and messages to stderr.

Nothing heavy is imported before a command runs, so that `--help` answers at once.
"""

import sys
from types import TracebackType

import typer

from hf_merge.cli import making, using
from hf_merge.cli.commands import app


__all__ = ["app", "main", "making", "using"]


def main() -> None:
    """Runs the command line; what no one foresaw is one line as well, unless `--debug` asks for the traceback."""
    if "--debug" not in sys.argv:
        sys.excepthook = _report_bug
    typer.main.get_command(app)()  # app() itself would put typer's own hook, which prints tracebacks, in place of ours


def _report_bug(kind: type[BaseException], error: BaseException, _: TracebackType | None) -> None:
    """Prints an unforeseen error in one line; Python then exits with 1."""
    print(
        f"Error: unexpected {kind.__name__}: {error}\n"
        "This is a bug in hf-merge: please report it with the output of --debug.",
        file=sys.stderr,
    )
