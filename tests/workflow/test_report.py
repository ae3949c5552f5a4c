"""Scores on test rows: routing can only lose rows, and the loaded model scores what the report says."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_merge.searching.metrics import score
from hf_merge.storing.strict_json import read_json
from hf_merge.workflow.report import Report, as_routed, evaluate, report
from hf_merge.workflow.run_folder import PLOT_FILE, REPORT_FILE
from tests.tiny_runs import TinyRun


ROWS = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), st.booleans()), min_size=1, max_size=30)


@pytest.fixture(scope="module")
def found(tiny_run: TinyRun) -> Report:
    return report(tiny_run.folder, progress=False)


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


def test_a_loaded_member_scores_what_the_report_says(tiny_run: TinyRun, found: Report) -> None:
    rows = {row.id: row for row in found.rows}
    for member in tiny_run.members:
        scores, accuracy = evaluate(member, progress=False)
        expected = rows[scores.id]
        assert dict(scores.oracle_scores) == pytest.approx(dict(expected.oracle_scores), abs=1e-6)
        assert dict(scores.routed_scores) == pytest.approx(dict(expected.routed_scores), abs=1e-6)
        assert accuracy == pytest.approx(dict(found.router_accuracy))
        assert scores.validation == pytest.approx(expected.validation)


def test_the_report_lies_beside_the_front(tiny_run: TinyRun, found: Report) -> None:
    kept = read_json(tiny_run.folder / REPORT_FILE, 1_000_000)
    assert isinstance(kept, dict) and isinstance(kept["rows"], list)
    assert len(kept["rows"]) == len(found.rows)
    assert (tiny_run.folder / PLOT_FILE).read_bytes().startswith(b"\x89PNG")
