"""What every command shares: the application that it joins, how it is run, what an error and a document become."""

import json
import os
import sys
from collections.abc import Callable
from functools import wraps
from typing import Annotated, Any, ParamSpec

import typer

from hf_merge.cli.messages import show_messages
from hf_merge.errors import HfMergeError
from hf_merge.version import VERSION


app = typer.Typer(
    name="hf-merge",
    help="Merge fine-tunes of one base model component by component, and serve the result under a storage budget.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
Parameters = ParamSpec("Parameters")
_INTERRUPTED, _INTERRUPTION = 130, "Interrupted. The same command again goes on from here; a search with --resume."


def command(function: Callable[Parameters, None]) -> Callable[Parameters, None]:
    """Shows messages, and turns errors into one on stderr and an exit code; a traceback only with `--debug`."""

    @wraps(function)
    def run(*args: Parameters.args, **kwargs: Parameters.kwargs) -> None:
        show_messages()
        try:
            function(*args, **kwargs)
        except HfMergeError as error:
            _fail(error, error.exit_code, bool(kwargs.get("debug")))
        except KeyboardInterrupt as error:
            _fail(error, _INTERRUPTED, bool(kwargs.get("debug")), _INTERRUPTION)
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(0) from None

    return run


def _fail(error: BaseException, code: int, debug: bool, message: str | None = None) -> None:
    if debug:
        raise error
    typer.echo(f"Error: {message or error}", err=True)
    raise typer.Exit(code)


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        typer.echo(f"hf-merge {VERSION}")
        raise typer.Exit


def print_document(document: Any) -> None:
    """Prints text as it is, and anything else as JSON, on stdout."""
    print(document if isinstance(document, str) else json.dumps(document, indent=1, ensure_ascii=False))
    sys.stdout.flush()  # a closed pipe shows here, and not after everything, where no one could catch it
