"""`timings.jsonl`: when each evaluation of a search was done, and how much of its work was there from before.

The file stands beside the journal and is no part of what a run is: journal and front are the same bytes however fast
the search was. So nothing that is wrong with this file stops a search or a report. It is said, and they go on without.
"""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from hf_merge.errors import HfMergeError
from hf_merge.storing.durable import Journal
from hf_merge.storing.json_fields import Field
from hf_merge.storing.strict_json import JsonValue


logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Timing:
    """One real evaluation.

    Attributes:
        number: Its number in the journal.
        seconds: From the search's beginning to the end of the evaluation, over all parts of a resumed search.
        hypervolume: Reached so far.
        pairs_asked: (task, chain) pairs whose score it needed.
        pairs_run: Those that were run for it; the others had been run for an earlier one.
        blocks_asked: Blocks of the model that the pairs run would pass, counted per batch of rows.
        blocks_run: Those that were run; the others' hidden states were kept.
    """

    number: int
    seconds: float
    hypervolume: float
    pairs_asked: int
    pairs_run: int
    blocks_asked: int
    blocks_run: int

    def record(self) -> dict[str, Any]:
        """Returns the record to append."""
        return asdict(self)


class Timings:
    """The times of a search that goes on, as a context manager; where the file cannot be used there are none.

    Attributes:
        earlier: What earlier parts of the search left, by number.
    """

    def __init__(self, path: Path, evaluations: int) -> None:
        """Opens the times of a run whose journal holds so many evaluations."""
        self._journal: Journal | None = None
        self.earlier: Mapping[int, Timing] = {}
        if evaluations and not path.exists():
            logger.warning("The search goes on without times, as %s is missing.", path)
            return
        try:
            self._journal = Journal(path)
            self.earlier = _by_number(self._journal.records(), path)
        except HfMergeError as error:
            self._give_up(error)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def append(self, timing: Timing) -> None:
        """Adds what one evaluation took; of two with one number the later counts."""
        if self._journal is None:
            return
        try:
            self._journal.append(timing.record())
        except HfMergeError as error:
            self._give_up(error)

    def _give_up(self, error: HfMergeError) -> None:
        self._close()
        logger.warning("The search goes on without times, as their file cannot be used. %s", error)

    def _close(self) -> None:
        if self._journal is not None:
            self._journal.close()
            self._journal = None


def read_timings(path: Path) -> tuple[Timing, ...]:
    """Returns the times of a run by rising number: none where there is no such file, or a damaged one."""
    if not path.exists():
        return ()
    try:
        with Journal(path, read_only=True) as journal:
            found = _by_number(journal.records(), path)
    except HfMergeError as error:
        logger.warning("No times are shown, as their file cannot be used. %s", error)
        return ()
    return tuple(found[number] for number in sorted(found))


def _by_number(records: Iterable[Mapping[str, JsonValue]], path: Path) -> dict[int, Timing]:
    timings = (_timing(Field(dict(record), f"{path}, line {index}")) for index, record in enumerate(records, start=1))
    return {timing.number: timing for timing in timings}


def _timing(top: Field) -> Timing:
    fields = top.record(tuple(Timing.__dataclass_fields__))
    seconds = fields["seconds"].number()
    if seconds < 0:
        raise fields["seconds"].refusal(f"is {seconds}, below 0")
    pairs, blocks = fields["pairs_asked"].integer(0), fields["blocks_asked"].integer(0)
    return Timing(
        number=fields["number"].integer(1),
        seconds=seconds,
        hypervolume=fields["hypervolume"].number(),
        pairs_asked=pairs,
        pairs_run=fields["pairs_run"].integer(0, pairs),
        blocks_asked=blocks,
        blocks_run=fields["blocks_run"].integer(0, blocks),
    )
