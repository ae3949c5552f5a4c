"""The ranks of a search started or joined: those that `--num-processes` asks for, or those of torchrun and accelerate.

Started here, rank 0 is this very process, so that its exit code and its messages are the command's; the others run
the same command and end with it.
"""

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from hf_merge.errors import InputError, WorkerError
from hf_merge.recipe import Recipe
from hf_merge.searching.ranks import Ranks, of_launcher
from hf_merge.storing import hub


_LONGEST = 1e8  # seconds, three years: what clocks and sockets can count
_ACCESS = "HF_MERGE_ACCESS"  # in the environment of ranks started here; a command line is for all users to read
_END_SECONDS, _LAST_WORDS_SECONDS = 1.0, 5.0


@contextmanager
def joined_ranks(
    recipe: Recipe,
    out: Path,
    processes: int,
    deadline_seconds: float,
    device: str = "auto",
    access: hub.Access = hub.AS_USUAL,
) -> Iterator[Ranks]:
    """Yields the ranks of a search, started where this process is to start them, and parts from them at the end.

    Args:
        recipe: What is searched.
        out: The run folder.
        processes: How many processes on this machine; 1 for this one alone, or for those of a launcher.
        deadline_seconds: How long one rank waits for another.
        device: What those started here compute on, as in `device_of`.
        access: How those started here reach the Hub.

    Raises:
        InputError: The number of processes or the deadline is impossible, or a launcher has started some already, or
            WORLD_SIZE is no number.
        WorkerError: The ranks did not find each other.
    """
    launched = of_launcher("WORLD_SIZE", 1)
    if processes < 1:
        raise InputError(f"--num-processes is {processes}; give at least 1.")
    if not 0 < deadline_seconds <= _LONGEST:
        raise InputError(f"--deadline is {deadline_seconds:g}; give seconds, above 0 and at most {_LONGEST:g}.")
    if processes > 1 and launched > 1:
        raise InputError(
            f"--num-processes {processes} under a launcher that has started {launched}: leave out one of the two."
        )
    if processes == 1 and launched == 1:
        yield Ranks()
    elif processes == 1:
        with _joined(deadline_seconds) as ranks:
            yield ranks
    else:
        options = ["--out", str(out), "--device", device, "--deadline", str(deadline_seconds)]
        with _started(recipe, processes, options, access), _joined(deadline_seconds) as ranks:
            yield ranks


def handed_access(access: hub.Access) -> hub.Access:
    """Returns how this process reaches the Hub: as who started it does, where it is a rank that was started here."""
    given = os.environ.get(_ACCESS)
    return access if given is None else hub.Access(**json.loads(given))


def _handed_on(access: hub.Access) -> dict[str, str]:
    """Returns the environment from which `handed_access` reads."""
    given = {
        "token": access.token,
        "cache_dir": None if access.cache_dir is None else str(access.cache_dir),
        "local_files_only": access.local_files_only,
        "endpoint": access.endpoint,
    }
    return {_ACCESS: json.dumps(given)}


@contextmanager
def _joined(deadline_seconds: float) -> Iterator[Ranks]:
    ranks = Ranks.join(deadline_seconds)
    try:
        yield ranks
    finally:
        ranks.leave()


@contextmanager
def _started(recipe: Recipe, processes: int, options: Sequence[str], access: hub.Access) -> Iterator[None]:
    """Starts all ranks but the first, which this process becomes, and ends them.

    All compute with the same number of threads, as sums in another order would be other scores.
    """
    threads = _threads_of_each(processes)
    common = {
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(_free_port()),
        "OMP_NUM_THREADS": str(threads),
    }
    with tempfile.TemporaryDirectory(prefix="hf-merge-") as scratch:
        path = Path(scratch) / "recipe.yaml"
        path.write_text(recipe.dump(), encoding="utf-8")
        command = [sys.executable, "-m", "hf_merge", "search", str(path), *options]
        workers: list[_Worker] = []
        try:
            for rank in range(1, processes):  # of which one may fail to start
                workers.append(_Worker(rank, command, common | _handed_on(access), Path(scratch)))
            with _environment(common | _place(0)), _computing_with(threads):
                yield
        except WorkerError as error:
            _wait_for_the_first_end(workers)
            raise WorkerError(
                " ".join([str(error), *filter(None, (worker.last_words() for worker in workers))])
            ) from error
        finally:
            for worker in workers:
                worker.end()


class _Worker:
    """A rank other than the first, started here; what it says is kept, and told only if it ends badly."""

    def __init__(self, rank: int, command: list[str], common: dict[str, str], scratch: Path) -> None:
        self._rank, self._said = rank, scratch / f"rank-{rank}"
        with self._said.open("wb") as said:
            self._process = subprocess.Popen(
                command, env={**os.environ, **common, **_place(rank)}, stdout=subprocess.DEVNULL, stderr=said
            )

    def has_ended(self) -> bool:
        """Returns whether the process is gone."""
        return self._process.poll() is not None

    def last_words(self) -> str:
        """Returns how it ended and what it said last, nothing where it is still there."""
        code = self._process.poll()
        if code is None or code == 0:
            return ""
        if code < 0:
            return f"Rank {self._rank} was killed by signal {-code}."
        lines = self._said.read_text(errors="replace").strip().splitlines()
        return f"Rank {self._rank} ended with exit code {code}" + (f": {lines[-1]}" if lines else ".")

    def end(self) -> None:
        """Waits for it if it is about to end by itself, and kills it if it is not."""
        try:
            self._process.wait(_LAST_WORDS_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def _wait_for_the_first_end(workers: Sequence[_Worker]) -> None:
    """Returns when a worker has ended, or none does; a dying process closes its connections before it has ended."""
    end = time.monotonic() + _END_SECONDS
    while not any(worker.has_ended() for worker in workers) and time.monotonic() < end:
        time.sleep(0.01)


def _place(rank: int) -> dict[str, str]:
    return {"RANK": str(rank), "LOCAL_RANK": str(rank)}


@contextmanager
def _environment(changes: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _threads_of_each(processes: int) -> int:
    """Returns how many threads each process computes with: what OMP_NUM_THREADS says, or its share of the cores."""
    asked = os.environ.get("OMP_NUM_THREADS", "").split(",")[0]
    return int(asked) if asked.isdecimal() and int(asked) else max(1, (os.cpu_count() or 1) // processes)


@contextmanager
def _computing_with(threads: int) -> Iterator[None]:
    """Has torch use so many threads in this process, which has read the environment long ago."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port
