"""A comparison as text and as Markdown."""

from dataclasses import replace

import pytest

from hf_merge.storing.comparison_plot import Mark
from hf_merge.workflow.comparison import Comparison, Row, as_markdown, as_text, marks, searched_rows
from tests.storing import families


TIES = ["ties", "1.0000", "4.0", "0.5000", "0.4000", "80.0", "-", "2.0", "37", "0.300", "0.500"]
COMPARISON = Comparison(
    1_000_000,
    {"a": "accuracy", "b": "f1"},
    (
        Row(
            "ties",
            cost=1.0,
            validation=0.5,
            test=0.4,
            normalised=0.8,
            scores={"a": 0.3, "b": 0.5},
            seconds=2.0,
            peak_megabytes=36.6,
        ),
        Row("odd|one", note="cannot be had"),
        Row("MERGE G3", cost=0.5, test=0.6, routed=0.55, runs=2, cost_deviation=0.1, test_deviation=0.02),
    ),
)


def test_every_cell_is_told_or_said_to_be_missing() -> None:
    lines = as_text(COMPARISON).splitlines()
    assert lines[2].split() == [
        "ties",
        "1.0000",
        "4.0",
        "0.5000",
        "0.4000",
        "80.0",
        "-",
        "2.0",
        "37",
        "0.300",
        "0.500",
    ]
    assert lines[3].startswith("odd|one: cannot be had") and lines[3].split()[-10:] == ["-"] * 10
    assert "0.5000 ± 0.1000" in lines[4] and "0.6000 ± 0.0200" in lines[4]


def test_markdown_escapes_what_would_break_the_table() -> None:
    lines = as_markdown(COMPARISON).splitlines()
    assert len(lines) == 5 and r"odd\|one" in lines[3]
    assert lines[1].startswith("| --- | ---: |")


def test_what_has_to_be_known_of_a_row_stands_below_the_table() -> None:
    rows = (Row("twin", cost=1.5, remark="C counts [factors]", kind="peer"), *COMPARISON.rows)
    told = replace(COMPARISON, rows=rows)
    assert as_text(told).splitlines()[-1] == "twin: C counts [factors]."
    assert as_markdown(told).endswith("\n\ntwin\\: C counts \\[factors\\].\n")


def test_the_plot_shows_the_rows_that_have_a_place() -> None:
    rows = (
        Row("ties", cost=1.0, normalised=0.8),
        Row("odd", note="cannot be had"),
        Row("top", cost=0.5, normalised=0.9, runs=2, cost_deviation=0.1, normalised_deviation=0.2, kind="searched"),
    )
    expected = [Mark("ties", "static", 1.0, 0.8), Mark("top", "searched", 0.5, 0.9, 0.1, 0.2)]
    assert marks(replace(COMPARISON, rows=rows)) == expected


def test_points_are_chosen_by_plain_means_as_methods_are_told() -> None:
    front = families.front(4)
    # A search with a deviation weights its points' performance, here far above their plain means.
    weighted = replace(
        front, points=tuple(replace(point, performance=point.performance + 0.3) for point in front.points)
    )
    plain = sorted(sum(point.scores.values()) / len(point.scores) for point in front.points)
    for limit in (plain[0], plain[-2]):
        chosen = [searched_rows([(each, families.report(front))], limit, 2.0) for each in (front, weighted)]
        assert [row.cost for row in chosen[0]] == [row.cost for row in chosen[1]]
        assert chosen[0][1].note is not None and chosen[0][0].validation == pytest.approx(
            plain[plain.index(limit) + 1]
        )
