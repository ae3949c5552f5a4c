"""What analyses found, as it is told: every number in its place, and nothing told that is not there."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from hf_merge.searching.insight import Correlation
from hf_merge.workflow.findings import Analyses, Sensitivity, Unseen, UnseenRow, Utility, as_markdown, as_text


FEW = Correlation(2, note="2 steps: at least 3 are needed")
FOUND = Analyses(
    tasks={"a": "accuracy", "b": "accuracy", "c": "matthews"},
    runs=("runs/0", "runs/1"),
    configurations=8,
    utility=(
        Utility("all runs", (), (), Correlation(5, -0.9, 0.0421), Correlation(5, 0.25, 0.75)),
        Utility("runs/0", (), (), FEW, FEW),
    ),
    associations={"mlp": ((1.0, 0.25, 0.5), (0.25, 1.0, 0.125), (0.5, 0.125, 1.0))},
    separate={"a": 0.9, "b": 0.8, "c": 0.7},
    sensitivity=(Sensitivity("mlp", 0.1234, {"a": 0.2, "b": 0.1702, "c": -0.0001}),),
    unseen=Unseen(
        {"d": "accuracy"},
        (
            UnseenRow("cheapest", "c0300-abcdef", 0.3, 0.7, 0.65, 0.5, 0.625, {"d": 0.5}),
            UnseenRow("fine-tunes", None, None, None, None, 0.8, 1.0, {"d": 0.8}),
        ),
        {"d": {"a": 0.5, "b": 0.125, "c": 0.375}},
    ),
)


@pytest.mark.parametrize("told", [as_text, as_markdown])
def test_every_number_is_told(told: Callable[[Analyses], str]) -> None:
    text = " ".join(told(FOUND).replace("|", " ").replace("\\", "").split())
    for line in (
        "all runs 5 -0.900 0.042 +0.250 0.75",
        "mlp 0.29 a - c (0.50) b - c (0.12)",
        "mlp +0.1234 +0.2000 +0.1702 -0.0001",
        "P = 0.8000 with all kept apart",
        "cheapest: c0300-abcdef 0.3000 0.7000 0.6500 0.5000 62.5 0.5000",
        "fine-tunes - - - 0.8000 100.0 0.8000",
        "d 50.0 12.5 37.5",
        "of 8 configurations",
    ):
        assert line in text
    assert "chosen on these very rows" in text


def test_where_there_is_no_correlation_the_reason_is_told_and_no_number() -> None:
    line = next(line for line in as_text(FOUND).splitlines() if line.startswith("runs/0"))
    assert line.split()[:2] == ["runs/0", "2"]
    assert line.count("none (2 steps: at least 3 are needed)") == 2


def test_without_unseen_tasks_nothing_is_said_of_them() -> None:
    assert "nseen" not in as_text(replace(FOUND, unseen=None))
