"""The Pareto plot of a family: score against storage, every configuration with its cost, and what to hold it against.

`plot_grouping`, who shares what, is the other picture of a family.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hf_merge.storing.canvas import FAINT, INCH, INK, PAPER, SMALL, TEXT, new_figure, png
from hf_merge.storing.front import Front
from hf_merge.storing.grouping_plot import plot_grouping
from hf_merge.storing.results import Report, Scores


if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["draw_front", "plot_front", "plot_grouping", "spread"]

BUDGETS = (0.25, 0.5, 1.0)
_FRONT, _ROUTED, _CHOSEN, _CONTROL, _LEVEL = "#1d4ed8", "#7c3aed", "#93c5fd", "#b4490a", "#047857"
_MARKERS = {"all-merged": "s", "all-separate": "D"}
# All in points, 1/72 inch. The labels stand upright in a band above the axes; a fan of lines joins them to the points.
_WIDTH, _HEIGHT, _LEFT, _RIGHT, _BELOW = 560.0, 300.0, 56.0, 16.0, 96.0
_FAN, _BAND, _TITLE, _PITCH, _BUDGET_PITCH = 20.0, 36.0, 22.0, 10.5, 58.0
_LOGARITHMIC = 4.0  # a front that reaches further has its interesting part too close to the left


@dataclass(frozen=True)
class _Drawn:
    """What stands in the plot at one place per configuration: places [cost, P] by id, and how they look."""

    places: Mapping[str, tuple[float, float]]
    style: Mapping[str, Any]


def plot_front(front: Front, report: Report | None = None) -> bytes:
    """Returns the Pareto plot as PNG bytes: the front, both controls, the budgets, the fine-tunes' level.

    Args:
        front: What to draw.
        report: With it points stand where they score on test rows; the validation rows are a thin line beside them.
    """
    return png(draw_front(front, report))


def draw_front(front: Front, report: Report | None = None) -> "Figure":
    """Returns the Pareto plot as a figure; every point has its cost as a label, and no label lies on another."""
    main, *others = _drawn(front, report)
    controls = _controls(front, report)
    marked = {identifier: place for drawn in (main, *controls) for identifier, place in drawn.places.items()}
    width = max(_WIDTH, _PITCH * len(marked))
    figure = new_figure(_LEFT + width + _RIGHT, _BELOW + _HEIGHT + _FAN + _BAND + _TITLE)
    axes = _new_axes(figure, width)
    levels = _levels(front, report)
    values = [value for drawn in (main, *others, *controls) for _, value in drawn.places.values()]
    _set_limits(axes, [cost for cost, _ in marked.values()], [*values, *(value for value, _ in levels)])
    for drawn in (main, *others, *controls):
        axes.plot(*zip(*drawn.places.values(), strict=True), **drawn.style)
    for (value, label), dashes in zip(levels, ("--", ":"), strict=False):
        axes.axhline(value, color=_LEVEL, linewidth=1.0, linestyle=dashes, label=label)
    _label_costs(axes, marked, {point.id for point in front.controls.values()}, width)
    _mark_budgets(axes, width)
    axes.set_xlabel("storage cost C  (1 = one full-precision base model)", color=INK, fontsize=TEXT)
    axes.set_ylabel("P, the mean of the tasks' metrics", color=INK, fontsize=TEXT)
    title = f"{len(front.tasks)} fine-tunes, merged: score against storage, every configuration with its cost"
    axes.annotate(title, (0, 1), (0, _FAN + _BAND + 8), "axes fraction", "offset points", fontsize=TEXT, color=INK)
    figure.legend(loc="lower center", ncols=2, frameon=False, fontsize=SMALL, labelcolor=INK)
    return figure


def _drawn(front: Front, report: Report | None) -> list[_Drawn]:
    """Returns the front as it is drawn, its main marks first: on test rows where all of it was measured."""
    chosen = {point.id: (point.cost, point.performance) for point in front.points}
    line = {"linewidth": 1.0, "drawstyle": "steps-post"}
    rows = _rows(front, report)
    if rows is None:
        dots = {"color": _FRONT, "marker": "o", "markersize": 5, "label": "Pareto front (validation rows)"}
        return [_Drawn(chosen, line | dots)]
    known = {point.id: (point.cost, rows[point.id].oracle) for point in front.points}
    dots = {"color": _FRONT, "marker": "o", "markersize": 5, "linestyle": "none", "zorder": 4}
    drawn = [_Drawn(known, dots | {"label": "front, test rows, task known"})]
    routed = {point.id: (point.cost, rows[point.id].routed or 0.0) for point in front.points}
    if all(rows[point.id].routed is not None for point in front.points):
        hollow = {"color": _ROUTED, "marker": "v", "markerfacecolor": PAPER, "zorder": 3}
        drawn.append(_Drawn(routed, dots | hollow | {"label": "front, test rows, task routed"}))
    return [*drawn, _Drawn(chosen, line | {"color": _CHOSEN, "label": "front, validation rows (chosen by these)"})]


def _controls(front: Front, report: Report | None) -> list[_Drawn]:
    rows = _rows(front, report)
    look = {"color": _CONTROL, "linestyle": "none", "markersize": 8, "fillstyle": "none", "markeredgewidth": 1.6}
    return [
        _Drawn(
            {point.id: (point.cost, point.performance if rows is None else rows[point.id].oracle)},
            look
            | {"marker": _MARKERS.get(name, "p"), "label": f"{name}, {front.codec['name']} (control)", "zorder": 5},
        )
        for name, point in front.controls.items()
    ]


def _levels(front: Front, report: Report | None) -> list[tuple[float, str]]:
    """Returns what the fine-tunes score as they are, with words: one level, and under routing another."""
    rows, tasks = _rows(front, report), len(front.tasks)
    own = None if rows is None else rows.get("individual")
    if own is None:
        mean = sum(front.individual.values()) / tasks
        return [(mean, f"fine-tunes as they are, C above {front.whole_models} (validation rows)")]
    levels = [(own.oracle, f"fine-tunes as they are, C = {own.cost:.2f}, task known")]
    return levels if own.routed is None else [*levels, (own.routed, "fine-tunes as they are, task routed")]


def _rows(front: Front, report: Report | None) -> dict[str, Scores] | None:
    """Returns test scores by configuration, or None where not every point was measured."""
    rows = {} if report is None else {row.id: row for row in report.rows}
    complete = all(point.id in rows for point in (*front.points, *front.controls.values()))
    return rows if complete else None


def _set_limits(axes: "Axes", costs: Sequence[float], values: Sequence[float]) -> None:
    """Sets both axes so that everything is inside, the budgets too, with room for their names at the bottom."""
    most, low, high = max(*costs, 1.1 * BUDGETS[-1]), min(values), max(values)
    span = max(high - low, 0.02)
    axes.set_ylim(low - 0.12 * span, high + 0.06 * span)
    if most <= _LOGARITHMIC:
        axes.set_xlim(0.0, 1.04 * most)
        return
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    least = min(*costs, BUDGETS[0])
    axes.set_xscale("log")
    axes.set_xlim(0.85 * least, 1.1 * most)
    axes.xaxis.set_major_locator(
        FixedLocator([2.0**power for power in range(-4, 9) if 0.85 * least <= 2.0**power <= most])
    )
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _label_costs(axes: "Axes", marked: Mapping[str, tuple[float, float]], controls: set[str], width: float) -> None:
    """Writes the cost of every marked place into the band, spread apart, and joins each label to its place."""
    from matplotlib.lines import Line2D

    order = sorted(marked, key=lambda identifier: (marked[identifier], identifier))
    places = [_fraction(axes, *marked[identifier]) for identifier in order]
    labels = spread([x * width for x, _ in places], _PITCH, _PITCH / 2, width - _PITCH / 2)
    for identifier, (x, y), label in zip(order, places, labels, strict=True):
        color = _CONTROL if identifier in controls else INK
        foot, across = 1 + (_FAN - 2) / _HEIGHT, label / width
        path = [(x, y), (x, 1.0), (across, foot)]
        axes.add_line(
            Line2D(*zip(*path, strict=True), transform=axes.transAxes, color=FAINT, linewidth=0.5, clip_on=False)
        )
        axes.text(
            across, 1 + _FAN / _HEIGHT, f"{marked[identifier][0]:.4f}", transform=axes.transAxes, rotation=90,
            fontsize=SMALL, color=color, ha="center", va="bottom",
        )  # fmt: skip


def _mark_budgets(axes: "Axes", width: float) -> None:
    """Draws a line per budget, with its name at the bottom, to the right of it where there is room."""
    lines = [_fraction(axes, budget, 0.0)[0] for budget in BUDGETS]
    names = spread([line * width + _BUDGET_PITCH / 2 for line in lines], _BUDGET_PITCH, _BUDGET_PITCH / 2, width - 26)
    for budget, name in zip(BUDGETS, names, strict=True):
        axes.axvline(budget, color=INK, linewidth=0.8, linestyle=":", alpha=0.6)
        axes.text(
            name / width, 4 / _HEIGHT, f"budget {budget:g}", transform=axes.transAxes, fontsize=SMALL, color=INK,
            ha="center", va="bottom",
        )  # fmt: skip


def spread(wanted: Sequence[float], pitch: float, low: float, high: float) -> list[float]:
    """Returns places in [low, high], at least `pitch` apart and in the same order, as near to the wanted as can be.

    Args:
        wanted: Where they would stand, ascending.
        pitch: The least distance; all of them must fit between `low` and `high`.
        low: The least place.
        high: The greatest place.

    Source: isotonic regression of `wanted[i] - i * pitch`, by pooling adjacent violators.
    """
    pools: list[tuple[float, int]] = []
    for index, place in enumerate(wanted):
        total, count = place - index * pitch, 1
        while pools and pools[-1][0] / pools[-1][1] >= total / count:
            earlier, members = pools.pop()
            total, count = total + earlier, count + members
        pools.append((total, count))
    shifts = [total / count for total, count in pools for _ in range(count)]
    last = high - (len(wanted) - 1) * pitch
    return [min(max(shift, low), last) + index * pitch for index, shift in enumerate(shifts)]


def _fraction(axes: "Axes", cost: float, value: float) -> tuple[float, float]:
    """Returns where data stand in the axes, as fractions of their width and height."""
    x, y = axes.transAxes.inverted().transform(axes.transData.transform((cost, value)))
    return float(x), float(y)


def _new_axes(figure: "Figure", width: float) -> "Axes":
    """Returns axes of a known size, so that what stands outside them can be placed exactly."""
    whole_width, whole_height = (INCH * size for size in figure.get_size_inches())
    box = (_LEFT / whole_width, _BELOW / whole_height, width / whole_width, _HEIGHT / whole_height)
    axes = figure.add_axes(box, facecolor=PAPER)
    axes.tick_params(colors=INK, labelsize=SMALL)
    axes.tick_params(axis="x", pad=6)  # clear of the lowest number of the other axis
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    return axes
