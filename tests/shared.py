"""What is made once for all processes of one run of pytest: each of pytest-xdist's workers has fixtures of its own."""

import fcntl
import os
import pickle
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest


Made = TypeVar("Made")


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], Made]) -> Made:
    """Returns what `make` leaves and returns: the first process makes it, the others wait and read it.

    Args:
        factory: Knows the folder of this run of pytest.
        name: What is made; may stand in a file's name.
        make: Makes it in an empty folder and returns what describes it, picklable, not to be changed.
    """
    own = factory.getbasetemp()
    root = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "made"
    root.mkdir(exist_ok=True)
    told = root / f"{name}.pickle"
    with (root / f"{name}.lock").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # until the file is closed
        if not told.exists():  # made in a folder of its own: what failed half-way may be tried again
            made = make(Path(tempfile.mkdtemp(prefix=f"{name}-", dir=root)))
            told.write_bytes(pickle.dumps(made))
        again: Made = pickle.loads(told.read_bytes())
    return again
