"""How a search went: what it found within each budget, how long it took, and how much of its work it was spared."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hf_merge.searching.pareto import best_within
from hf_merge.storing.durable import FolderLock, write_atomic
from hf_merge.storing.front import Front
from hf_merge.storing.plots import BUDGETS
from hf_merge.storing.search_plot import plot_search
from hf_merge.storing.timings import Timing, read_timings
from hf_merge.workflow.run_folder import SEARCH_PLOT_FILE, TIMINGS_FILE, read_run


@dataclass(frozen=True)
class Best:
    """The best configuration within a budget.

    Attributes:
        id: Its name.
        cost: C.
        performance: P on validation rows.
        normalised: The mean over tasks of the metric over the fine-tune's own.
    """

    id: str
    cost: float
    performance: float
    normalised: float


@dataclass(frozen=True)
class SearchSummary:
    """How a search went.

    Attributes:
        evaluations: How many configurations were really evaluated.
        front: How many of them are on the front.
        hypervolume: Of the front, in [0, 1].
        best: The best configuration by budget, None where all of them cost more.
        seconds: How long the search took, over all parts of a resumed one; None where no times were kept.
        timed: How many evaluations have times. The counts that follow are theirs.
        pairs_asked: (task, chain) pairs whose score was needed.
        pairs_run: Those that were run; the others had been run for an earlier evaluation.
        blocks_asked: Blocks of the model that the pairs run would pass, counted per batch of rows.
        blocks_run: Those that were run; the others' hidden states were kept.
    """

    evaluations: int
    front: int
    hypervolume: float
    best: Mapping[str, Best | None]
    seconds: float | None
    timed: int
    pairs_asked: int
    pairs_run: int
    blocks_asked: int
    blocks_run: int


def summarise(run: Path, front: Front) -> SearchSummary:
    """Returns how the search of a run went; `front` is what it found."""
    return _summary(front, read_timings(run / TIMINGS_FILE))


def report_search(run: Path) -> SearchSummary:
    """Returns how the search of a run went, and writes `search.png` beside its front; no row is evaluated.

    Raises:
        RunFolderError: The run has no finished search, or another process works on it.
    """
    front, _ = read_run(run)
    with FolderLock(run):
        return draw_search(run, front)


def draw_search(run: Path, front: Front) -> SearchSummary:
    """Writes `search.png` into a run folder whose lock is held, and returns how the search went."""
    timings = read_timings(run / TIMINGS_FILE)
    write_atomic(run / SEARCH_PLOT_FILE, plot_search(front, timings))
    return _summary(front, timings)


def _summary(front: Front, timings: Sequence[Timing]) -> SearchSummary:
    return SearchSummary(
        evaluations=front.history[-1][0],
        front=len(front.points),
        hypervolume=front.hypervolume,
        best={f"{budget:g}": _best(front, budget) for budget in BUDGETS},
        seconds=timings[-1].seconds if timings else None,
        timed=len(timings),
        pairs_asked=sum(timing.pairs_asked for timing in timings),
        pairs_run=sum(timing.pairs_run for timing in timings),
        blocks_asked=sum(timing.blocks_asked for timing in timings),
        blocks_run=sum(timing.blocks_run for timing in timings),
    )


def _best(front: Front, budget: float) -> Best | None:
    index = best_within([(point.cost, point.performance) for point in front.points], budget)
    if index is None:
        return None
    point = front.points[index]
    return Best(point.id, point.cost, point.performance, point.normalised)
