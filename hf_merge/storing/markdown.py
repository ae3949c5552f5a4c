"""Markdown from templates, in which no text from outside can do anything: it is escaped unless it says it need not be.

A template's values pass through `escape` by themselves. Only what this module made is `Markdown` and stays as it is.
"""

import json
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from urllib.parse import quote

import jinja2


_TEMPLATES = Path(__file__).parent / "templates"
# Whatever begins anything in CommonMark, in GitHub's tables, links and mentions, or in mathematics between dollars.
_SPECIAL = re.compile(r"[\\`*\[\]<>|~&$@:#{}!^=]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])|(?<=www)\.", re.IGNORECASE)
_LEADING = re.compile(r"^(?:[-+](?=[-+ ]|$)|\d{1,9}(?=[.)](?: |$)))")
# What cannot be seen or turns the writing direction around, as in json_fields; here it becomes a space.
_UNSEEN = re.compile("[\\s\x00-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff]+")
_BACKTICKS = re.compile(r"`+")


class Markdown(str):
    """Text that is Markdown already."""

    __slots__ = ()


def escape(value: object) -> Markdown:
    """Returns text as Markdown that shows just this text, on one line; Markdown stays as it is."""
    if isinstance(value, Markdown):
        return value
    text = _UNSEEN.sub(" ", str(value)).strip()
    escaped = _SPECIAL.sub(r"\\\g<0>", text)
    lead = _LEADING.match(escaped)
    if lead is not None:
        mark = lead.group()
        escaped = rf"{mark}\{escaped[len(mark) :]}" if mark.isdigit() else rf"\{escaped}"
    return Markdown(escaped)


def joined(values: Sequence[object], separator: str = ", ") -> Markdown:
    """Returns values one after the other, each escaped."""
    return Markdown(separator.join(escape(value) for value in values))


def link(text: object, address: str) -> Markdown:
    """Returns a link; the address is percent-encoded, so that it ends where the link ends."""
    return Markdown(f"[{escape(text)}]({quote(address, safe='/:#.-_~')})")


def table(header: Sequence[object], rows: Sequence[Sequence[object]], *, right: int = 0) -> Markdown:
    """Returns a table.

    Args:
        header: The titles.
        rows: The cells, as many per row as there are titles.
        right: How many columns, counted from the last, are aligned to the right.
    """
    marks = ["---"] * (len(header) - right) + ["---:"] * right
    lines = [[Markdown(mark) for mark in marks], *([escape(cell) for cell in row] for row in rows)]
    return Markdown("\n".join(f"| {joined(line, ' | ')} |" for line in (header, *lines)))


def fenced(text: str, language: str) -> Markdown:
    """Returns a block of code behind a fence that is longer than any run of backticks inside."""
    longest = max((len(run) for run in _BACKTICKS.findall(text)), default=0)
    fence = "`" * max(3, longest + 1)
    return Markdown(f"{fence}{language}\n{text.rstrip()}\n{fence}")


def code(text: str) -> Markdown:
    """Returns text as code within a line; a bar is escaped, which a table asks for."""
    longest = max((len(run) for run in _BACKTICKS.findall(text)), default=0)
    fence, space = "`" * (longest + 1), " " if "`" in text else ""
    line = _UNSEEN.sub(" ", text).replace("|", r"\|")
    return Markdown(f"{fence}{space}{line}{space}{fence}")


def literal(text: str) -> str:
    """Returns a text as a string of Python and of YAML, in double quotes and ASCII: nothing in it ends the string."""
    return json.dumps(text)


def render(template: str, **values: object) -> str:
    """Returns a template of `templates/` with its values filled in, each escaped unless it is Markdown.

    Raises:
        jinja2.UndefinedError: The template asks for a value that is not given.
    """
    return _environment().get_template(template).render(values)


@cache
def _environment() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        undefined=jinja2.StrictUndefined,
        finalize=escape,
        autoescape=False,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
