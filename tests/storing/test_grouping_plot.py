"""Who shares what, as a picture: every cell lettered, nothing on anything else, long rows cut into strips."""

from dataclasses import replace
from typing import Any

import pytest
from matplotlib.patches import Rectangle
from matplotlib.text import Text

from hf_merge.storing.front import Front
from hf_merge.storing.grouping_plot import draw_grouping, letter, plot_grouping
from tests.storing import families
from tests.storing.test_plots import overlapping, texts


def cells(figure: Any) -> list[Any]:
    return [patch for patch in figure.axes[0].patches if isinstance(patch, Rectangle)]


@pytest.mark.parametrize(("components", "tasks"), [(4, 8), (72, 8), (1, 1), (4, 1), (27, 40)])
def test_one_member_is_legible(components: int, tasks: int) -> None:
    front = families.front(3, tasks=tasks, components=components)
    figure = draw_grouping(front, front.points[:1])
    assert overlapping(figure) == []
    assert len(cells(figure)) == components * tasks
    shown = [text for text, _ in texts(figure)]
    assert all(shown.count(name) == 1 for name in front.components)
    assert all(box.x0 >= 0 and box.x1 <= figure.bbox.x1 and box.y0 >= 0 for _, box in texts(figure))


@pytest.mark.parametrize(("points", "components"), [(2, 4), (18, 4), (2, 72)])
def test_a_family_is_legible(points: int, components: int) -> None:
    front = families.front(points, tasks=8, components=components)
    figure = draw_grouping(front, front.points)
    assert overlapping(figure) == []
    assert {point.id for point in front.points} <= {text for text, _ in texts(figure)}


def test_of_very_many_configurations_some_are_drawn_and_the_picture_says_so() -> None:
    front = families.front(60, tasks=2, components=72)
    figure = draw_grouping(front, front.points)
    shown = [text.get_text() for text in figure.axes[0].texts]
    assert any(text.endswith("16 of 60 configurations.") for text in shown)
    assert front.points[0].id in shown and front.points[-1].id in shown
    assert max(figure.bbox.size) < 2**15  # the renderer's own limit is twice that


def test_tasks_of_one_group_share_colour_and_letter_and_a_lone_task_is_grey() -> None:
    front = families.front(1, tasks=4, components=1)
    point = replace(front.points[0], grouping=((0, 1, 0, 2),))
    figure = draw_grouping(front, [point])
    first, second, third, fourth = (patch.get_facecolor() for patch in cells(figure))
    assert first == third != second == fourth
    shown = [text.get_text() for text in figure.axes[0].findobj(Text) if len(text.get_text()) == 1]
    assert shown == ["A", "B", "A", "C"]


def test_the_bytes_are_the_same_every_time() -> None:
    front: Front = families.front()
    assert plot_grouping(front, front.points) == plot_grouping(front, front.points)


@pytest.mark.parametrize(("label", "letters"), [(0, "A"), (25, "Z"), (26, "AA"), (51, "AZ"), (52, "BA")])
def test_groups_have_letters_however_many_there_are(label: int, letters: str) -> None:
    assert letter(label) == letters
