"""Routing of a comparison: the router's own probabilities, and what they make of scores."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hf_merge.recipe import Recipe
from hf_merge.searching.metrics import score
from hf_merge.workflow.family_router import read_router
from hf_merge.workflow.project import Project, Reader, open_project, task_runs
from hf_merge.workflow.routing import Routing, as_routed, routing_of
from hf_merge.workflow.rows import load_rows
from tests.tiny_models import TinyFamily


Families = Callable[[str], TinyFamily]
ROWS = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), st.booleans()), min_size=1, max_size=30)
ROUTER = {"rows_per_task": 30, "epochs": 3}


@pytest.fixture
def project(tiny_family: Families) -> Iterator[Project]:
    recipe = Recipe.parse(tiny_family("bert").recipe(search={"validation_rows": 12}, router=ROUTER), "test")
    with open_project(recipe) as opened:
        yield opened


def _route(project: Project, folder: Path) -> Routing:
    data, reader = load_rows(project.recipe, project.heads), Reader(project)
    runs = task_runs(project, {task: rows.test for task, rows in data.items()}, reader)
    return routing_of(project, data, runs, reader, folder, progress=False)


def test_shares_are_the_routers_probabilities_in_the_rows_order(project: Project, tmp_path: Path) -> None:
    routing = _route(project, tmp_path)
    router, eyes = read_router(tmp_path, project)
    data, reader = load_rows(project.recipe, project.heads), Reader(project)
    for index, task in enumerate(project.family.tasks):
        shares, own = routing.shares[task], routing.own(task)
        assert shares.shape == (60, 3)
        torch.testing.assert_close(shares.sum(dim=1), torch.ones(60))
        for batch in reader.batches(data[task].test):
            scores = router.scores(eyes.pooled(batch.inputs))
            rows = torch.from_numpy(batch.rows)
            torch.testing.assert_close(shares[rows].log(), scores.log_softmax(dim=1), rtol=1e-3, atol=1e-3)
            assert own[batch.rows].tolist() == (scores.argmax(dim=1) == index).tolist()


def test_a_single_task_needs_no_router(tiny_family: Families, tmp_path: Path) -> None:
    document = tiny_family("bert").recipe(search={"validation_rows": 12}, router=ROUTER)
    recipe = Recipe.parse({**document, "tasks": document["tasks"][:1]}, "test")
    with open_project(recipe) as project:
        routing = _route(project, tmp_path / "kept")
    assert routing.own("animals").all() and bool((routing.shares["animals"] == 1).all())
    assert not (tmp_path / "kept").exists()


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
