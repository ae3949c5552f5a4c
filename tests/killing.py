"""Processes that die of `kill -9`: at a chosen request to the loopback Hub, at a chosen write to the disk, any time.

Each is forked from a process that has imported everything and runs nothing else, which takes milliseconds; the process
of pytest has threads (the Hub's among them), so it must not fork itself. What is not named to `preload` is imported by
every fork again, which takes seconds.
"""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import forkserver
from typing import Any, Literal

import pytest
from huggingface_hub import constants
from tqdm import tqdm

from tests import failing_disk
from tests.hub_server import HubServer


PATIENCE_SECONDS = 60.0
_FORKS = multiprocessing.get_context("forkserver")
_PRELOADED = ["__main__", "tests.killing", "hf_merge.storing.hub"]
_FORKS.set_forkserver_preload(_PRELOADED)


def preload(*modules: str) -> None:
    """Has modules imported before anything more is forked: once, instead of in every fork."""
    new = [module for module in modules if module not in _PRELOADED]
    if new:
        _PRELOADED.extend(new)
        _FORKS.set_forkserver_preload(_PRELOADED)
        forkserver._forkserver._stop()  # type: ignore[attr-defined]  # a server that is up takes no more


def run(function: Callable[..., object], *args: Any) -> int:
    """Returns with what a forked process ended that ran `function(*args)`: 0, 1 if it raised, or minus a signal."""
    return end(start(function, *args))


def start(function: Callable[..., object], *args: Any) -> Any:
    """Returns the forked process that runs `function(*args)`; hand it to `end`."""
    process = _FORKS.Process(target=_work, args=(function, args))
    process.start()
    return process


def end(process: Any) -> int:
    """Returns with what a process ended, which it must do within a minute."""
    process.join(PATIENCE_SECONDS)
    if process.exitcode is None:
        process.kill()
        process.join()
        raise TimeoutError(f"no end after {PATIENCE_SECONDS:g} s")
    code: int = process.exitcode
    process.close()
    return code


@contextmanager
def running(function: Callable[..., object], *args: Any) -> Iterator[Any]:
    """Yields the forked process that runs `function(*args)`; it is killed where the block ends before it."""
    process = start(function, *args)
    try:
        yield process
    finally:
        process.kill()
        end(process)


def event() -> Any:
    """Returns an event that can be handed to a forked process."""
    return _FORKS.Event()


def kill_at(
    hub: HubServer,
    request: int,
    function: Callable[..., object],
    *args: Any,
    drop: Literal["request", "answer", "body"],
) -> bool:
    """Runs `function(*args)` in a forked process until it makes its n-th request to the Hub, and returns whether it
    got so far and was killed there; False where it ended before.

    Args:
        hub: The Hub that the function talks to; what else is under way there counts too.
        request: The number of the request, from 0.
        function: A function of a module, as in `multiprocessing`.
        args: Its arguments, picklable.
        drop: The moment, as in `Fault`: before the request is carried out, after it, or in mid-answer.
    """
    process = _FORKS.Process(target=_work, args=(function, args))
    hub.fault("*", "", skip=request, drop=drop, call=lambda: _kill(process))
    process.start()
    code = end(process)
    hub.settle()
    hub.faults.clear()
    return _killed(function, code)


def kill_at_write(write: int, function: Callable[..., object], *args: Any) -> bool:
    """Runs `function(*args)` in a forked process until its n-th write to the disk (`tests.failing_disk`), counted from
    0, of which half is done, and returns whether it got so far and was killed there; False where it ended before.
    """
    return _killed(function, run(_dying_at, write, function, args))


def kill_after(seconds: float, function: Callable[..., object], *args: Any) -> bool:
    """Runs `function(*args)` in a forked process for so long, and returns whether it was killed then; False where it
    ended before.
    """
    process = start(function, *args)
    process.join(seconds)
    process.kill()
    return _killed(function, end(process))


def _killed(function: Callable[..., object], code: int) -> bool:
    if code not in (0, -signal.SIGKILL):
        raise RuntimeError(f"{function.__name__} failed by itself before it could be killed: exit code {code}")
    return code != 0


def _work(function: Callable[..., object], args: tuple[Any, ...]) -> None:
    constants.HF_HUB_OFFLINE = False
    constants.HF_HUB_DISABLE_XET = True
    time.sleep = lambda seconds: None
    tqdm.set_lock(threading.RLock())  # its own is a semaphore of the system's, which a killed process leaves behind
    function(*args)


def _dying_at(write: int, function: Callable[..., object], args: tuple[Any, ...]) -> None:
    failing_disk.fail_at(pytest.MonkeyPatch(), write, lambda name: os.kill(os.getpid(), signal.SIGKILL))
    function(*args)


def _kill(process: Any) -> None:
    while process.pid is None:  # the process may ask before it is known here who it is
        pass
    os.kill(process.pid, signal.SIGKILL)
