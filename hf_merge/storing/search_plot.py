"""How a search went, as a picture: what it reached, how soon, and how much of its work was there from before."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING

from hf_merge.storing.canvas import FAINT, INK, PAPER, SMALL, TEXT, new_figure, png
from hf_merge.storing.front import Front
from hf_merge.storing.timings import Timing


if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_BLUE, _ORANGE = "#1d4ed8", "#b4490a"  # told apart by every eye, and by their dashes as well
_UNITS = {"days": 86400.0, "hours": 3600.0, "minutes": 60.0}
# All in points, 1/72 inch.
_WIDTH, _HEIGHT, _LEFT, _RIGHT, _BELOW, _ABOVE = 220.0, 170.0, 52.0, 14.0, 40.0, 24.0


@dataclass(frozen=True)
class _Line:
    """A line of a panel: its places, how it looks and goes from one to the next, and what it is called."""

    x: Sequence[float]
    y: Sequence[float]
    color: str = _BLUE
    dashes: str = "-"
    steps: str = "default"
    label: str | None = None


@dataclass(frozen=True)
class _Panel:
    """One of the small pictures: its title, the names of its axes, its lines, and where its upright axis ends."""

    title: str
    across: str
    along: str
    lines: Sequence[_Line]
    whole: float | None = None


def plot_search(front: Front, timings: Sequence[Timing]) -> bytes:
    """Returns how a search went as PNG bytes: hypervolume against evaluations and time, and the share of work reused.

    Args:
        front: What the search found.
        timings: What its evaluations took, by rising number; what they do not tell is left out.
    """
    return png(draw_search(front, timings))


def draw_search(front: Front, timings: Sequence[Timing]) -> "Figure":
    """Returns the picture as a figure of matplotlib, one panel beside the other."""
    panels = [_by_evaluations(front, timings), *([_by_time(timings), _reused(timings)] if timings else [])]
    width, height = _LEFT + _WIDTH + _RIGHT, _BELOW + _HEIGHT + _ABOVE
    figure = new_figure(len(panels) * width, height)
    for index, panel in enumerate(panels):
        left = (index * width + _LEFT) / (len(panels) * width)
        box = (left, _BELOW / height, _WIDTH / (len(panels) * width), _HEIGHT / height)
        _draw(figure.add_axes(box, facecolor=PAPER), panel)
    return figure


def _by_evaluations(front: Front, timings: Sequence[Timing]) -> _Panel:
    """Returns the hypervolume after each evaluation, or after each generation where no times were kept."""
    reached = dict(front.history) | {timing.number: timing.hypervolume for timing in timings}
    numbers = sorted(reached)
    line = _Line(numbers, [reached[number] for number in numbers], steps="steps-post")
    return _Panel("hypervolume by evaluations", "evaluations", "hypervolume", [line])


def _by_time(timings: Sequence[Timing]) -> _Panel:
    least = timings[-1].seconds / 2  # two of its unit at the least
    name, unit = next(((name, unit) for name, unit in _UNITS.items() if unit <= least), ("seconds", 1.0))
    line = _Line([t.seconds / unit for t in timings], [t.hypervolume for t in timings], steps="steps-post")
    return _Panel("hypervolume by time", name, "hypervolume", [line])


def _reused(timings: Sequence[Timing]) -> _Panel:
    """Returns the shares of work that was there from before, in percent of all work so far."""
    numbers = [timing.number for timing in timings]
    asked, run = ([getattr(t, name) for t in timings] for name in ("pairs_asked", "pairs_run"))
    lines = [_Line(numbers, _spared(asked, run), label="chains scored before")]
    asked, run = ([getattr(t, name) for t in timings] for name in ("blocks_asked", "blocks_run"))
    if any(asked):
        lines.append(_Line(numbers, _spared(asked, run), _ORANGE, "--", label="of the others, blocks kept"))
    return _Panel("work that was spared", "evaluations", "% of all so far", lines, 100.0)


def _spared(asked: Sequence[int], run: Sequence[int]) -> list[float]:
    return [
        100.0 * (1.0 - done / wanted) if wanted else 0.0
        for wanted, done in zip(accumulate(asked), accumulate(run), strict=True)
    ]


def _draw(axes: "Axes", panel: _Panel) -> None:
    from matplotlib.ticker import MaxNLocator

    for line in panel.lines:
        axes.plot(
            line.x, line.y, color=line.color, linestyle=line.dashes, linewidth=1.4, drawstyle=line.steps,
            label=line.label, marker="o" if len(line.x) == 1 else None, markersize=4,
        )  # fmt: skip
    axes.set_title(panel.title, color=INK, fontsize=TEXT, loc="left")
    axes.set_xlabel(panel.across, color=INK, fontsize=SMALL)
    axes.set_ylabel(panel.along, color=INK, fontsize=SMALL)
    axes.set_xlim(left=0)
    if panel.whole is not None:
        axes.set_ylim(0, panel.whole)
    if panel.across == "evaluations":
        axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True, steps=[1, 2, 5, 10]))
    if any(line.label for line in panel.lines):
        axes.legend(loc="upper right", frameon=False, fontsize=SMALL, labelcolor=INK)
    axes.tick_params(colors=INK, labelsize=SMALL)
    axes.grid(color=FAINT, linewidth=0.4, alpha=0.5)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
