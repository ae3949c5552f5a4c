"""How a search went: what the run folder knows of it, drawn and told without loading a model."""

import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from hf_merge.errors import RunFolderError
from hf_merge.storing.durable import FolderLock
from hf_merge.storing.timings import read_timings
from hf_merge.workflow.run_folder import FRONT_FILE, RECIPE_FILE, SEARCH_PLOT_FILE, TIMINGS_FILE
from hf_merge.workflow.summary import report_search, summarise
from tests.tiny_runs import TinyRun


@pytest.fixture
def run(tiny_run: TinyRun, tmp_path: Path) -> Path:
    """Returns a copy of what the search left."""
    for name in (RECIPE_FILE, FRONT_FILE, TIMINGS_FILE):
        shutil.copy(tiny_run.folder / name, tmp_path)
    return tmp_path


def test_the_sums_are_those_of_the_times(tiny_run: TinyRun, run: Path) -> None:
    found, timings = report_search(run), read_timings(run / TIMINGS_FILE)
    assert found == summarise(run, tiny_run.front)
    assert (found.evaluations, found.timed, found.seconds) == (9, 9, timings[-1].seconds)
    assert found.pairs_asked == 9 * len(tiny_run.front.tasks)
    assert found.pairs_run == sum(timing.pairs_run for timing in timings) < found.pairs_asked
    assert timings[-1].hypervolume == tiny_run.front.hypervolume == found.hypervolume


def test_the_best_of_a_budget_is_the_best_of_the_front_within_it(tiny_run: TinyRun, run: Path) -> None:
    best = report_search(run).best
    for budget, found in best.items():
        within = [point for point in tiny_run.front.points if point.cost <= float(budget)]
        assert (found and found.id) == (within[-1].id if within else None)
    assert list(best) == ["0.25", "0.5", "1"]


def test_an_older_run_without_times_is_told_as_far_as_it_is_known(tiny_run: TinyRun, run: Path) -> None:
    whole = report_search(run)
    with_times = (run / SEARCH_PLOT_FILE).read_bytes()
    (run / TIMINGS_FILE).unlink()
    assert report_search(run) == replace(
        whole, seconds=None, timed=0, pairs_asked=0, pairs_run=0, blocks_asked=0, blocks_run=0
    )
    assert (run / SEARCH_PLOT_FILE).read_bytes() != with_times


def test_a_run_that_is_being_worked_on_is_left_alone(run: Path) -> None:
    with FolderLock(run), pytest.raises(RunFolderError, match="is in use by process"):
        report_search(run)
    assert not (run / SEARCH_PLOT_FILE).exists()


def test_telling_how_a_search_went_loads_no_torch() -> None:
    code = "import sys, hf_merge.workflow.summary, hf_merge.workflow.tables; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
