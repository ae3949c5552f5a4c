"""The picture of a comparison: every mark at its place, every name legible, the same bytes every time."""

from io import BytesIO
from itertools import combinations
from typing import Any

import pytest
from PIL import Image

from hf_merge.storing.comparison_plot import Mark, draw_comparison, plot_comparison


MARKS = (
    Mark("individual fine-tunes", "reference", 8.0, 1.0),
    Mark("individual fine-tunes, int8", "reference", 2.01, 0.987),
    Mark("tsv", "static", 1.0, 0.684),
    Mark("wudi", "static", 1.0, 0.678),
    Mark("EMR-Merging", "peer", 1.25, 0.93),
    Mark("MERGE G2 (beats every other method)", "searched", 0.49, 0.858, 0.05, 0.02),
)


def statics(count: int) -> list[Mark]:
    """Returns many merges that all cost and score nearly the same."""
    return [Mark(f"method_{index}", "static", 1.0, 0.5 + 0.0001 * index) for index in range(count)]


def test_every_mark_stands_at_its_cost_and_share() -> None:
    (axes,) = draw_comparison(MARKS).axes
    places = {
        (float(x), round(float(y), 6))
        for container in axes.containers
        for x, y in zip(*container.lines[0].get_data(), strict=True)  # type: ignore[attr-defined]
    }
    assert places == {(mark.cost, round(100 * mark.share, 6)) for mark in MARKS}
    assert axes.get_xscale() == "log"
    low, high = axes.get_xlim()
    assert low < 0.49 - 0.05 and high > 8.0


def test_names_stand_in_the_order_of_performance_with_share_and_cost() -> None:
    (axes,) = draw_comparison(MARKS).axes
    texts: list[Any] = sorted(axes.texts, key=lambda text: -text.get_position()[1])
    assert [text.get_text() for text in texts][:3] == [
        "100.0  individual fine-tunes, C 8.00",
        "98.7  individual fine-tunes, int8, C 2.01",
        "93.0  EMR-Merging, C 1.25",
    ]
    assert len(texts) == len(MARKS)


def test_only_what_was_repeated_has_error_bars() -> None:
    (axes,) = draw_comparison(MARKS).axes
    bars = {str(container.get_label()): len(container.lines[2]) for container in axes.containers}  # type: ignore[attr-defined]
    assert bars.pop("found by a search") == 2
    assert set(bars.values()) == {0}


@pytest.mark.parametrize("marks", [MARKS, MARKS[:1], [*MARKS, *statics(12)], statics(40)])
def test_no_text_lies_on_another_or_beyond_the_paper(marks: list[Mark]) -> None:
    figure: Any = draw_comparison(marks)
    figure.draw_without_rendering()
    (axes,) = figure.axes
    texts = [axes.xaxis.label, axes.yaxis.label, *axes.texts, *figure.legends[0].get_texts()]
    for axis in (axes.xaxis, axes.yaxis):
        low, high = sorted(axis.get_view_interval())
        ticks = zip(axis.get_majorticklocs(), axis.get_majorticklabels(), strict=True)
        texts += [label for place, label in ticks if low <= place <= high]
    boxes = [(text.get_text(), text.get_window_extent()) for text in texts if text.get_text()]
    for text, box in boxes:
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1, text
    for (first, one), (second, other) in combinations(boxes, 2):
        assert not one.overlaps(other), (first, second)


def test_the_paper_is_opaque_and_the_bytes_are_the_same_every_time() -> None:
    first = plot_comparison(MARKS)
    assert first == plot_comparison(MARKS)
    with Image.open(BytesIO(first)) as image:
        assert image.format == "PNG"
        assert image.convert("RGBA").getchannel("A").getextrema() == (255, 255)
