"""The bars of single components: as long as what is lost, each with its number, no text on another."""

from typing import Any

import pytest

from hf_merge.storing.sensitivity_plot import draw_sensitivity, plot_sensitivity
from tests.storing.test_plots import overlapping, texts


DROPS = {"mlp": {"a": 0.3, "b": 0.1}, "norm": {"a": 0.0, "b": 0.0}, "attention": {"a": -0.2, "b": 0.1}}


def test_a_bar_is_the_mean_over_tasks_and_a_mark_is_a_task() -> None:
    axes: Any = draw_sensitivity(DROPS).axes[0]
    assert [bar.get_width() for bar in axes.patches] == pytest.approx([0.2, 0.0, -0.05])
    marks = [list(line.get_xdata()) for line in axes.lines[:3]]
    assert marks == [[0.3, 0.1], [0.0, 0.0], [-0.2, 0.1]]
    assert [label.get_text() for label in axes.get_yticklabels()] == list(DROPS)
    assert {"+0.2000", "+0.0000", "-0.0500"} <= {text.get_text() for text in axes.texts}


def test_a_gain_has_another_colour_than_a_loss() -> None:
    axes: Any = draw_sensitivity(DROPS).axes[0]
    loss, _, gain = (bar.get_facecolor() for bar in axes.patches)
    assert loss != gain


@pytest.mark.parametrize("components", [1, 4, 72])
def test_no_text_lies_on_another_or_beyond_the_paper(components: int) -> None:
    figure: Any = draw_sensitivity({f"decoder.attention.{i}": {"a": i / 7, "b": -i / 90} for i in range(components)})
    assert overlapping(figure) == []
    for text, box in texts(figure):
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1, text


def test_where_nothing_is_lost_there_is_a_picture_all_the_same() -> None:
    assert plot_sensitivity({"mlp": {"a": 0.0}}) == plot_sensitivity({"mlp": {"a": 0.0}})
