"""The Pareto plot: opaque, the same bytes every time, and every configuration labelled, no text on another."""

from dataclasses import replace
from io import BytesIO
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from hf_merge.storing.front import Front
from hf_merge.storing.plots import draw_front, plot_front, plot_grouping, spread
from tests.storing import families


SIZES = (1, 3, 18, 60)


def texts(figure: Any) -> list[tuple[str, Any]]:
    """Returns every text that is drawn, with the box that the renderer gives it."""
    figure.draw_without_rendering()
    axes = figure.axes[0]
    found = [*figure.texts, *axes.texts, *(text for legend in figure.legends for text in legend.get_texts())]
    if axes.axison:
        found += [axes.xaxis.label, axes.yaxis.label]
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            ticks = zip(axis.get_majorticklocs(), axis.get_majorticklabels(), strict=True)
            found += [label for place, label in ticks if low <= place <= high]
    return [(text.get_text(), text.get_window_extent()) for text in found if text.get_text()]


def overlapping(figure: Any) -> list[tuple[str, str]]:
    shown = texts(figure)
    names, boxes = [text for text, _ in shown], np.array([box.extents for _, box in shown])
    left, bottom, right, top = boxes.T[:, :, None]
    across = np.minimum(right, right.T) > np.maximum(left, left.T)
    along = np.minimum(top, top.T) > np.maximum(bottom, bottom.T)
    pairs = np.argwhere(np.triu(across & along, k=1))
    return [(names[first], names[second]) for first, second in pairs]


def distinct(front: Front) -> list[str]:
    points = {point.id: point for point in (*front.points, *front.controls.values())}
    return sorted(f"{point.cost:.4f}" for point in points.values())


@pytest.mark.parametrize("measured", [False, True])
@pytest.mark.parametrize("size", SIZES)
def test_every_point_is_labelled_with_its_cost_and_no_text_lies_on_another(size: int, measured: bool) -> None:
    front = families.front(size)
    figure = draw_front(front, families.report(front) if measured else None)
    costs = sorted(text for text, _ in texts(figure) if text in distinct(front))
    assert costs == distinct(front)
    assert overlapping(figure) == []


@pytest.mark.parametrize("size", SIZES)
def test_every_text_is_on_the_paper(size: int) -> None:
    figure = draw_front(families.front(size))
    for text, box in texts(figure):
        assert box.x0 >= 0 and box.y0 >= 0, text
        assert box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1, text


@pytest.mark.parametrize("most", [0.3, 1.3, 2.1, 5.0, 16.0])
def test_budgets_are_marked_however_far_the_front_reaches(most: float) -> None:
    figure = draw_front(families.front(18, most=most))
    assert {"budget 0.25", "budget 0.5", "budget 1"} <= {text for text, _ in texts(figure)}
    assert overlapping(figure) == []
    low, high = figure.axes[0].get_xlim()
    assert low <= 0.25 and high >= 1.0


@pytest.mark.parametrize("measured", [False, True])
def test_controls_and_the_level_of_the_fine_tunes_are_drawn(measured: bool) -> None:
    front = families.front()
    report = families.report(front) if measured else None
    shown = {text for text, _ in texts(draw_front(front, report))}
    assert {"all-merged, int8 (control)", "all-separate, int8 (control)"} <= shown
    assert any(text.startswith("fine-tunes as they are, C") for text in shown)
    assert measured == any("routed" in text for text in shown)


def test_a_report_of_another_front_is_not_drawn() -> None:
    front = families.front()
    report = families.report(front)
    assert plot_front(front, replace(report, rows=report.rows[:-1])) == plot_front(front)


def test_without_routing_only_one_level_and_one_line_are_drawn() -> None:
    front = families.front()
    report = families.report(front)
    rows = [replace(row, routed=None, routed_normalised=None, routed_scores={}) for row in report.rows]
    shown = {text for text, _ in texts(draw_front(front, replace(report, rows=tuple(rows))))}
    assert "front, test rows, task known" in shown
    assert not any("routed" in text for text in shown)


def test_a_control_on_the_front_has_one_label() -> None:
    front = families.front(1)
    alone = replace(front, controls={"all-merged": front.points[0]})
    costs = [text for text, _ in texts(draw_front(alone)) if text == f"{front.points[0].cost:.4f}"]
    assert len(costs) == 1


def test_the_paper_is_opaque_and_the_bytes_are_the_same_every_time() -> None:
    front = families.front()
    first, second = plot_front(front), plot_front(front)
    assert first == second
    with Image.open(BytesIO(first)) as image:
        assert image.format == "PNG"
        assert image.convert("RGBA").getchannel("A").getextrema() == (255, 255)
        assert image.convert("RGB").getpixel((0, 0)) == (255, 255, 255)


def test_the_other_picture_is_found_here_as_well() -> None:
    front = families.front()
    assert plot_grouping(front, front.points).startswith(b"\x89PNG")


@given(st.lists(st.floats(0, 500), max_size=40).map(sorted))
def test_what_is_spread_keeps_its_order_its_distance_and_its_bounds(wanted: list[float]) -> None:
    places = spread(wanted, 10.0, 5.0, 495.0)
    assert len(places) == len(wanted)
    assert all(later - earlier >= 10.0 - 1e-6 for earlier, later in pairwise(places))
    assert all(5.0 - 1e-6 <= place <= 495.0 + 1e-6 for place in places)


def test_what_is_far_apart_stays_where_it_is() -> None:
    assert spread([20.0, 100.0, 300.0], 10.0, 0.0, 400.0) == [20.0, 100.0, 300.0]
    assert spread([100.0, 100.0], 10.0, 0.0, 400.0) == [95.0, 105.0]
