"""Which tasks share experts, as a picture: a small network per component, its lines as strong as tasks are together.

Tasks stand on a circle, in the same place in every network; their names stand beside it in two columns, so that none
lies on another however many there are.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import ceil, cos, pi, sin
from typing import TYPE_CHECKING

from hf_merge.storing.canvas import FAINT, INK, SMALL, TEXT, new_figure, png
from hf_merge.storing.plots import spread


if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_BLUE = (29 / 255, 78 / 255, 216 / 255)
_SAMPLES = (0.25, 0.5, 1.0)
# All in points, 1/72 inch.
_RADIUS, _PITCH, _LETTER, _GAP, _HEADING, _FOOT = 44.0, 10.5, 5.0, 16.0, 28.0, 40.0
_SHEET, _NARROWEST, _THICKEST, _ASIDE, _BOLD, _MEAN = 760.0, 420.0, 4.0, 9.0, 6.2, 50.0


@dataclass(frozen=True)
class _Sheet:
    """How the networks lie on their sheet, in points.

    Attributes:
        radius: Of the circle on which the tasks stand.
        side: Width of a network's own half beside it, with the tasks' names.
        across: Networks side by side.
        down: Networks one above the other.
    """

    radius: float
    side: float
    across: int
    down: int

    @classmethod
    def of(cls, tasks: Sequence[str], components: Sequence[str]) -> "_Sheet":
        """Returns the sheet for these components: wide enough for all names, high enough for both columns of tasks."""
        radius = max(_RADIUS, ceil(len(tasks) / 2) * _PITCH / 2)
        names = _ASIDE + 3 + max(map(len, tasks)) * _LETTER
        title = max(map(len, components)) * _BOLD + _MEAN
        side = max(names, title / 2 - radius)
        across = min(len(components), max(1, int(_SHEET // (2 * (radius + side) + _GAP))))
        return cls(radius, side, across, ceil(len(components) / across))

    @property
    def panel(self) -> tuple[float, float]:
        return 2 * (self.radius + self.side) + _GAP, 2 * self.radius + _HEADING + _GAP

    @property
    def size(self) -> tuple[float, float]:
        return max(self.across * self.panel[0], _NARROWEST), self.down * self.panel[1] + _FOOT


def plot_associations(
    tasks: Sequence[str], weights: Mapping[str, Sequence[Sequence[float]]], configurations: int
) -> bytes:
    """Returns the networks of all components as PNG bytes.

    Args:
        tasks: The tasks' names.
        weights: By component, in which share of the configurations two tasks are in one group, [tasks, tasks].
        configurations: How many configurations the shares are of.
    """
    return png(draw_associations(tasks, weights, configurations))


def draw_associations(
    tasks: Sequence[str], weights: Mapping[str, Sequence[Sequence[float]]], configurations: int
) -> "Figure":
    """Returns the picture as a figure of matplotlib; arguments as for `plot_associations`."""
    sheet = _Sheet.of(tasks, list(weights))
    width, height = sheet.size
    figure = new_figure(width, height)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)
    for index, (component, matrix) in enumerate(weights.items()):
        down, across = divmod(index, sheet.across)
        left, top = across * sheet.panel[0], down * sheet.panel[1]
        middle = (left + sheet.panel[0] / 2, top + _HEADING + sheet.radius)
        pairs = [matrix[one][other] for one, other in combinations(range(len(tasks)), 2)]
        axes.text(left + _GAP / 2, top + 14, component, fontsize=TEXT, color=INK, weight="bold")
        mean = f"mean {sum(pairs) / len(pairs):.2f}"
        right = left + sheet.panel[0] - _GAP / 2
        axes.text(right, top + 14, mean, fontsize=SMALL, color=INK, ha="right")
        _draw_network(axes, tasks, matrix, sheet, middle)
    _draw_key(axes, configurations, height)
    return figure


def _draw_network(
    axes: "Axes",
    tasks: Sequence[str],
    matrix: Sequence[Sequence[float]],
    sheet: _Sheet,
    middle: tuple[float, float],
) -> None:
    from matplotlib.collections import LineCollection

    turn = 2 * pi / len(tasks)
    angles = [(index + 0.5) * turn for index in range(len(tasks))]  # clockwise, none of them at the very top
    places = [(middle[0] + sheet.radius * sin(a), middle[1] - sheet.radius * cos(a)) for a in angles]
    pairs = [(matrix[one][other], one, other) for one, other in combinations(range(len(tasks)), 2)]
    drawn = sorted(pair for pair in pairs if pair[0] > 0)  # the strongest last, above the others
    axes.add_collection(
        LineCollection(
            [(places[one], places[other]) for _, one, other in drawn],
            colors=[(*_BLUE, weight) for weight, _, _ in drawn],
            linewidths=[_THICKEST * weight for weight, _, _ in drawn],
            capstyle="round",
        )
    )
    _draw_names(axes, tasks, places, sheet, middle)
    axes.plot(*zip(*places, strict=True), color=INK, marker="o", markersize=4, linestyle="none", zorder=3)


def _draw_names(
    axes: "Axes",
    tasks: Sequence[str],
    places: Sequence[tuple[float, float]],
    sheet: _Sheet,
    middle: tuple[float, float],
) -> None:
    """Writes each task's name beside the circle, on the side where the task stands, and joins the two."""
    for side in (-1, 1):
        near = [index for index, (x, _) in enumerate(places) if (x < middle[0]) == (side < 0)]
        near.sort(key=lambda index: places[index][1])
        low, high = middle[1] - sheet.radius, middle[1] + sheet.radius
        lines = spread([places[index][1] for index in near], _PITCH, low, high)
        x = middle[0] + side * (sheet.radius + _ASIDE)
        for index, y in zip(near, lines, strict=True):
            path = [places[index], (x - side * 2, y)]
            axes.plot(*zip(*path, strict=True), color=FAINT, linewidth=0.5, zorder=1)
            align = "left" if side > 0 else "right"
            axes.text(x, y, tasks[index], fontsize=SMALL, color=INK, ha=align, va="center_baseline")


def _draw_key(axes: "Axes", configurations: int, height: float) -> None:
    """Draws what the lines mean, at the bottom."""
    many = "the one configuration" if configurations == 1 else f"{configurations} configurations"
    note = f"A line between two tasks: the share of {many} in which they have one expert."
    axes.text(_GAP / 2, height - 24, note, fontsize=SMALL, color=INK, va="center_baseline")
    for index, share in enumerate(_SAMPLES):
        left = _GAP / 2 + index * 70
        axes.plot(
            (left, left + 24), (height - 10, height - 10), color=(*_BLUE, share), linewidth=_THICKEST * share,
            solid_capstyle="round",
        )  # fmt: skip
        axes.text(left + 30, height - 10, f"{share:g}", fontsize=SMALL, color=INK, va="center_baseline")
