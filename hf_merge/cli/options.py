"""The words that several commands share, with what `--help` says about them, and how a value is read."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from hf_merge.errors import InputError


Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]
Budget = Annotated[
    str | None, typer.Option("--budget", help="Storage limit: 0.5 (of one full-precision base) or 250MB.")
]
RecipePath = Annotated[Path, typer.Argument(metavar="RECIPE", help="The recipe, a YAML file.", show_default=False)]
RunPath = Annotated[Path, typer.Argument(metavar="RUN", help="The folder that a search wrote.", show_default=False)]
Repo = Annotated[
    str, typer.Argument(metavar="REPO", help="A run, family or member folder, or a Hub repo.", show_default=False)
]
Revision = Annotated[str | None, typer.Option("--revision", help="Branch, tag or commit of a Hub repo.")]


def check_revision(revision: str | None, repo: str) -> None:
    """Refuses a revision of what is a folder here.

    Raises:
        InputError: There is a revision, and `repo` is a folder, or nothing that can be opened.
    """
    from hf_merge.storing.sources import local_folder

    if revision is not None and local_folder(repo) is not None:
        raise InputError(
            f"--revision {revision} goes with a Hub repo, and {repo} is a folder here: leave --revision out, or give "
            "the repo's name."
        )


def read_settings_by_method(given: Sequence[str]) -> dict[str, dict[str, float | str]]:
    """Returns hyperparameters given as METHOD.NAME=VALUE, by method, numbers as numbers.

    Raises:
        InputError: One names no method or has no `=`, or is given twice.
    """
    found: dict[str, dict[str, float | str]] = {}
    for name, value in read_settings(given).items():
        method, mark, setting = name.partition(".")
        if not (method and mark and setting):
            raise InputError(f"--set {name}: write METHOD.NAME=VALUE, as in --set ties.density=0.2.")
        found.setdefault(method, {})[setting] = value
    return found


def read_settings(given: Sequence[str]) -> dict[str, float | str]:
    """Returns hyperparameters given as NAME=VALUE, numbers as numbers.

    Raises:
        InputError: One has no `=`, or is given twice.
    """
    found: dict[str, float | str] = {}
    for entry in given:
        name, mark, value = entry.partition("=")
        if not (name and mark):
            raise InputError(f"--set {entry}: write NAME=VALUE, as in --set density=0.2.")
        if name in found:
            raise InputError(f"--set {name} is given twice: {found[name]} and {value}. Keep one.")
        try:
            found[name] = float(value)
        except ValueError:
            found[name] = value
    return found
