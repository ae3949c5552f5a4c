"""What the analyses of a run found, as data, and how it is told: tables for a terminal and for Markdown."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from textwrap import fill
from typing import Any, TypeAlias

from hf_merge.searching.insight import Correlation
from hf_merge.storing.markdown import table as markdown_table
from hf_merge.workflow.tables import text_table


Matrix: TypeAlias = tuple[tuple[float, ...], ...]
_WIDTH = 100


@dataclass(frozen=True)
class Utility:
    """What storage buys along a front, on the rows that chose it and on test rows.

    Attributes:
        run: Whose front, or `all runs`.
        validation_steps: Pairs (C halfway, rise of P per unit of C) on validation rows.
        test_steps: The same of the same configurations on test rows, the task known.
        validation: The rank correlation of these pairs on validation rows.
        test: The same on test rows.
    """

    run: str
    validation_steps: tuple[tuple[float, float], ...]
    test_steps: tuple[tuple[float, float], ...]
    validation: Correlation
    test: Correlation


@dataclass(frozen=True)
class Sensitivity:
    """What merging one component alone takes, on validation rows.

    Attributes:
        component: Its name.
        drop: What P loses against all tasks kept apart; below 0 where it gains.
        drops: The same of every task's score.
    """

    component: str
    drop: float
    drops: Mapping[str, float]


@dataclass(frozen=True)
class UnseenRow:
    """How well tasks are served that a run never saw.

    Attributes:
        name: How it was chosen, or what it is.
        id: The configuration; None for the base and the fine-tunes.
        cost: C of the configuration, without the unseen tasks' heads; None with `id`.
        seen_validation: P of the run's own tasks on validation rows; None with `id`.
        seen_test: P of the run's own tasks on test rows, the task known; None with `id`.
        unseen: P of the unseen tasks on their test rows, every row routed to one of the run's tasks.
        normalised: The mean over unseen tasks of the score over their own fine-tune's.
        scores: The score of every unseen task.
    """

    name: str
    id: str | None
    cost: float | None
    seen_validation: float | None
    seen_test: float | None
    unseen: float
    normalised: float
    scores: Mapping[str, float]


@dataclass(frozen=True)
class Unseen:
    """How a run serves tasks that it never saw.

    Attributes:
        tasks: The unseen tasks with their metrics.
        rows: What was measured.
        routed: By unseen task, the share of its rows that the router sends to each of the run's tasks.
    """

    tasks: Mapping[str, str]
    rows: tuple[UnseenRow, ...]
    routed: Mapping[str, Mapping[str, float]]


@dataclass(frozen=True)
class Analyses:
    """What was found of a run, or of several that differ in their seed.

    Attributes:
        tasks: The tasks with their metrics.
        runs: The runs whose fronts were looked at together.
        configurations: How many configurations these fronts have together.
        utility: Of all runs together, then of each; of one run alone that one.
        associations: By component, in which share of the configurations two tasks are in one group, [tasks, tasks].
        separate: The tasks' scores on validation rows with all of them kept apart.
        sensitivity: What merging one component alone takes from them, the worst first.
        unseen: How the first run serves tasks that it never saw; None where none were named.
    """

    tasks: Mapping[str, str]
    runs: tuple[str, ...]
    configurations: int
    utility: tuple[Utility, ...]
    associations: Mapping[str, Matrix]
    separate: Mapping[str, float]
    sensitivity: tuple[Sensitivity, ...]
    unseen: Unseen | None

    def as_json(self) -> dict[str, Any]:
        """Returns everything as one document."""
        return asdict(self)


@dataclass(frozen=True)
class _Section:
    """A titled table with what must be known to read it."""

    title: str
    note: str
    header: Sequence[str]
    cells: Sequence[Sequence[str]]


def as_text(found: Analyses) -> str:
    """Returns everything as tables for a terminal."""
    return "\n\n\n".join(
        f"{section.title}\n{fill(section.note, _WIDTH)}\n\n{text_table(section.header, section.cells)}"
        for section in _sections(found)
    )


def as_markdown(found: Analyses) -> str:
    """Returns everything as tables in Markdown."""
    parts = [
        f"## {section.title}\n\n{section.note}\n\n"
        + str(markdown_table(section.header, section.cells, right=len(section.header) - 1))
        for section in _sections(found)
    ]
    return "\n\n".join(parts) + "\n"


def _sections(found: Analyses) -> Iterator[_Section]:
    yield _utility(found)
    yield _associations(found)
    yield _sensitivity(found)
    if found.unseen is not None:
        yield _unseen(found.unseen)
        yield _routing(found, found.unseen)


def _utility(found: Analyses) -> _Section:
    cells = [
        [row.run, str(row.validation.pairs), *_correlation(row.validation), *_correlation(row.test)]
        for row in found.utility
    ]
    note = (
        "Between neighbours of a front, P gained per unit of C, and its Spearman correlation with C: below 0, storage "
        "buys less the more there is. Test: the same configurations on test rows, the task known."
    )
    header = ("front", "steps", "rho validation", "p", "rho test", "p")
    return _Section("Marginal utility of storage", note, header, cells)


def _correlation(found: Correlation) -> list[str]:
    if found.rho is None or found.p is None:
        return [f"none ({found.note})", "-"]
    return [f"{found.rho:+.3f}", f"{found.p:.2g}"]


def _associations(found: Analyses) -> _Section:
    cells = []
    for component, matrix in found.associations.items():
        pairs = [
            (matrix[one][other], f"{first} - {second}")
            for (one, first), (other, second) in combinations(enumerate(found.tasks), 2)
        ]
        least, most = (choose(pairs, key=lambda pair: pair[0]) for choose in (min, max))
        mean = sum(share for share, _ in pairs) / len(pairs)
        cells.append([component, f"{mean:.2f}", f"{most[1]} ({most[0]:.2f})", f"{least[1]} ({least[0]:.2f})"])
    note = (
        f"In which share of {found.configurations} configurations two tasks have one expert; all pairs are in "
        "analyses.json and associations.png."
    )
    return _Section("Who shares what", note, ("component", "mean", "most often", "least often"), cells)


def _sensitivity(found: Analyses) -> _Section:
    cells = [
        [row.component, f"{row.drop:+.4f}", *(f"{row.drops[task]:+.4f}" for task in found.tasks)]
        for row in found.sensitivity
    ]
    kept = sum(found.separate.values()) / len(found.separate)
    note = (
        "One component merged for all tasks, every other kept apart: the drop of P and of each task's score on "
        f"validation rows, against P = {kept:.4f} with all kept apart."
    )
    return _Section("Sensitivity of components", note, ("component", "P", *found.tasks), cells)


def _unseen(unseen: Unseen) -> _Section:
    cells = [
        [
            row.name if row.id is None else f"{row.name}: {row.id}",
            *(_number(value) for value in (row.cost, row.seen_validation, row.seen_test, row.unseen)),
            f"{100 * row.normalised:.1f}",
            *(_number(row.scores[task]) for task in unseen.tasks),
        ]
        for row in unseen.rows
    ]
    note = (
        "Tasks that the run never saw: each row is answered by the chain of the seen task to which the router sends "
        "it, under the unseen task's own head. What is best on unseen rows was chosen on these very rows: it says "
        "what the front holds, not what one would have found."
    )
    header = ("configuration", "C", "P validation", "P test", "P unseen", "% of own fine-tune", *unseen.tasks)
    return _Section("Unseen tasks", note, header, cells)


def _routing(found: Analyses, unseen: Unseen) -> _Section:
    cells = [[task, *(f"{100 * unseen.routed[task][seen]:.1f}" for seen in found.tasks)] for task in unseen.tasks]
    note = "In percent of the unseen task's rows."
    return _Section("Where the router sends unseen tasks", note, ("unseen task", *found.tasks), cells)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
