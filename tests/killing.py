"""Processes that die of `kill -9` at a chosen request to the loopback Hub.

Each is forked from a process that has imported everything and runs nothing else, which takes milliseconds; the process
of pytest has threads (the Hub's among them), so it must not fork itself.
"""

import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from multiprocessing import forkserver
from typing import Any, Literal

from huggingface_hub import constants

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
    process = _FORKS.Process(target=_work, args=(function, args))
    process.start()
    return _end(process)


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
    code = _end(process)
    hub.settle()
    hub.faults.clear()
    if code not in (0, -signal.SIGKILL):
        raise RuntimeError(f"{function.__name__} failed by itself before it could be killed: exit code {code}")
    return code != 0


def _work(function: Callable[..., object], args: tuple[Any, ...]) -> None:
    constants.HF_HUB_OFFLINE = False
    constants.HF_HUB_DISABLE_XET = True
    time.sleep = lambda seconds: None
    function(*args)


def _kill(process: Any) -> None:
    while process.pid is None:  # the process may ask before it is known here who it is
        pass
    os.kill(process.pid, signal.SIGKILL)


def _end(process: Any) -> int:
    process.join(PATIENCE_SECONDS)
    if process.exitcode is None:
        process.kill()
        process.join()
        raise TimeoutError(f"no end after {PATIENCE_SECONDS:g} s")
    code: int = process.exitcode
    process.close()
    return code
