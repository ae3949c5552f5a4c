"""What a search tells while it runs: events for a program, one bar on a terminal, a line now and then elsewhere.

The events and their keys are in docs/format.md. Evaluations that a resumed search takes from its journal are followed
in silence, so that the time that is left is told from those that are really done.
"""

import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO, TypeAlias

from tqdm import tqdm

from hf_merge.searching.evaluation import mean_score
from hf_merge.searching.pareto import best_within, non_dominated
from hf_merge.searching.running import Reuse
from hf_merge.searching.search import Measured
from hf_merge.storing.plots import BUDGETS
from hf_merge.storing.timings import Timing, Timings
from hf_merge.workflow.bars import on_terminal


Event: TypeAlias = Mapping[str, Any]
Listener: TypeAlias = Callable[[Event], None]
SECONDS_BETWEEN_LINES = 30.0
_BAR = "{desc}: {n_fmt}/{total_fmt} |{bar}| {elapsed}<{remaining}{postfix}"


class Progress:
    """Follows a search: tells a listener what happens, and keeps the times."""

    def __init__(
        self, total: int, replayed: int, timings: Timings, listener: Listener, clock: Callable[[], float]
    ) -> None:
        """Begins to count the time.

        Args:
            total: How many real evaluations the search will have at its end.
            replayed: How many of them it will take from its journal.
            timings: Where the times are kept.
            listener: Who is told.
            clock: Seconds that only rise.
        """
        self._total, self._replayed = total, replayed
        self._timings, self._listener, self._clock = timings, listener, clock
        self._points: list[tuple[float, float]] = []
        self._volume, self._earlier, self._reuse = 0.0, 0.0, Reuse()
        self._began = self._evaluating = clock()

    def started(self, tasks: Iterable[str], processes: int) -> None:
        """Tells that the search begins: everything that was given can be used."""
        self._tell("started", tasks=list(tasks), total=self._total, processes=processes)

    def references(self, individual: Mapping[str, float], pretrained: Mapping[str, float]) -> None:
        """Tells what fine-tunes and base score; evaluations begin now."""
        self._tell("references", individual=dict(individual), pretrained=dict(pretrained))
        self._evaluating = self._clock()

    def evaluated(self, measured: Measured, volume: float) -> None:
        """Tells of an evaluation and keeps its time, or takes over what is known of one that is replayed."""
        self._points.append(measured.objectives)
        self._volume = volume
        number = len(self._points)
        if number <= self._replayed:
            self._replay(number)
            return
        self._reuse += measured.evaluation.reuse
        seconds, now = self._seconds(), self._clock()
        self._timings.append(_timing(number, seconds, volume, measured.evaluation.reuse))
        pace = (now - self._evaluating) / (number - self._replayed)
        cost, performance = measured.objectives
        left = round(pace * (self._total - number), 3)
        self._tell("evaluation", **self._state(), cost=cost, performance=performance, remaining_seconds=left)

    def finished(self) -> None:
        """Tells that the front is on the disk."""
        counts = {name: getattr(self._reuse, name) for name in Reuse.__dataclass_fields__}
        self._tell("finished", **self._state(), **counts)

    def _replay(self, number: int) -> None:
        known = self._timings.earlier.get(number)
        if known is not None:
            self._earlier = known.seconds
            self._reuse += Reuse(known.pairs_asked, known.pairs_run, known.blocks_asked, known.blocks_run)
        self._began = self._evaluating = self._clock()
        if number == self._replayed:
            self._tell("resumed", **self._state())

    def _state(self) -> dict[str, Any]:
        """Returns how far the search has come."""
        best = {f"{budget:g}": best_within(self._points, budget) for budget in BUDGETS}
        costs, performances = zip(*self._points, strict=True)
        return {
            "number": len(self._points),
            "total": self._total,
            "front": len(non_dominated(costs, performances)),
            "hypervolume": self._volume,
            "best": {budget: None if index is None else performances[index] for budget, index in best.items()},
            "elapsed_seconds": self._seconds(),
        }

    def _seconds(self) -> float:
        return round(self._earlier + self._clock() - self._began, 3)

    def _tell(self, event: str, **details: Any) -> None:
        self._listener({"event": event, **details})


def _timing(number: int, seconds: float, volume: float, reuse: Reuse) -> Timing:
    return Timing(number, seconds, volume, reuse.pairs_asked, reuse.pairs_run, reuse.blocks_asked, reuse.blocks_run)


@contextmanager
def followed(
    total: int, replayed: int, path: Path, progress: bool | Listener, clock: Callable[[], float] = time.monotonic
) -> Iterator[Progress]:
    """Yields what follows a search until its end.

    Args:
        total: How many real evaluations it will have at its end.
        replayed: How many of them it will take from its journal.
        path: Its `timings.jsonl`.
        progress: Show a bar or, where stderr is no terminal, lines; or a function to call with every event.
        clock: Seconds that only rise.
    """
    listener = progress if callable(progress) else _shown() if progress else None
    with Timings(path, replayed) as timings:
        try:
            yield Progress(total, replayed, timings, listener or (lambda event: None), clock)
        finally:
            if isinstance(listener, _Bar):
                listener.close()


def _shown() -> "_Bar | _Lines":
    return _Bar() if on_terminal() else _Lines(sys.stderr)


def event_line(event: Event) -> None:
    """Writes an event to stderr as a line of JSON."""
    sys.stderr.write(json.dumps(event, ensure_ascii=False) + "\n")
    sys.stderr.flush()


class _Bar:
    """One bar of tqdm, which counts from where the journal ended."""

    def __init__(self) -> None:
        self._total = 0
        self._bar: tqdm[Any] | None = None

    def __call__(self, event: Event) -> None:
        kind = event["event"]
        if kind == "started":
            self._total = event["total"]
            self._open("references", 0)
        elif kind in ("references", "resumed"):
            self._open("search", event.get("number", 0))
        if self._bar is not None and "best" in event:
            self._bar.set_postfix_str(_state_words(event), refresh=kind == "resumed")
            self._bar.update(kind == "evaluation")

    def close(self) -> None:
        """Leaves the bar as it is."""
        if self._bar is not None:
            self._bar.close()

    def _open(self, name: str, number: int) -> None:
        """Begins the bar anew in its place, so that its time counts from here."""
        if self._bar is not None:
            self._bar.leave = False
            self._bar.close()
        # Without smoothing: evaluations of several processes come many at once, and then none for a while.
        self._bar = tqdm(
            desc=name, total=self._total, initial=number, smoothing=0, dynamic_ncols=True, bar_format=_BAR
        )


class _Lines:
    """A line for each event, but of evaluations one in half a minute: a log is not flooded."""

    def __init__(self, stream: TextIO) -> None:
        self._stream, self._last = stream, 0.0

    def __call__(self, event: Event) -> None:
        seconds = event.get("elapsed_seconds", 0.0)
        if event["event"] == "evaluation" and seconds - self._last < SECONDS_BETWEEN_LINES:
            return
        self._last = seconds
        self._stream.write(f"search: {_words(event)}\n")
        self._stream.flush()


def _words(event: Event) -> str:
    """Returns an event as one line for people."""
    if event["event"] == "started":
        return f"{event['total']} evaluations of {len(event['tasks'])} tasks, processes: {event['processes']}"
    if event["event"] == "references":
        own, base = mean_score(event["individual"]), mean_score(event["pretrained"])
        return f"the fine-tunes score P = {own:.4f}, the base P = {base:.4f}"
    done, spent = f"{event['number']}/{event['total']} evaluations", tqdm.format_interval(event["elapsed_seconds"])
    left = f"<{tqdm.format_interval(event['remaining_seconds'])}" if event["event"] == "evaluation" else ""
    return f"{done} [{spent}{left}], {_state_words(event)}"


def _state_words(event: Event) -> str:
    """Returns front, hypervolume and the best P within each budget."""
    best = " ".join(
        f"P({budget}) {'-' if value is None else f'{value:.3f}'}" for budget, value in event["best"].items()
    )
    return f"front {event['front']}, HV {event['hypervolume']:.4f}, {best}"
