"""Hidden states kept at block boundaries, so that a chain starts where an earlier one with the same experts had come.

States are kept by what decides them: the task, the block, and the experts up to there. They take at most a stated
number of bytes, those being recorded counted in; the least recently used go first.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from hf_merge.merging.experts import ExpertKey
from hf_merge.modeling.passes import State, state_bytes


StateKey: TypeAlias = tuple[str, int, tuple[ExpertKey, ...]]


@dataclass(eq=False)
class _Kept:
    """The states of all batches of one task at one boundary."""

    states: list[State] = field(default_factory=list)
    nbytes: int = 0


class StateCache:
    """Hidden states by task, block and experts, up to a number of bytes.

    Attributes:
        limit_bytes: The most that is held.
        held_bytes: What is held now, unfinished recordings included.
    """

    def __init__(self, limit_bytes: int) -> None:
        """Prepares an empty cache; with a limit of 0 it stays empty."""
        self.limit_bytes, self.held_bytes = limit_bytes, 0
        self._kept: OrderedDict[StateKey, _Kept] = OrderedDict()
        self._recording: dict[StateKey, _Kept] = {}

    def find(self, key: StateKey) -> Sequence[State] | None:
        """Returns the states of every batch, in the order of the batches, or None where they are not kept."""
        kept = self._kept.get(key)
        if kept is None:
            return None
        self._kept.move_to_end(key)
        return kept.states

    def begin(self, keys: Sequence[StateKey]) -> None:
        """Begins to record under these keys; what was begun before and not finished is forgotten."""
        self._forget(list(self._recording))
        self._recording = {key: _Kept() for key in keys}

    def add(self, key: StateKey, state: State) -> None:
        """Takes the state of the next batch; where there is no room for it, this recording is given up."""
        recording = self._recording.get(key)
        if recording is None:
            return
        size = state_bytes(state)
        while self._kept and self.held_bytes + size > self.limit_bytes:
            _, dropped = self._kept.popitem(last=False)
            self.held_bytes -= dropped.nbytes
        if self.held_bytes + size > self.limit_bytes:
            self._forget([key])
            return
        recording.states.append(state)
        recording.nbytes += size
        self.held_bytes += size

    def finish(self) -> None:
        """Keeps what was recorded since `begin`; from now on it can be found."""
        self._kept.update(self._recording)
        self._recording = {}

    def _forget(self, keys: Sequence[StateKey]) -> None:
        for key in keys:
            self.held_bytes -= self._recording.pop(key).nbytes
