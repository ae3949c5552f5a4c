"""Scores on test rows: routing can only lose rows."""

import shutil
from pathlib import Path

import pytest

from hf_merge.errors import RunFolderError
from hf_merge.storing import results
from hf_merge.storing.results import Report
from hf_merge.workflow.report import report
from hf_merge.workflow.run_folder import PLOT_FILE, REPORT_FILE, SEARCH_PLOT_FILE
from tests.tiny_runs import TinyRun


@pytest.fixture(scope="module")
def run(tiny_run: TinyRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a copy of the run: a report changes what a build writes into its cards."""
    return Path(shutil.copytree(tiny_run.folder, tmp_path_factory.mktemp("report") / "run"))


@pytest.fixture(scope="module")
def found(run: Path) -> Report:
    return report(run, progress=False)


def test_the_table_holds_fine_tunes_controls_and_front_once(tiny_run: TinyRun, found: Report) -> None:
    assert [row.role for row in found.rows[:3]] == ["individual", "all-merged", "all-separate"]
    assert len(found.rows) == 1 + len(tiny_run.members) == len({row.id for row in found.rows})
    front = [row.cost for row in found.rows if row.role == "front"]
    assert front == sorted(front)
    individual = found.rows[0]
    assert individual.oracle_normalised == 1.0 and individual.cost > 3
    assert found.test_rows == {"animals": 60, "colours": 60, "sizes": 60}
    for row in found.rows:
        assert row.oracle == pytest.approx(sum(row.oracle_scores.values()) / 3)


def test_routing_is_no_better_than_knowing_where_wrong_counts_as_wrong(found: Report) -> None:
    for row in found.rows:
        for task in ("animals", "colours"):
            assert row.routed_scores[task] <= row.oracle_scores[task]
            assert row.routed_scores[task] <= found.router_accuracy[task]


def test_the_report_lies_beside_the_front(run: Path, found: Report) -> None:
    assert results.read(run / REPORT_FILE) == found
    for name in (PLOT_FILE, SEARCH_PLOT_FILE):
        assert (run / name).read_bytes().startswith(b"\x89PNG")


def test_weights_that_changed_since_the_search_are_refused(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hf_merge.storing.digests.sha256_of", lambda _: "0" * 64)
    with pytest.raises(RunFolderError, match=r"The weights of .* are not those that .* was searched on"):
        report(run, progress=False)
