"""Who shares what, as a picture: a grid of tasks and components per configuration, groups by colour and letter."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from typing import TYPE_CHECKING

from hf_merge.storing.canvas import INK, PAPER, SMALL, TEXT, new_figure, png
from hf_merge.storing.front import Front, FrontPoint


if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Groups of tasks, told apart by their letters as well; dark ink is legible on all of them.
_TINTS = (
    "#a6cbef", "#ffc685", "#93d88a", "#f4a9a8", "#cdbbe8", "#e3cf9a",
    "#86d6cd", "#f5bcdc", "#cbdc78", "#b9bdf2",
)  # fmt: skip
_ALONE = "#eceef1"
# All in points, 1/72 inch.
_CELL, _ROW, _GAP, _LETTER, _HEADING = (17.0, 30.0), 13.0, 14.0, 5.2, 26.0
_STRIP_COLUMNS, _MOST_STRIPS, _SHEET, _NARROWEST = 26, 48, 620.0, 340.0


def plot_grouping(front: Front, points: Sequence[FrontPoint]) -> bytes:
    """Returns who shares what as PNG bytes: a grid of tasks and components for each point.

    Args:
        front: What the points belong to.
        points: What to draw; of very many only some, evenly chosen.
    """
    return png(draw_grouping(front, points))


def draw_grouping(front: Front, points: Sequence[FrontPoint]) -> "Figure":
    """Returns who shares what as a figure of matplotlib; long rows of components are cut into strips."""
    strips = ceil(len(front.components) / _STRIP_COLUMNS)
    shown = _evenly(points, max(1, _MOST_STRIPS // strips))
    sheet = _Sheet.of(front, strips, len(shown))
    rows = ceil(len(shown) / sheet.panels)
    height = rows * sheet.panel_height + _GAP * 2
    figure = new_figure(sheet.width, height)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.set_xlim(0, sheet.width)
    axes.set_ylim(height, 0)
    for index, point in enumerate(shown):
        down, across = divmod(index, sheet.panels)
        corner = (sheet.names + across * (sheet.panel_width + _GAP), down * sheet.panel_height + _GAP)
        _draw_panel(axes, front, point, sheet, corner, named=across == 0)
    more = "" if len(shown) == len(points) else f"  {len(shown)} of {len(points)} configurations."
    note = f"Same letter in a column: one shared expert. Grey: an expert of its own.{more}"
    axes.text(_GAP / 2, height - _GAP / 2, note, fontsize=SMALL, color=INK, va="bottom")
    return figure


@dataclass(frozen=True)
class _Sheet:
    """How the panels of a grouping lie on their sheet, in points.

    Attributes:
        names: Width of the tasks' names, on the left.
        cell: Width of a cell.
        columns: Components per strip.
        strip_heights: Height of the components' names and of the cells of one strip.
        strips: Strips per panel.
        panels: Panels side by side.
    """

    names: float
    cell: float
    columns: int
    strip_heights: tuple[float, float]
    strips: int
    panels: int

    @classmethod
    def of(cls, front: Front, strips: int, points: int) -> "_Sheet":
        """Returns the sheet for so many points of a front, each cut into so many strips."""
        columns = ceil(len(front.components) / strips)
        cell = min(max(116.0 / columns, _CELL[0]), _CELL[1])
        names = max(map(len, front.tasks)) * _LETTER + _GAP
        titles = max(map(len, front.components)) * _LETTER + 6
        panels = min(points, max(1, int((_SHEET - names) // (columns * cell + _GAP))))
        return cls(names, cell, columns, (titles, len(front.tasks) * _ROW), strips, panels)

    @property
    def panel_width(self) -> float:
        return self.columns * self.cell

    @property
    def panel_height(self) -> float:
        return _HEADING + self.strips * (sum(self.strip_heights) + 6) + _GAP

    @property
    def width(self) -> float:
        return max(self.names + self.panels * (self.panel_width + _GAP), _NARROWEST)


def _draw_panel(
    axes: "Axes", front: Front, point: FrontPoint, sheet: _Sheet, corner: tuple[float, float], *, named: bool
) -> None:
    left, top = corner
    axes.text(left, top + 9, point.id, fontsize=TEXT, color=INK, weight="bold")
    axes.text(left, top + 20, f"C = {point.cost:.4f}", fontsize=SMALL, color=INK)
    titles, cells = sheet.strip_heights
    for strip in range(sheet.strips):
        upper = top + _HEADING + strip * (titles + cells + 6) + titles
        part = slice(strip * sheet.columns, (strip + 1) * sheet.columns)
        for index, component in enumerate(front.components[part]):
            middle = left + (index + 0.5) * sheet.cell
            axes.text(middle, upper - 3, component, fontsize=SMALL, color=INK, rotation=90, ha="center", va="bottom")
            _draw_column(axes, point.grouping[part][index], sheet.cell, (left + index * sheet.cell, upper))
        for row, task in enumerate(front.tasks if named else ()):
            middle = upper + (row + 0.5) * _ROW
            axes.text(left - 4, middle, task, fontsize=SMALL, color=INK, ha="right", va="center_baseline")


def _draw_column(axes: "Axes", partition: Sequence[int], cell: float, corner: tuple[float, float]) -> None:
    from matplotlib.patches import Rectangle

    left, top = corner
    for row, label in enumerate(partition):
        shared = partition.count(label) > 1
        tint = _TINTS[label % len(_TINTS)] if shared else _ALONE
        place = (left, top + row * _ROW)
        axes.add_patch(Rectangle(place, cell, _ROW, facecolor=tint, edgecolor=PAPER, linewidth=1.0))
        axes.text(
            place[0] + cell / 2, place[1] + _ROW / 2, letter(label), fontsize=SMALL, color=INK,
            ha="center", va="center_baseline", weight="bold" if shared else "normal",
        )  # fmt: skip


def letter(label: int) -> str:
    """Returns the letters of a group: A to Z, then AA, AB and so on."""
    return (letter(label // 26 - 1) if label >= 26 else "") + chr(ord("A") + label % 26)


def _evenly(points: Sequence[FrontPoint], most: int) -> list[FrontPoint]:
    if len(points) <= most:
        return list(points)
    return [points[round(index * (len(points) - 1) / max(most - 1, 1))] for index in range(most)]
