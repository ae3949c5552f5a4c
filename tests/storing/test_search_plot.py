"""The picture of a search: what is known of it and no more, the same bytes every time, no text on another."""

from dataclasses import replace
from io import BytesIO
from itertools import combinations
from typing import Any

import pytest
from PIL import Image

from hf_merge.storing.search_plot import draw_search, plot_search
from hf_merge.storing.timings import Timing
from tests.storing import families


FRONT = replace(families.front(5), history=((20, 0.5), (40, 0.6), (60, 0.7)))


def timings(count: int, *, seconds: float = 3.0, blocks: int = 0) -> list[Timing]:
    return [
        Timing(number, number * seconds, 0.7 - 0.4 / number, 4, 4 - number % 2, blocks, blocks // 4)
        for number in range(1, count + 1)
    ]


def panels(kept: list[Timing]) -> list[Any]:
    return list(draw_search(FRONT, kept).axes)


def lines(axes: Any) -> list[tuple[list[float], list[float]]]:
    return [(list(line.get_xdata()), list(line.get_ydata())) for line in axes.lines]


def test_three_panels_show_what_was_reached_how_soon_and_what_was_spared() -> None:
    kept = timings(60, blocks=8)
    reached, soon, spared = panels(kept)
    assert lines(reached) == [(list(range(1, 61)), [timing.hypervolume for timing in kept])]
    assert soon.get_xlabel() == "minutes" and lines(soon)[0][0] == pytest.approx([t.seconds / 60 for t in kept])
    (_, pairs), (_, blocks) = lines(spared)
    assert pairs[:2] == pytest.approx([25.0, 12.5]) and pairs[-1] == pytest.approx(12.5)
    assert blocks == pytest.approx([75.0] * 60)
    assert len(spared.get_legend().get_texts()) == 2


def test_without_times_the_generations_are_drawn_alone() -> None:
    (only,) = panels([])
    assert lines(only) == [([20, 40, 60], [0.5, 0.6, 0.7])]


def test_where_some_times_are_lost_the_generations_stand_in() -> None:
    reached, soon, _ = panels(timings(30))
    assert lines(reached)[0][0] == [*range(1, 31), 40, 60]
    assert len(lines(soon)[0][0]) == 30


def test_blocks_that_nobody_counted_have_no_line() -> None:
    assert len(panels(timings(9))[2].lines) == 1


@pytest.mark.parametrize(
    ("seconds", "unit"), [(1, "seconds"), (100, "seconds"), (3600, "minutes"), (90_000, "hours"), (1e6, "days")]
)
def test_times_are_in_a_unit_of_which_there_are_some(seconds: float, unit: str) -> None:
    soon = panels(timings(10, seconds=seconds / 10))[1]
    assert soon.get_xlabel() == unit
    assert soon.lines[0].get_xdata()[-1] >= 1


@pytest.mark.parametrize("count", [0, 1, 300])
def test_no_text_lies_on_another_or_beyond_the_paper(count: int) -> None:
    figure: Any = draw_search(FRONT, timings(count, blocks=12))
    figure.draw_without_rendering()
    boxes = []
    for axes in figure.axes:
        legend = axes.get_legend()
        texts = [axes.xaxis.label, axes.yaxis.label, axes._left_title, *(legend.get_texts() if legend else [])]
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            ticks = zip(axis.get_majorticklocs(), axis.get_majorticklabels(), strict=True)
            texts += [label for place, label in ticks if low <= place <= high]
        boxes += [(text.get_text(), text.get_window_extent()) for text in texts if text.get_text()]
    for text, box in boxes:
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1, text
    for (first, one), (second, other) in combinations(boxes, 2):
        assert not one.overlaps(other), (first, second)


def test_the_paper_is_opaque_and_the_bytes_are_the_same_every_time() -> None:
    first = plot_search(FRONT, timings(12))
    assert first == plot_search(FRONT, timings(12))
    with Image.open(BytesIO(first)) as image:
        assert image.format == "PNG"
        assert image.convert("RGBA").getchannel("A").getextrema() == (255, 255)
