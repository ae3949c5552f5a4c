"""The tables of cards: configurations, scores per task, who shares what, sources. Numbers in, Markdown out."""

from collections.abc import Mapping, Sequence
from typing import Any

from hf_merge.merging import codecs
from hf_merge.merging.cost import bytes_of
from hf_merge.merging.grouping import Partition, groups
from hf_merge.merging.settings import described
from hf_merge.recipe import DataSpec, Recipe
from hf_merge.storing.chains import ChainMap
from hf_merge.storing.front import Front, FrontPoint, within
from hf_merge.storing.markdown import Markdown, escape, joined, link, table
from hf_merge.storing.provenance import Origin, Places, Source, hub_link, source_link
from hf_merge.storing.results import Report, Scores


BUDGETS = (0.5, 1.0)
_FEW_LABELS, _FEW_CHARACTERS = 3, 48


def all_points(front: Front) -> list[FrontPoint]:
    """Returns front and controls, each configuration once, by rising cost."""
    points = {point.id: point for point in (*front.controls.values(), *front.points)}
    return sorted(points.values(), key=lambda point: (point.cost, point.performance, point.id))


def loadable(front: Front, places: Places) -> list[FrontPoint]:
    """Returns the points that a reader of the family's card can load.

    A front that was pushed says so point by point. One that was not is taken as a whole, as far as it has places.
    """
    pushed = [point for point in front.points if point.repo is not None]
    return pushed or [point for point in front.points if point.id in places.members] or list(front.points)


def place_of(point: FrontPoint, front: Front, places: Places) -> str | None:
    """Returns the repo or folder of a configuration, or None where it cannot be had."""
    pushed = any(other.repo is not None for other in all_points(front))
    return point.repo if pushed else places.members.get(point.id)


def point_link(point: FrontPoint, front: Front, places: Places) -> Markdown:
    """Returns a configuration's id, with a link where it can be had."""
    place = place_of(point, front, places)
    if place is None:
        return escape(point.id)
    return link(point.id, place) if places.family is None else hub_link(point.id, place)


def configurations_table(
    front: Front, report: Report | None, places: Places | None, points: Sequence[FrontPoint], this: str | None = None
) -> Markdown:
    """Returns cost and performance of the fine-tunes and of some points.

    Args:
        front: What the points belong to.
        report: What they score on test rows, if that was measured.
        places: Where they can be had; without places there are no links.
        points: The rows, in this order.
        this: The one that the card is about.
    """
    controls = {point.id: name for name, point in front.controls.items()}
    rows = [_fine_tunes(front, report)]
    for point in points:
        notes = [controls[point.id]] if point.id in controls else []
        notes += ["this one"] if point.id == this else []
        name = escape(point.id) if places is None else point_link(point, front, places)
        name = Markdown(f"**{name}**") if point.id == this else name
        scores = None if report is None else report.scores(point.id)
        rows.append([name, joined(notes), *_numbers(front, report, point, scores)])
    header = ["configuration", "", "C", "MB", "P validation"]
    header += ["% of fine-tunes"] if report is None else ["P test", "% of fine-tunes", "P test, routed"]
    return table(header, rows, right=len(header) - 2)


def task_table(front: Front, report: Report, points: Sequence[tuple[str, FrontPoint]]) -> Markdown:
    """Returns the test scores of every task, the task known: the fine-tune's own and those of some titled points."""
    columns = [("fine-tune", report.scores("individual"))]
    columns += [(title, report.scores(point.id)) for title, point in points]
    rows = [
        [
            task,
            metric,
            report.test_rows[task],
            *(_score(None if scores is None else scores.oracle_scores[task]) for _, scores in columns),
            _percent(report.router_accuracy[task]),
        ]
        for task, metric in front.tasks.items()
    ]
    header = ["task", "metric", "test rows", *(title for title, _ in columns), "rightly routed, %"]
    return table(header, rows, right=len(header) - 2)


def showcase(front: Front, points: Sequence[FrontPoint]) -> list[tuple[str, FrontPoint]]:
    """Returns the points worth a column: all-merged, the best within a budget, the best; one point has one title."""
    titled = [(name, point) for name, point in front.controls.items() if name == "all-merged"]
    titled += [
        (f"best at C ≤ {budget:g}", within(points, budget))
        for budget in BUDGETS
        if min(point.cost for point in points) <= budget
    ]
    titled.append(("best", within(points, None)))
    titles: dict[str, list[str]] = {}
    for title, point in titled:
        titles.setdefault(point.id, []).append(title)
    known = {point.id: point for _, point in titled}
    return [(", ".join(names), known[identifier]) for identifier, names in titles.items()]


def member_table(chain_map: ChainMap, front: Front, report: Report | None) -> Markdown:
    """Returns one configuration's scores per task, on test rows or, where it was not measured, validation rows."""
    scores = None if report is None else report.scores(chain_map.id)
    if report is None or scores is None:
        header = ["task", "metric", "fine-tune", "this"]
        rows = [
            [task, metric, _score(front.individual.get(task)), _score(chain_map.performance[task])]
            for task, metric in chain_map.metrics.items()
        ]
        return table(header, rows, right=2)
    own = report.scores("individual")
    rows = [
        [
            task,
            metric,
            str(report.test_rows[task]),
            _score(None if own is None else own.oracle_scores[task]),
            _score(scores.oracle_scores[task]),
            _score(scores.routed_scores.get(task)),
            _percent(report.router_accuracy[task]),
        ]
        for task, metric in chain_map.metrics.items()
    ]
    header = ["task", "metric", "test rows", "fine-tune", "this, task known", "this, routed", "rightly routed, %"]
    return table(header, rows, right=5)


def labels_table(chain_map: ChainMap) -> Markdown:
    """Returns what each task answers: how many labels, and the first of them."""
    rows = []
    for task in chain_map.chains:
        head, wording = chain_map.heads.get(task), chain_map.wordings.get(task)
        if head is not None:
            labels = head.labels or ()
            kind = "a number" if head.problem_type == "regression" else f"{head.num_labels} labels"
        elif wording is not None:
            labels = wording.labels or ()
            kind = f"{len(labels)} options" if labels else f"at most {wording.max_new_tokens} tokens of its own"
        else:
            continue
        shown = [_cut(label) for label in labels[:_FEW_LABELS]]
        more = ["…"] if len(labels) > _FEW_LABELS else []
        rows.append([task, kind, joined([*shown, *more]) if shown else "not named"])
    return table(["task", "answers", "first of them"], rows)


def sharing_table(front: Front, point: FrontPoint) -> Markdown:
    """Returns who shares what: those treated alike stand in one row."""
    alike: dict[tuple[Partition, Markdown, Markdown, bool], list[str]] = {}
    for index, (component, partition) in enumerate(zip(front.components, point.grouping, strict=True)):
        method = Markdown("") if point.methods is None else settings_text(point.methods[index])
        codec = Markdown("") if point.codecs is None else settings_text(point.codecs[index])
        differs = point.codecs is not None and _stores_differences(point.codecs[index])
        alike.setdefault((partition, method, codec, differs), []).append(component)
    tasks = tuple(front.tasks)
    rows = [
        [
            joined(components),
            f"{len(groups(partition))} + 1 shared" if differs else len(groups(partition)),
            joined([_group(tasks, group) for group in groups(partition)], "; "),
            *([] if point.methods is None else [method if differs or len(groups(partition)) < len(tasks) else "-"]),
            *([] if point.codecs is None else [_stored(codec, differs)]),
        ]
        for (partition, method, codec, differs), components in alike.items()
    ]
    header = ["components", "experts", "shared by"]
    header += [] if point.methods is None else ["merged by"]
    header += [] if point.codecs is None else ["stored as"]
    return table(header, rows)


def _stores_differences(codec: Mapping[str, Any]) -> bool:
    known = codecs.available().get(str(codec["name"]))
    return known is not None and known.residual


def _stored(codec: Markdown, differs: bool) -> Markdown:
    return Markdown(f"{codec}, as differences from the shared expert") if differs else codec


def settings_text(entry: Mapping[str, Any]) -> Markdown:
    """Returns a method or codec with its settings."""
    return escape(described(entry))


def sources_table(origin: Origin, recipe: Recipe) -> Markdown:
    """Returns every source with its commit, licence and data."""
    data = {task.name: _data(task.data, origin) for task in recipe.tasks}
    rows = [_source_row("base", origin.base, Markdown(""))]
    rows += [_source_row(task, source, data.get(task, Markdown(""))) for task, source in origin.tasks.items()]
    return table(["", "checkpoint", "commit", "licence", "data"], rows)


def megabytes(cost: float, front: Front) -> str:
    """Returns the megabytes that a cost stands for."""
    return f"{bytes_of(cost, front.parameters) / 1e6:.1f}"


def _source_row(what: str, source: Source, data: Markdown) -> list[str]:
    commit = "local" if source.revision is None else source.revision[:8]
    return [what, source_link(source), commit, source.licence or "not found", data]


def _data(data: DataSpec, origin: Origin) -> Markdown:
    if data.path in origin.datasets:
        text = data.path if data.name is None else f"{data.path}, {data.name}"
        return hub_link(text, data.path, kind="datasets/")
    return escape(f"local {data.path} files" if data.data_files else data.path)


def _group(tasks: Sequence[str], group: Sequence[int]) -> Markdown:
    if len(group) == len(tasks) > 1:
        return Markdown("all")
    return joined([tasks[index] for index in group], " + ")


def _fine_tunes(front: Front, report: Report | None) -> list[object]:
    name, note = f"{len(front.tasks)} fine-tunes as they are", Markdown("full precision")
    own = sum(front.individual.values()) / len(front.individual)
    scores = None if report is None else report.scores("individual")
    if report is None or scores is None:
        cost = f"above {front.whole_models}"
        numbers = [_score(own), "100.0"] if report is None else [_score(own), "", "", ""]
        return [name, note, cost, f"above {megabytes(front.whole_models, front)}", *numbers]
    mean = [_score(scores.oracle), "100.0", _score(scores.routed)]
    return [name, note, _score(scores.cost), megabytes(scores.cost, front), _score(own), *mean]


def _numbers(front: Front, report: Report | None, point: FrontPoint, scores: Scores | None) -> list[object]:
    start: list[object] = [f"{point.cost:.4f}", megabytes(point.cost, front), _score(point.performance)]
    if report is None:
        return [*start, _percent(point.normalised)]
    if scores is None:
        return [*start, "", "", ""]
    return [*start, _score(scores.oracle), _percent(scores.oracle_normalised), _score(scores.routed)]


def _score(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}"


def _cut(label: str) -> str:
    return label if len(label) <= _FEW_CHARACTERS else f"{label[: _FEW_CHARACTERS - 1]}…"
