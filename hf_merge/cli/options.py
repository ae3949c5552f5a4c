"""The words that several commands share, with what `--help` says about them."""

from pathlib import Path
from typing import Annotated

import typer


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
