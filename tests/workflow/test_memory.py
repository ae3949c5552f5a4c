"""The peak of a piece of work is its own: not what was held before, and not the largest that ever was."""

import mmap
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from hf_merge.workflow.memory import PeakMemory


pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="memory is measured on Linux alone")
MB = 1_000_000
# In a process of its own: what an allocator that served thousands of tests can give back is not ours to promise.
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


def _wait_for(peak: PeakMemory, megabytes: float) -> None:
    """Holds what is held until it was seen: on a busy machine the watching thread may not run for a while."""
    end = time.monotonic() + 10
    while (peak.megabytes or 0.0) < megabytes and time.monotonic() < end:
        time.sleep(0.005)


def _hold(megabytes: int) -> float:
    """Returns the peak of work that fills so much memory and lets go of it."""
    with PeakMemory() as peak:
        filled = np.ones(megabytes * MB, dtype=np.uint8)
        _wait_for(peak, 0.95 * megabytes)
        del filled
    assert peak.megabytes is not None
    return peak.megabytes


def test_the_peak_is_what_was_filled_and_not_what_an_earlier_piece_of_work_took() -> None:
    held = np.ones(60 * MB, dtype=np.uint8)
    large, small = _hold(200), _hold(40)
    assert 195 < large < 230 and 35 < small < 70
    assert len(held) == 60 * MB


def test_many_small_pieces_count_again_after_they_were_freed() -> None:
    done = subprocess.run([sys.executable, "-c", SMALL_PIECES], capture_output=True, text=True, check=True)
    first, second = map(float, done.stdout.split())
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
