"""What merging one component alone costs, as a picture: a bar per component, and each task's own loss on it."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from hf_merge.storing.canvas import FAINT, INK, PAPER, SMALL, TEXT, new_figure, png


if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LOSS, _GAIN = "#b4490a", "#047857"
# All in points, 1/72 inch.
_ROW, _WIDTH, _LETTER, _ABOVE, _BELOW, _RIGHT = 18.0, 380.0, 5.2, 34.0, 44.0, 60.0


def plot_sensitivity(drops: Mapping[str, Mapping[str, float]]) -> bytes:
    """Returns the bars as PNG bytes.

    Args:
        drops: By component, in the order in which they are drawn, what merging it takes from each task's score.
    """
    return png(draw_sensitivity(drops))


def draw_sensitivity(drops: Mapping[str, Mapping[str, float]]) -> "Figure":
    """Returns the picture as a figure of matplotlib; arguments as for `plot_sensitivity`."""
    left = max(map(len, drops)) * _LETTER + 14
    width, height = left + _WIDTH + _RIGHT, _ABOVE + len(drops) * _ROW + _BELOW
    figure = new_figure(width, height)
    box = (left / width, _BELOW / height, _WIDTH / width, len(drops) * _ROW / height)
    axes = figure.add_axes(box, facecolor=PAPER)
    rows = list(range(len(drops)))
    means = [sum(own.values()) / len(own) for own in drops.values()]
    axes.barh(rows, means, height=0.62, color=[_LOSS if mean > 0 else _GAIN for mean in means], alpha=0.45, zorder=2)
    for row, own in enumerate(drops.values()):
        axes.plot(
            list(own.values()), [row] * len(own), color=INK, marker="|", markersize=7, linestyle="none", zorder=3
        )
    _dress(axes, list(drops), means)
    return figure


def _dress(axes: "Axes", components: list[str], means: list[float]) -> None:
    """Writes what stands on the axes: names on the left, every bar's number on the right."""
    axes.set_ylim(len(components) - 0.5, -0.5)
    axes.set_yticks(range(len(components)), components)
    axes.axvline(0.0, color=INK, linewidth=0.8)
    for row, mean in enumerate(means):
        axes.text(
            1.02, row, f"{mean:+.4f}", transform=axes.get_yaxis_transform(), fontsize=SMALL, color=INK,
            va="center_baseline",
        )  # fmt: skip
    axes.set_title(
        "what is lost where one component is merged for all tasks, the others kept apart",
        color=INK, fontsize=TEXT, loc="left", pad=10,
    )  # fmt: skip
    axes.set_xlabel("drop of P on validation rows (bar), and of each task's score (marks)", color=INK, fontsize=SMALL)
    axes.tick_params(colors=INK, labelsize=SMALL)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color=FAINT, linewidth=0.4, alpha=0.5)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
