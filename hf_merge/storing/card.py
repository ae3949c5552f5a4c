"""What people see of a family: the Pareto plot, and the card of each member."""

from io import BytesIO
from typing import TYPE_CHECKING

from huggingface_hub import ModelCardData

from hf_merge.storing.chains import ChainMap
from hf_merge.storing.front import Front


if TYPE_CHECKING:
    from matplotlib.axes import Axes

BUDGETS = (0.25, 0.5, 1.0)
_NEAR = 0.012  # of C: labels of points closer than this would cover each other
_INK, _PAPER, _FRONT, _CONTROL, _LEVEL = "#1f2430", "#ffffff", "#2563eb", "#d97706", "#059669"


def plot_front(front: Front) -> bytes:
    """Returns the Pareto plot as PNG bytes: storage against performance, controls, budgets, the fine-tunes' level."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), dpi=120, facecolor=_PAPER, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.set_facecolor(_PAPER)
    _draw_levels(axes, front)
    costs, values = [point.cost for point in front.points], [point.performance for point in front.points]
    axes.step(costs, values, where="post", color=_FRONT, linewidth=1.2, alpha=0.5)
    axes.plot(costs, values, "o", color=_FRONT, markersize=5, label="Pareto front")
    _label_points(axes, costs, values)
    _draw_controls(axes, front)
    axes.set_xlabel("storage cost C (1.0 = one full-precision base model)", color=_INK)
    axes.set_ylabel("performance P (mean metric, validation rows)", color=_INK)
    axes.set_title(
        f"{len(front.tasks)} fine-tunes of {front.base}, {front.method['name']}, granularity {front.granularity}",
        color=_INK,
    )
    axes.legend(loc="lower right", frameon=False, fontsize=8)
    buffer = BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def member_card(chain_map: ChainMap, front: Front) -> str:
    """Returns the card of a member folder: what it is, what it scores, and how to load it."""
    data = ModelCardData(
        library_name="hf-merge",
        tags=["merge", "hf-merge"],
        base_model=chain_map.base.repo if chain_map.base.revision is not None else None,
        base_model_relation="merge" if chain_map.base.revision is not None else None,
    )
    rows = "\n".join(
        f"| {task} | {chain_map.metrics[task]} | {score:.4f} | {front.individual[task]:.4f} |"
        for task, score in chain_map.performance.items()
    )
    names = ", ".join(chain_map.tasks)
    return f"""---
{data.to_yaml()}
---

# {chain_map.id}

One configuration of a merge of {len(chain_map.tasks)} fine-tunes ({names})
of `{chain_map.base.repo}`, component by component.
It stores {len(chain_map.experts)} experts and costs C = {chain_map.cost:.4f} of one full-precision base model.

```python
from hf_merge import MergeModel

model = MergeModel.from_pretrained("path/to/this/folder")
print(model.predict(["..."]))
```

Scores on the validation rows that the search saw, with the task known, beside the fine-tune's own:

| task | metric | this configuration | fine-tune |
|---|---|---|---|
{rows}
"""


def _draw_controls(axes: "Axes", front: Front) -> None:
    """Draws both controls, each labelled on the side where there is room."""
    middle = (front.points[0].cost + front.points[-1].cost) / 2
    for name, point in front.controls.items():
        place, side = ((9, -3), "left") if point.cost < middle else ((0, -16), "right")
        position, text = (point.cost, point.performance), f"{name}, {front.codec['name']}"
        axes.plot(*position, "s", color=_CONTROL, markersize=8, fillstyle="none", markeredgewidth=1.6)
        axes.annotate(text, position, place, textcoords="offset points", fontsize=8, color=_CONTROL, ha=side)


def _draw_levels(axes: "Axes", front: Front) -> None:
    level = sum(front.individual.values()) / len(front.individual)
    axes.axhline(
        level,
        color=_LEVEL,
        linewidth=1,
        linestyle="--",
        label=f"individual fine-tunes at full precision (C above {len(front.tasks)})",
    )
    for budget in BUDGETS:
        axes.axvline(budget, color=_INK, linewidth=0.8, linestyle=":", alpha=0.5)
        axes.annotate(
            f"budget {budget:g}",
            (budget, 1.0),
            (2, -9),
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
            fontsize=7,
        )


def _label_points(axes: "Axes", costs: list[float], values: list[float]) -> None:
    """Labels points with their cost, above and below in turn; of points at nearly one cost only the best."""
    shown = [index for index, cost in enumerate(costs) if index + 1 == len(costs) or costs[index + 1] - cost >= _NEAR]
    for turn, index in enumerate(shown):
        place = (-14, 6) if turn % 2 == 0 else (4, -11)
        position = (costs[index], values[index])
        axes.annotate(f"{costs[index]:.2f}", position, place, textcoords="offset points", fontsize=7, color=_INK)
