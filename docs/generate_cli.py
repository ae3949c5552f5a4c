"""Writes docs/cli.md from the command line itself.

python docs/generate_cli.py
"""

from pathlib import Path
from typing import Any

import typer

from hf_merge.cli import app


PAGE = Path(__file__).with_name("cli.md")
HEAD = """# The command line

<!-- Written by docs/generate_cli.py from the commands themselves: change them there, then run it again. -->

{help}

Results go to stdout, progress and messages to stderr; `--json` makes the result one JSON document. On a terminal the
progress is a bar. A search whose stderr is no terminal writes a line every half a minute instead, and with `--json`
its events as lines of JSON ([format.md](format.md), section 15). The exit codes are in
[ADR 2](adr/0002-exit-codes.md): 0 is done, 2 is something that you can mend, 1 is our bug. `hf-merge --help` lists
the commands, `hf-merge COMMAND --help` says what is below, and `hf-merge --version` prints the version.
"""


def render() -> str:
    """Returns the whole page."""
    group: Any = typer.main.get_command(app)
    parts = [HEAD.format(help=group.help)]
    parts += [_section(name, command) for name, command in group.commands.items()]
    return "\n".join(parts)


def _section(name: str, command: Any) -> str:
    """Returns the part of the page on one command."""
    usage = " ".join(["hf-merge", name, *map(_usage, _arguments_first(command.params))])
    rows = [f"| `{_escaped(_name(item))}` | {_escaped(_meaning(item))} |" for item in _arguments_first(command.params)]
    table = "\n".join(["| | |", "|---|---|", *rows])
    return f"## hf-merge {name}\n\n```\n{usage}\n```\n\n{command.help}\n\n{table}\n"


def _arguments_first(parameters: list[Any]) -> list[Any]:
    return sorted(parameters, key=lambda parameter: parameter.param_type_name != "argument")


def _usage(parameter: Any) -> str:
    """Returns a parameter as the usage line shows it: in brackets where it may be left out, with dots to repeat it."""
    shown = _name(parameter) if parameter.required else f"[{_name(parameter)}]"
    return f"{shown}..." if parameter.multiple else shown


def _name(parameter: Any) -> str:
    """Returns `RECIPE` for an argument, `--resume` for a flag, `--out OUT` or `--head TASK` with a value."""
    if parameter.param_type_name == "argument":
        return str(parameter.metavar)
    option = str(parameter.opts[-1])
    return option if parameter.is_flag else f"{option} {parameter.metavar or option.strip('-').upper()}"


def _meaning(parameter: Any) -> str:
    has_default = parameter.param_type_name == "option" and not parameter.is_flag and parameter.default is not None
    return f"{parameter.help} Default: `{parameter.default}`." if has_default else str(parameter.help)


def _escaped(text: str) -> str:
    """Returns text fit for a cell of a Markdown table."""
    return text.replace("|", "\\|")


if __name__ == "__main__":
    PAGE.write_text(render(), encoding="utf-8")
