"""Scores on test rows: routing can only lose rows."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_merge.errors import RunFolderError
from hf_merge.searching.metrics import score
from hf_merge.storing import results
from hf_merge.storing.results import Report
from hf_merge.workflow.report import as_routed, report
from hf_merge.workflow.run_folder import PLOT_FILE, REPORT_FILE, SEARCH_PLOT_FILE
from tests.tiny_runs import TinyRun


ROWS = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), st.booleans()), min_size=1, max_size=30)


@pytest.fixture(scope="module")
def run(tiny_run: TinyRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a copy of the run: a report changes what a build writes into its cards."""
    return Path(shutil.copytree(tiny_run.folder, tmp_path_factory.mktemp("report") / "run"))


@pytest.fixture(scope="module")
def found(run: Path) -> Report:
    return report(run, progress=False)


@given(ROWS)
def test_a_row_that_was_sent_elsewhere_counts_as_wrong(rows: list[tuple[int, int, bool]]) -> None:
    answers, labels, own = (np.array(column) for column in zip(*rows, strict=True))
    expected = float(np.mean((answers == labels) & own))
    assert score("accuracy", as_routed(answers, own.astype(bool)), labels) == pytest.approx(expected)


@given(ROWS)
def test_a_row_of_a_regression_that_was_sent_elsewhere_says_nothing(rows: list[tuple[int, int, bool]]) -> None:
    answers, _, own = (np.array(column) for column in zip(*rows, strict=True))
    own, values = own.astype(bool), answers.astype(np.float32)
    routed = as_routed(values, own)
    assert np.array_equal(routed[own], values[own])
    assert np.allclose(routed[~own], values[own].mean() if own.any() else 0.0)
    assert np.isfinite(routed).all()


def test_with_every_row_routed_right_nothing_changes() -> None:
    answers, own = np.array([2, 0, 1]), np.ones(3, dtype=bool)
    assert np.array_equal(as_routed(answers, own), answers)


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
    monkeypatch.setattr("hf_merge.storing.checkpoints.sha256_of", lambda _: "0" * 64)
    with pytest.raises(RunFolderError, match=r"The weights of .* are not those that .* was searched on"):
        report(run, progress=False)
