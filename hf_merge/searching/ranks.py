"""The processes of one search: rank 0 leads and writes, the others work for it; one process alone is rank 0 of one.

Processes are joined by accelerate, over gloo, also where each computes on an accelerator of its own. What goes between
them are objects of our own, from our own processes.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object
from torch.distributed.distributed_c10d import _set_pg_timeout

from hf_merge.errors import InputError, WorkerError, nearest


DEADLINE_SECONDS = 1800.0  # how long one rank waits for another before it gives the run up
START_SECONDS = 300.0
PREPARATION_SECONDS = 86400.0  # pulling large models may take hours, and the ranks do not pull at the same time
_Item = TypeVar("_Item")


def device_of(choice: str) -> torch.device:
    """Returns where this process computes: its own accelerator of the machine's, or the processors.

    What goes between the processes of a search are scores and chains; it goes over the processors in any case.

    Args:
        choice: `cpu`, `cuda`, or `auto` for cuda where there is one.

    Raises:
        InputError: The choice is none of these, or there is no such accelerator, or LOCAL_RANK is no number.
    """
    if choice not in ("auto", "cpu", "cuda"):
        raise InputError(f"Unknown device '{choice}'.{nearest(choice, ('auto', 'cpu', 'cuda'))}")
    if choice == "cpu" or (choice == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise InputError("The device 'cuda' is asked for, and torch finds none here. Choose cpu, or auto.")
    return torch.device("cuda", of_launcher("LOCAL_RANK", 0) % torch.cuda.device_count())


def of_launcher(name: str, otherwise: int) -> int:
    """Returns the number that a launcher has put into the environment, `otherwise` where there is none.

    Raises:
        InputError: What is there is no number.
    """
    given = os.environ.get(name) or str(otherwise)
    if not given.isdecimal():
        raise InputError(f"{name} is '{given:.40}' in the environment, where a launcher puts a number. Unset it.")
    return int(given)


@dataclass
class Ranks:
    """The processes of a search as one of them sees them.

    Until they have exchanged results for the first time each may prepare for as long as it takes to pull large models;
    a rank that dies is noticed at once all the same. From then on they wait for each other until the deadline.

    Attributes:
        index: Which of them this is, from 0.
        count: How many there are.
        deadline_seconds: How long one waits for another.
        patience_seconds: How long this one waits now.
    """

    index: int = 0
    count: int = 1
    deadline_seconds: float = DEADLINE_SECONDS
    patience_seconds: float = DEADLINE_SECONDS

    @classmethod
    def join(
        cls,
        deadline_seconds: float = DEADLINE_SECONDS,
        *,
        start_seconds: float = START_SECONDS,
        preparation_seconds: float = PREPARATION_SECONDS,
        cpu: bool = True,
    ) -> "Ranks":
        """Returns the ranks of this process's launcher (RANK, WORLD_SIZE and the like in the environment).

        Args:
            deadline_seconds: How long to wait for a rank before the run is given up.
            start_seconds: How long to wait for all to come, at the least.
            preparation_seconds: How long to wait for one that prepares, at the least.
            cpu: Whether to compute on processors.

        Raises:
            WorkerError: The others did not come in time.
        """
        patience = max(deadline_seconds, start_seconds)
        try:
            state = PartialState(cpu=cpu, timeout=timedelta(seconds=patience))
        except RuntimeError as error:
            raise WorkerError(
                f"The ranks did not find each other within {patience:g} s: {_first_line(error)}. Check that all of "
                "them were started, and MASTER_ADDR and MASTER_PORT."
            ) from error
        ranks = cls(state.process_index, state.num_processes, deadline_seconds)
        ranks._wait_until(max(deadline_seconds, preparation_seconds))
        return ranks

    @property
    def leads(self) -> bool:
        """Whether this is rank 0."""
        return self.index == 0

    def share(self, item: object) -> None:
        """Sends an item from rank 0 to the others, each of which must be at `receive`.

        Raises:
            WorkerError: A rank died, or did not answer in time.
        """
        if self.count > 1:
            self._together(lambda: broadcast_object_list([item], from_process=0))

    def receive(self) -> Any:
        """Returns what rank 0 shares.

        Raises:
            WorkerError: A rank died, or did not answer in time.
        """
        box: list[Any] = [None]
        self._together(lambda: broadcast_object_list(box, from_process=0))
        return box[0]

    def gather(self, items: Sequence[_Item]) -> list[_Item]:
        """Returns the items of all ranks on every rank, in the order of the ranks; now all of them are prepared.

        Raises:
            WorkerError: A rank died, or did not answer in time.
        """
        if self.count == 1:
            return list(items)
        gathered: list[_Item] = self._together(lambda: gather_object(list(items)))
        self._wait_until(self.deadline_seconds)
        return gathered

    def leave(self) -> None:
        """Ends the connection; without it a rank may end with an error at its exit."""
        if self.count > 1:
            PartialState().destroy_process_group()
            PartialState._reset_state()  # or the next search of this process would take itself for this rank

    def _wait_until(self, seconds: float) -> None:
        """Sets how long this rank waits for the others from now on."""
        self.patience_seconds = seconds
        if self.count > 1:
            _set_pg_timeout(timedelta(seconds=seconds))  # the only way to wait longer for one thing than for another

    def _together(self, step: Callable[[], _Item]) -> _Item:
        """Returns what a step of all ranks gives."""
        try:
            return step()
        except RuntimeError as error:
            raise WorkerError(
                f"Rank {self.index} waited for the others in vain ({_first_line(error)}): one of them died, or did "
                f"not answer within {self.patience_seconds:g} s. What was evaluated is in the journal: continue with "
                "--resume, and where an answer takes longer than that with a longer --deadline."
            ) from error


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
