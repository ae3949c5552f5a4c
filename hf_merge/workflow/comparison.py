"""A comparison of merged models as data: rows, the choice of a front's points, and how both are told."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import mean, stdev
from typing import Any, TypeAlias

from hf_merge.searching.evaluation import mean_score
from hf_merge.storing.comparison_plot import Kind, Mark
from hf_merge.storing.front import Front, FrontPoint
from hf_merge.storing.markdown import escape
from hf_merge.storing.markdown import table as markdown_table
from hf_merge.storing.results import Report
from hf_merge.workflow.tables import text_table


MeasuredRun: TypeAlias = tuple[Front, Report]  # what a search found, and its test table


@dataclass(frozen=True)
class Row:
    """One way to serve all tasks, and what it scores.

    Attributes:
        name: How it is called.
        settings: The merge method's settings; empty where there are none.
        cost: C; the mean over runs where there are several.
        validation: P on validation rows.
        test: P on test rows, the task known.
        normalised: The mean over tasks of the test score over the fine-tune's own.
        routed: P on test rows, the task found by a router, a search's by its own; None where no router was asked.
        scores: The test score of every task.
        routed_scores: The same, the task found by a router.
        seconds: What it took to merge, gathering included; None for what is not merged here.
        peak_megabytes: The memory that merging took above what was held before, in 10^6 bytes; None as well where it
            cannot be measured.
        runs: How many runs it is the mean of; 0 for what is no search.
        cost_deviation, test_deviation, normalised_deviation: The standard deviations over runs; None for fewer than
            two.
        note: Why there is nothing to tell; None where there is.
        remark: What else has to be known of its figures; None where nothing.
        kind: What it is: one of `KINDS`.
    """

    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    cost: float | None = None
    validation: float | None = None
    test: float | None = None
    normalised: float | None = None
    routed: float | None = None
    scores: Mapping[str, float] = field(default_factory=dict)
    routed_scores: Mapping[str, float] = field(default_factory=dict)
    seconds: float | None = None
    peak_megabytes: float | None = None
    runs: int = 0
    cost_deviation: float | None = None
    test_deviation: float | None = None
    normalised_deviation: float | None = None
    note: str | None = None
    remark: str | None = None
    kind: Kind = "static"


@dataclass(frozen=True)
class Comparison:
    """All rows, in the order in which they are shown.

    Attributes:
        parameters: d, the parameters of the base backbone.
        tasks: Each task's metric.
        rows: The rows.
    """

    parameters: int
    tasks: Mapping[str, str]
    rows: tuple[Row, ...]

    def as_json(self) -> dict[str, Any]:
        """Returns the comparison as one document."""
        return asdict(self)


def searched_rows(runs: Sequence[MeasuredRun], merged: float, best: float) -> list[Row]:
    """Returns what searches found: MERGE's G1, G2 and G3, chosen on validation rows and told on test rows.

    G1 is the cheapest point that beats the run's own merge method applied to whole models, G2 the cheapest that beats
    every method of the table, static merges and dynamic peers, G3 the best. Several runs of one recipe under different
    seeds give means. A run's points were scored on the validation rows that its own seed drew, the methods on those of
    the recipe's.

    Args:
        runs: Front and test table of every run.
        merged: P on validation rows of the runs' merge method at full precision.
        best: The highest P on validation rows of any static merge or dynamic peer.

    Source: MERGE, arXiv 2602.06552, Table I; the paper does not say on which rows it chooses.
    """
    limits = {"MERGE G1 (beats its method)": merged, "MERGE G2 (beats every other method)": best}
    rows = []
    for name, limit in limits.items():
        chosen = [(_cheapest_above(front, limit), report) for front, report in runs]
        rows.append(_mean_row(name, [(point, report) for point, report in chosen if point is not None], len(runs)))
    return [*rows, _mean_row("MERGE G3 (the best)", _tops(runs), len(runs))]


def one_model_row(runs: Sequence[MeasuredRun]) -> Row:
    """Returns the best that searches for one merged model found, chosen on validation rows and told on test rows.

    Several runs of one recipe under different seeds give means.

    Source: AutoMerge, arXiv 2601.22748.
    """
    return _mean_row("AutoMerge", _tops(runs), len(runs))


def _tops(runs: Sequence[MeasuredRun]) -> list[tuple[FrontPoint, Report]]:
    """Returns the best point of every run on validation rows; of equals the cheapest."""
    return [(max(front.points, key=lambda point: (_plain(point), -point.cost)), report) for front, report in runs]


def _plain(point: FrontPoint) -> float:
    """Returns P on validation rows as methods are told, a plain mean; a search may have weighted the tasks."""
    return mean_score(point.scores)


def _cheapest_above(front: Front, limit: float) -> FrontPoint | None:
    better = [point for point in front.points if _plain(point) > limit]
    return min(better, key=lambda point: point.cost, default=None)


def _mean_row(name: str, chosen: Sequence[tuple[FrontPoint, Report]], runs: int) -> Row:
    """Returns the mean of the chosen points of several runs."""
    if len(chosen) < runs:
        return Row(name, note=f"{runs - len(chosen)} of {runs} runs have no such point", kind="searched")
    found = [scores for point, report in chosen if (scores := report.scores(point.id)) is not None]
    if len(found) < runs:
        return Row(name, note="a run's report.json lacks the point; run hf-merge report again", kind="searched")
    routed = [scores.routed for scores in found if scores.routed is not None]
    normalised = [scores.oracle_normalised for scores in found if scores.oracle_normalised is not None]
    return Row(
        name,
        cost=mean(scores.cost for scores in found),
        validation=mean(scores.validation for scores in found),
        test=mean(scores.oracle for scores in found),
        normalised=mean(normalised) if len(normalised) == runs else None,
        routed=mean(routed) if len(routed) == runs else None,
        scores=_means([scores.oracle_scores for scores in found]),
        routed_scores=_means([scores.routed_scores for scores in found]) if len(routed) == runs else {},
        runs=runs,
        cost_deviation=stdev(scores.cost for scores in found) if runs > 1 else None,
        test_deviation=stdev(scores.oracle for scores in found) if runs > 1 else None,
        normalised_deviation=stdev(normalised) if len(normalised) == runs > 1 else None,
        kind="searched",
    )


def _means(scores: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {task: mean(found[task] for found in scores) for task in scores[0]}


def as_text(comparison: Comparison) -> str:
    """Returns the comparison as a table for a terminal, with what has to be known of some rows below it."""
    return "\n".join([text_table(_header(comparison), _cells(comparison)), *_remarks(comparison)])


def as_markdown(comparison: Comparison) -> str:
    """Returns the comparison as a table in Markdown, with what has to be known of some rows below it."""
    header = _header(comparison)
    table = str(markdown_table(header, _cells(comparison), right=len(header) - 1))
    return "\n\n".join([table, *map(escape, _remarks(comparison))]) + "\n"


def marks(comparison: Comparison) -> list[Mark]:
    """Returns what a plot shows of the rows: those whose cost and share of the fine-tunes' performance are known."""
    return [
        Mark(row.name, row.kind, row.cost, row.normalised, row.cost_deviation, row.normalised_deviation)
        for row in comparison.rows
        if row.cost is not None and row.normalised is not None
    ]


def _remarks(comparison: Comparison) -> list[str]:
    return [f"{row.name}: {row.remark}." for row in comparison.rows if row.remark is not None]


def _header(comparison: Comparison) -> list[str]:
    return [
        "method", "C", "MB", "P validation", "P test", "% of individual", "P routed", "seconds", "peak MB",
        *comparison.tasks,
    ]  # fmt: skip


def _cells(comparison: Comparison) -> list[list[str]]:
    return [
        [
            row.name if row.note is None else f"{row.name}: {row.note}",
            _told(row.cost, 4, row.cost_deviation),
            "-" if row.cost is None else f"{4e-6 * row.cost * comparison.parameters:.1f}",
            _told(row.validation, 4),
            _told(row.test, 4, row.test_deviation),
            "-" if row.normalised is None else f"{100 * row.normalised:.1f}",
            _told(row.routed, 4),
            _told(row.seconds, 1),
            _told(row.peak_megabytes, 0),
            *(_told(row.scores.get(task), 3) for task in comparison.tasks),
        ]
        for row in comparison.rows
    ]


def _told(value: float | None, digits: int, deviation: float | None = None) -> str:
    if value is None:
        return "-"
    return f"{value:.{digits}f}" if deviation is None else f"{value:.{digits}f} ± {deviation:.{digits}f}"
