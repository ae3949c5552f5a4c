"""What storage buys along a front, as a picture: each step between neighbours, on validation rows and on test rows."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from hf_merge.storing.canvas import FAINT, INK, PAPER, SMALL, TEXT, new_figure, png


if TYPE_CHECKING:
    from matplotlib.figure import Figure

Steps = Sequence[tuple[float, float]]
_CHOSEN, _TESTED = "#1d4ed8", "#b4490a"
# All in points, 1/72 inch.
_WIDTH, _HEIGHT, _LEFT, _RIGHT, _BELOW, _ABOVE = 420.0, 220.0, 56.0, 16.0, 66.0, 26.0


def plot_utility(validation: Steps, test: Steps) -> bytes:
    """Returns the steps as PNG bytes.

    Args:
        validation: Pairs (C halfway, P gained per unit of C) on validation rows, of all runs together.
        test: The same on test rows.
    """
    return png(draw_utility(validation, test))


def draw_utility(validation: Steps, test: Steps) -> "Figure":
    """Returns the picture as a figure of matplotlib; arguments as for `plot_utility`."""
    from matplotlib.ticker import FuncFormatter

    width, height = _LEFT + _WIDTH + _RIGHT, _BELOW + _HEIGHT + _ABOVE
    figure = new_figure(width, height)
    axes = figure.add_axes((_LEFT / width, _BELOW / height, _WIDTH / width, _HEIGHT / height), facecolor=PAPER)
    dots: dict[str, Any] = {"linestyle": "none", "markersize": 5, "clip_on": False}
    axes.plot([c for c, _ in validation], [gain for _, gain in validation], marker="o", color=_CHOSEN,
              label="validation rows (chosen by these)", **dots)  # fmt: skip
    axes.plot([c for c, _ in test], [gain for _, gain in test], marker="v", color=_TESTED, markerfacecolor=PAPER,
              label="test rows, task known", **dots)  # fmt: skip
    axes.axhline(0.0, color=INK, linewidth=0.8)
    if validation:
        # The cheapest steps are steeper by far; around 0 the scale is even, so that losses can be shown.
        axes.set_yscale("symlog", linthresh=0.1)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_xlim(left=0.0)
    axes.set_title("what storage buys: P gained per unit of C, step by step", color=INK, fontsize=TEXT, loc="left")
    axes.set_xlabel("storage cost C, halfway between two neighbours of a front", color=INK, fontsize=SMALL)
    axes.set_ylabel("P gained per unit of C", color=INK, fontsize=SMALL)
    axes.tick_params(colors=INK, labelsize=SMALL)
    axes.grid(color=FAINT, linewidth=0.4, alpha=0.5)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    figure.legend(loc="lower center", ncols=2, frameon=False, fontsize=SMALL, labelcolor=INK)
    return figure
