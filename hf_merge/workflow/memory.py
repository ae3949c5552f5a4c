"""How much memory a piece of work takes at its peak, beside what the process held before it."""

import ctypes
import gc
import resource
import sys
from pathlib import Path
from threading import Event, Thread
from types import TracebackType
from typing import Self


_STATM = Path("/proc/self/statm")
_EVERY = 0.002  # seconds


class PeakMemory:
    """The peak of a process's own memory above that at the start, as a context manager.

    A thread reads from `/proc/self/statm` every two milliseconds how many pages are resident that no file backs;
    what comes and goes between two readings is not seen. Pages of files (libraries, maps) do not count: the system
    takes them back as it likes, also while the work goes on. Before the start, memory that was freed is given back,
    for what fits into it would not show. Systems without that file, which Linux has, are not measured.

    Attributes:
        megabytes: The peak so far, and after leaving that of the whole work, in 10^6 bytes; None where it cannot be
            measured.
    """

    def __init__(self) -> None:
        self.megabytes: float | None = None
        self._start = 0
        self._done = Event()
        self._thread = Thread(target=self._watch, name="peak-memory", daemon=True)

    def __enter__(self) -> Self:
        if _STATM.is_file():
            _give_back()
            self._start, self.megabytes = _held(), 0.0
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._thread.is_alive():
            return
        self._done.set()
        self._thread.join()
        self._look()

    def _watch(self) -> None:
        while not self._done.wait(_EVERY):
            self._look()

    def _look(self) -> None:
        self.megabytes = max(self.megabytes or 0.0, (_held() - self._start) / 1e6)


def _held() -> int:
    """Returns the bytes of the process's resident pages that no file backs."""
    _, resident, backed, *_ = map(int, _STATM.read_text().split())
    return (resident - backed) * resource.getpagesize()


def _give_back() -> None:
    """Frees what nothing refers to, and has the allocator return it to the system where it knows how to."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)
