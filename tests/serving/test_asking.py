from typing import Any

import pytest
import torch

from hf_merge.errors import InputError
from hf_merge.serving.asking import count_rows, task_numbers
from tests.storing.chain_maps import sample


def test_names_become_numbers_among_what_was_loaded() -> None:
    assert task_numbers("qqp", 3, ("sst2", "qqp"), sample()).tolist() == [1, 1, 1]
    assert task_numbers(["qqp", "sst2"], 2, ("sst2", "qqp"), sample()).tolist() == [1, 0]


@pytest.mark.parametrize(
    ("task", "rows", "message"),
    [
        (["qqp"], 2, "1 tasks for 2 rows"),
        ("trec", 1, r"'trec' was not loaded: name it in tasks="),
        ("sst", 1, r"Unknown task 'sst'.*sst2"),
    ],
)
def test_names_that_are_none_are_refused(task: str | list[str], rows: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        task_numbers(task, rows, ("sst2", "qqp"), sample())


def test_batches_are_counted() -> None:
    assert count_rows({"a": torch.zeros(3, 2)}) == 3
    refused: list[tuple[Any, str]] = [
        ({}, "is empty"), ({"a": torch.zeros(0, 2)}, "is empty"), ({"a": [1]}, "'a' is no tensor"),
    ]  # fmt: skip
    for inputs, message in refused:
        with pytest.raises(InputError, match=message):
            count_rows(inputs)
