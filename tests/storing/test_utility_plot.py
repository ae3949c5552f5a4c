"""The steps of a front: every one drawn where it is, gains and losses, however far apart."""

from typing import Any

import pytest

from hf_merge.storing.utility_plot import Steps, draw_utility, plot_utility
from tests.storing.test_plots import overlapping, texts


STEPS: Steps = [(0.26, 140.0), (0.4, 2.5), (0.9, 0.02)]
LOSSES: Steps = [(0.26, 90.0), (0.4, -1.5), (0.9, -0.01)]


def test_every_step_is_drawn_on_both_kinds_of_rows() -> None:
    axes: Any = draw_utility(STEPS, LOSSES).axes[0]
    drawn = [list(zip(line.get_xdata(), line.get_ydata(), strict=True)) for line in axes.lines[:2]]
    assert drawn == [STEPS, LOSSES]


@pytest.mark.parametrize(("validation", "test"), [(STEPS, LOSSES), (STEPS[:1], STEPS[:1]), ([], [])])
def test_no_text_lies_on_another_or_beyond_the_paper(validation: Steps, test: Steps) -> None:
    figure: Any = draw_utility(validation, test)
    assert overlapping(figure) == []
    for text, box in texts(figure):
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1, text


def test_the_bytes_are_the_same_every_time() -> None:
    assert plot_utility(STEPS, LOSSES) == plot_utility(STEPS, LOSSES)
