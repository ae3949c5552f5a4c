"""The disk made to fail at its n-th operation: to raise what the system would answer, or to end the process there.

Counted are the operations that change what is on the disk; those through which files are read go on.
"""

import os
from collections.abc import Callable
from typing import Any

import pytest

from hf_merge.storing import disk


OPERATIONS = ("open_file", "write_all", "sync", "replace", "truncate", "unlink")


class Count:
    """How many operations there were."""

    def __init__(self) -> None:
        self.operations = 0


def fail_at(patch: pytest.MonkeyPatch, number: int, fault: Callable[[str], object]) -> Count:
    """Has `fault(name of the operation)` called in place of the n-th operation, from 0, and of all that follow.

    Where `fault` returns, the operation is carried out after all. A write is half done before.
    """
    count = Count()
    for name in OPERATIONS:
        patch.setattr(disk, name, _failing(name, getattr(disk, name), number, fault, count))
    return count


def _failing(
    name: str, real: Callable[..., object], number: int, fault: Callable[[str], object], count: Count
) -> Callable[..., object]:
    def operation(*args: Any) -> object:
        if name == "open_file" and not args[1] & (os.O_WRONLY | os.O_RDWR):
            return real(*args)
        count.operations += 1
        if count.operations <= number:
            return real(*args)
        if name != "write_all":
            fault(name)
            return real(*args)
        half = len(args[1]) // 2
        real(args[0], args[1][:half])
        fault(name)
        return half + int(str(real(args[0], args[1][half:])))

    return operation
