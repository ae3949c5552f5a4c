"""The peak of a piece of work is its own: not what was held before, and not the largest that ever was."""

import mmap
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hf_merge.workflow.memory import PeakMemory


pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="memory is measured on Linux alone")
MB = 1_000_000
# Each in a process of its own: when allocators give back what other tests have freed is not ours to promise.
LARGE_PIECES = """
import time
import numpy as np
from hf_merge.workflow.memory import PeakMemory

held = np.ones(60_000_000, dtype=np.uint8)
for megabytes in (200, 40):
    with PeakMemory() as peak:
        filled = np.ones(megabytes * 1_000_000, dtype=np.uint8)
        end = time.monotonic() + 10  # until it was seen: on a busy machine the watching thread may not run for a while
        while peak.megabytes < 0.95 * megabytes and time.monotonic() < end:
            time.sleep(0.005)
        del filled
    print(peak.megabytes)
"""
SMALL_PIECES = """
import time
from hf_merge.workflow.memory import PeakMemory

large = b"x" * 30_000_000
del large  # from now on glibc keeps as much as twice of that for itself
for _ in range(2):
    with PeakMemory() as peak:
        pieces = [b"x" * 50_000 for _ in range(1000)]  # zeros would be promised and not held
        end = time.monotonic() + 10
        while peak.megabytes < 45 and time.monotonic() < end:
            time.sleep(0.005)
        del pieces
    print(peak.megabytes)
"""


def _peaks(script: str) -> tuple[float, float]:
    """Returns the two peaks that a script prints."""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    first, second = map(float, done.stdout.split())
    return first, second


def test_the_peak_is_what_was_filled_and_not_what_an_earlier_piece_of_work_took() -> None:
    large, small = _peaks(LARGE_PIECES)
    assert 190 < large < 230 and 35 < small < 70


def test_many_small_pieces_count_again_after_they_were_freed() -> None:
    first, second = _peaks(SMALL_PIECES)
    assert 45 < first < 70 and 45 < second < 70


def test_pages_of_files_do_not_count_for_the_system_takes_them_back_at_will(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(60 * MB))
    with (
        (tmp_path / "file").open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped,
        PeakMemory() as peak,
    ):
        assert sum(mapped[:: mmap.PAGESIZE]) == 0
        time.sleep(0.02)
    assert peak.megabytes is not None and peak.megabytes < 20


def test_an_error_inside_is_let_through_and_the_watching_ends() -> None:
    peak = PeakMemory()
    with pytest.raises(ValueError, match="inside"), peak:
        raise ValueError("inside")
    assert peak.megabytes is not None and not peak._thread.is_alive()
