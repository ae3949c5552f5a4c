from typing import Any

import numpy as np
import pytest
import torch

from hf_merge.errors import InputError
from hf_merge.serving.asking import (
    DTYPES,
    check_claim,
    check_whole,
    chosen_device,
    chosen_dtype,
    count_rows,
    task_numbers,
)
from tests.storing.chain_maps import sample


def test_names_become_numbers_among_what_was_loaded() -> None:
    assert task_numbers("qqp", 3, ("sst2", "qqp"), sample()).tolist() == [1, 1, 1]
    assert task_numbers(["qqp", "sst2"], 2, ("sst2", "qqp"), sample()).tolist() == [1, 0]


@pytest.mark.parametrize(
    ("task", "rows", "message"),
    [
        (["qqp"], 2, "1 tasks for 2 rows"),
        ("trec", 1, r"'trec' was not loaded: name it in tasks="),
        (0, 1, r"task is 0; give the name"),
        ([0], 1, r"task of row 0 is int 0; give its name, one of sst2, qqp"),
        (["qqp", None], 2, r"task of row 1 is NoneType None"),
        ([["qqp"]], 1, r"task of row 0 is list"),
        ("sst", 1, r"Unknown task 'sst'.*sst2"),
    ],
)
def test_names_that_are_none_are_refused(task: Any, rows: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        task_numbers(task, rows, ("sst2", "qqp"), sample())


def test_batches_are_counted() -> None:
    assert count_rows({"a": torch.zeros(3, 2)}) == 3
    refused: list[tuple[Any, str]] = [
        ({}, "is empty"), ({"a": torch.zeros(0, 2)}, "is empty"), ({"a": [1]}, "'a' is no tensor"),
        ({"a": torch.zeros(3, 4), "b": torch.zeros(1, 4)}, "differ in rows: 'a' has 3, 'b' has 1"),
    ]  # fmt: skip
    for inputs, message in refused:
        with pytest.raises(InputError, match=message):
            count_rows(inputs)


@pytest.mark.parametrize("claim", ["0.9", True, [0.9], 0, 1.5, float("nan")])
def test_claims_are_probabilities(claim: Any) -> None:
    with pytest.raises(InputError, match=r"claim is .*; give a probability"):
        check_claim(claim)


def test_claims_of_numpy_are_claims() -> None:
    found: Any = np.float32(0.5)
    check_claim(found)
    check_claim(1)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("2", "size is '2'; give a whole number, 1 to 9"), (2.0, "give a whole number"), (True, "give a whole number"),
        (None, "give a whole number"), (0, "size is 0; give 1 to 9"), (10, "size is 10; give 1 to 9"),
    ],
)  # fmt: skip
def test_what_is_no_whole_number_in_bounds_is_refused(value: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_whole("size", value, 1, 9)


def test_whole_numbers_are_of_numpy_too() -> None:
    check_whole("size", np.int64(3), 1)
    check_whole("size", 9, 1, 9)


def test_types_are_named_or_given() -> None:
    for name, dtype in DTYPES.items():
        assert chosen_dtype(name, "float32") == chosen_dtype(dtype, "float32") == chosen_dtype(None, name) == dtype
    strange: list[Any] = ["bf16", "float", "int8", torch.int8, 16, ["float32"]]
    for dtype in strange:
        with pytest.raises(InputError, match=r"dtype is .*; give one of float64, float32, bfloat16, float16, or None"):
            chosen_dtype(dtype, "float32")


def test_devices_are_tried() -> None:
    assert chosen_device(None) == chosen_device("cpu") == chosen_device(torch.device("cpu")) == torch.device("cpu")
    # A number is an accelerator's, and no machine has a hundred.
    devices: list[Any] = ["auto", "", "cuda:99", 99, "meta", 1.5]
    for device in devices:
        with pytest.raises(InputError, match=r"device is .*, which cannot be used here: .*'cuda:0', or None"):
            chosen_device(device)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is such a device")
def test_a_device_that_is_not_there_is_refused() -> None:
    with pytest.raises(InputError, match="device is 'cuda', which cannot be used here"):
        chosen_device("cuda")
