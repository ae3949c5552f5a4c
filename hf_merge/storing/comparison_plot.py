"""A comparison as a picture: what every way to serve the tasks keeps of the fine-tunes' performance, at what storage.

All names stand in one column beside the axes, by falling performance, each joined to its place by a line: static
merges all cost the same, and names at their places would lie on each other.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

from hf_merge.storing.canvas import FAINT, INK, PAPER, SMALL, TEXT, new_figure, png
from hf_merge.storing.plots import spread


if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Kind: TypeAlias = Literal["reference", "static", "peer", "searched"]

# Of each kind the colour, the marker, and what the legend calls it; told apart without colours too.
_LOOKS: Mapping[Kind, tuple[str, str, str]] = {
    "searched": ("#1d4ed8", "o", "found by a search"),
    "static": ("#b4490a", "s", "static merge, one model"),
    "peer": ("#7c3aed", "^", "dynamic peer"),
    "reference": ("#047857", "D", "not merged"),
}
# All in points, 1/72 inch.
_WIDTH, _HEIGHT, _LEFT, _BELOW, _ABOVE = 360.0, 320.0, 52.0, 74.0, 26.0
_FAN, _NAMES, _PITCH = 26.0, 240.0, 12.5


@dataclass(frozen=True)
class Mark:
    """One way to serve all tasks.

    Attributes:
        name: How it is called.
        kind: What it is.
        cost: C.
        share: The mean over tasks of the score over the fine-tune's own; 1 keeps all of it.
        cost_deviation, share_deviation: The standard deviations over runs; None for fewer than two.
    """

    name: str
    kind: Kind
    cost: float
    share: float
    cost_deviation: float | None = None
    share_deviation: float | None = None


def plot_comparison(marks: Sequence[Mark]) -> bytes:
    """Returns the picture as PNG bytes."""
    return png(draw_comparison(marks))


def draw_comparison(marks: Sequence[Mark]) -> "Figure":
    """Returns the picture as a figure of matplotlib; no name lies on another, however many there are.

    Args:
        marks: What to draw, at least one.
    """
    height = max(_HEIGHT, _PITCH * len(marks))
    whole = (_LEFT + _WIDTH + _FAN + _NAMES, _BELOW + height + _ABOVE)
    figure = new_figure(*whole)
    box = (_LEFT / whole[0], _BELOW / whole[1], _WIDTH / whole[0], height / whole[1])
    axes = figure.add_axes(box, facecolor=PAPER)
    _set_limits(axes, marks)
    for kind in _LOOKS:
        _draw(axes, kind, [mark for mark in marks if mark.kind == kind])
    _label(axes, marks, height)
    axes.set_xlabel("storage cost C  (1 = one full-precision base model)", color=INK, fontsize=TEXT)
    axes.set_ylabel("% of the fine-tunes' own performance, test rows", color=INK, fontsize=TEXT)
    figure.legend(
        loc="lower center", bbox_to_anchor=(0.5, 0.01), ncols=4, frameon=False, fontsize=SMALL, labelcolor=INK
    )
    return figure


def _draw(axes: "Axes", kind: Kind, marks: Sequence[Mark]) -> None:
    """Draws the marks of a kind, with their deviations where they have any."""
    color, marker, label = _LOOKS[kind]
    across = [mark.cost_deviation or 0.0 for mark in marks]
    along = [100 * (mark.share_deviation or 0.0) for mark in marks]
    if marks:
        axes.errorbar(
            [mark.cost for mark in marks], [100 * mark.share for mark in marks],
            xerr=across if any(across) else None, yerr=along if any(along) else None,
            color=color, marker=marker, markersize=5, linestyle="none", elinewidth=1.0, capsize=2.5, label=label,
            zorder=4,
        )  # fmt: skip


def _set_limits(axes: "Axes", marks: Sequence[Mark]) -> None:
    """Sets both axes so that every mark with its deviation is inside, C on a logarithmic one."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    least, most = min(mark.cost for mark in marks), max(mark.cost for mark in marks)
    low = min(100 * (mark.share - (mark.share_deviation or 0.0)) for mark in marks)
    high = max(100 * (mark.share + (mark.share_deviation or 0.0)) for mark in marks)
    room = 0.06 * max(high - low, 2.0)
    axes.set_xscale("log")
    axes.set_xlim(least / 1.25, most * 1.25)
    axes.set_ylim(low - room, high + room)
    ticks = [2.0**power for power in range(-8, 12) if least / 1.25 <= 2.0**power <= most * 1.25]
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.tick_params(colors=INK, labelsize=SMALL)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _label(axes: "Axes", marks: Sequence[Mark], height: float) -> None:
    """Writes every name beside the axes, with its share and cost, and joins it to its place."""
    from matplotlib.lines import Line2D

    order = sorted(marks, key=lambda mark: (mark.share, -mark.cost, mark.name))
    inverse = axes.transAxes.inverted()
    places = [inverse.transform(axes.transData.transform((mark.cost, 100 * mark.share))) for mark in order]
    labels = spread([float(y) * height for _, y in places], _PITCH, 0.0, height)
    edge, foot = 1.0, 1 + (_FAN - 3) / _WIDTH
    for mark, (x, y), label in zip(order, places, labels, strict=True):
        path = [(float(x), float(y)), (edge, float(y)), (foot, label / height)]
        axes.add_line(
            Line2D(*zip(*path, strict=True), transform=axes.transAxes, color=FAINT, linewidth=0.5, clip_on=False)
        )
        axes.text(
            1 + _FAN / _WIDTH, label / height, f"{100 * mark.share:.1f}  {mark.name}, C {mark.cost:.2f}",
            transform=axes.transAxes, fontsize=SMALL, color=_LOOKS[mark.kind][0], ha="left", va="center",
        )  # fmt: skip
