"""Text from outside in Markdown: it shows as it is, wherever it stands, and begins nothing."""

import ast
import html
import re
from itertools import pairwise

import jinja2
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from hf_merge.storing import markdown
from hf_merge.storing.markdown import Markdown, code, escape, fenced, joined, link, literal, render, table


TEXTS = st.text(st.sampled_from(list("ab1 .-+=_*`~|<>[](){}!#&$@:\\/'\"^%\n\t\u2028\u202e\x07é—👀")), max_size=30)


def parser() -> MarkdownIt:
    return MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])


def normal(text: str) -> str:
    """Returns a text as it is shown: one line, nothing in it that cannot be seen."""
    return " ".join(re.sub(r"[\s\x00-\x1f\x7f-\x9f\u2028-\u202e]+", " ", text).split())


def shown(rendered: str) -> str:
    """Returns what a reader sees of HTML: without its tags."""
    return html.unescape(re.sub(r"</?(?:p|td|tr|th|h1|li|ul|em|strong|a|code)\b[^>]*>", "", rendered)).strip()


@given(TEXTS)
@example("1. list")
@example("- item")
@example("# heading")
@example("[a](javascript:b)")
@example("<img src=x onerror=y>")
@example("a | b")
@example("&lt;")
@example("_a_ __b__ snake_case_")
@example("---")
@example("+ -")
def test_escaped_text_shows_as_it_is(text: str) -> None:
    rendered = parser().render(str(escape(text)))
    assert normal(shown(rendered)) == normal(text)
    assert set(re.findall(r"<(\w+)", rendered)) <= {"p"}


@given(TEXTS)
def test_escaped_text_stays_in_its_cell(text: str) -> None:
    tokens = parser().parse(table(["one", "two"], [[text, "x"], ["y", text]]))
    rows = [index for index, token in enumerate(tokens) if token.type == "tr_open"]
    assert [token.type for token in tokens].count("table_open") == 1
    assert len(rows) == 3
    for first, last in pairwise([*rows, len(tokens)]):
        assert sum(token.type in ("td_open", "th_open") for token in tokens[first:last]) == 2
    cells = [token.content for token in tokens if token.type == "inline"]
    assert normal(shown(parser().renderInline(cells[2]))) == normal(text)


@given(TEXTS)
def test_text_in_a_template_is_escaped_by_itself(text: str) -> None:
    made = jinja2.Environment(finalize=markdown.escape).from_string("{{ value }}").render(value=text)
    assert made == escape(text)


def test_words_and_numbers_stay_readable() -> None:
    for text in ("small_talk", "c0359-2f9a1c", "all-MiniLM-L6-v2", "0.9576", "org/name", "1.5 MB", "a.b", "it's (so)"):
        assert escape(text) == text
    assert escape(12) == "12"
    assert escape("www.example.com https://example.com a@b.c") == r"www\.example.com https\://example.com a\@b.c"


def test_markdown_is_not_escaped_again() -> None:
    assert escape(escape("a*b")) == r"a\*b"
    assert joined(["a*b", Markdown("**c**")]) == r"a\*b, **c**"


@given(TEXTS)
def test_a_link_ends_where_it_ends(text: str) -> None:
    rendered = parser().render(link(text, f"https://example.org/{text}"))
    assert rendered.count("<a ") <= 1
    assert set(re.findall(r"<(\w+)", rendered)) <= {"p", "a"}
    assert all(address.startswith("https://example.org/") for address in re.findall(r'href="([^"]*)"', rendered))


@given(st.text(st.sampled_from(list("`~ab\n |")), max_size=40))
def test_code_ends_where_it_ends(text: str) -> None:
    tokens = parser().parse(fenced(text, "yaml") + "\n\nafter")
    assert [token.type for token in tokens] == ["fence", "paragraph_open", "inline", "paragraph_close"]
    assert tokens[0].content.rstrip() == text.rstrip()


@given(st.text(st.sampled_from(list("`ab \n*")), min_size=1, max_size=20))
def test_code_within_a_line_is_one_piece(text: str) -> None:
    rendered = parser().renderInline(f"x {code(text)} y")
    assert len(re.findall("<code>", rendered)) == 1
    assert rendered.startswith("x <code>") and rendered.endswith("</code> y")


def test_a_literal_is_a_string_of_python() -> None:
    for text in ('a"b', "a\\", "a\nb", "it's"):
        assert ast.literal_eval(literal(text)) == text


def test_a_value_that_a_template_lacks_is_an_error() -> None:
    with pytest.raises(jinja2.UndefinedError):
        render("loading.md.jinja")
