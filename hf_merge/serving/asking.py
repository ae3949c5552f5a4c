"""What a caller asks for, checked: names of tasks become numbers, batches are counted, devices are tried."""

from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor

from hf_merge.errors import InputError, nearest, some
from hf_merge.storing.chains import ChainMap


DTYPES = {
    "float64": torch.float64, "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16,
}  # fmt: skip


def task_numbers(task: str | Sequence[str], rows: int, tasks: Sequence[str], chain_map: ChainMap) -> Tensor:
    """Returns the task of each row, [rows] int64, as indices of `tasks`.

    Args:
        task: The task of all rows, or of each.
        rows: How many rows there are.
        tasks: The tasks that were loaded.
        chain_map: What else there is.

    Raises:
        InputError: A task is no name, unknown or was not loaded, or there are not as many as rows.
    """
    if not isinstance(task, Iterable):
        raise InputError(f"task is {task!r:.80}; give the name of one task, or one name per row.")
    names = [task] * rows if isinstance(task, str) else list(task)
    strange = next((row for row, name in enumerate(names) if not isinstance(name, str)), None)
    if strange is not None:
        raise InputError(
            f"The task of row {strange} is {type(names[strange]).__name__} {names[strange]!r:.80}; give its name, one "
            f"of {some(tasks)}."
        )
    if len(names) != rows:
        raise InputError(f"{len(names)} tasks for {rows} rows: give one task, or one per row.")
    unknown = next((name for name in names if name not in tasks), None)
    if unknown in chain_map.chains:
        raise InputError(f"The task '{unknown}' was not loaded: name it in tasks=, or load the model without.")
    if unknown is not None:
        raise InputError(f"Unknown task '{unknown}'.{nearest(unknown, tasks)}")
    return torch.tensor([tasks.index(name) for name in names], dtype=torch.int64)


def check_claim(claim: float | None, task: str | Sequence[str] | None = None) -> None:
    """Checks what probability a task must claim an input with; None is any.

    Raises:
        InputError: It is no probability, or the tasks are named, so that none has to claim anything.
    """
    if claim is None:
        return
    if not isinstance(claim, Real) or isinstance(claim, bool) or not 0 < claim <= 1:
        raise InputError(f"claim is {claim!r:.80}; give a probability above 0 and at most 1, like 0.9.")
    if task is not None:
        raise InputError("claim is for inputs that are routed, and here the task is named: leave one of the two out.")


def check_whole(name: str, value: Any, least: int, most: int | None = None) -> None:
    """Checks a whole number that a caller gives.

    Args:
        name: What the caller calls it.
        value: What was given.
        least: The least that it may be.
        most: The most that it may be, None for no bound.

    Raises:
        InputError: It is none, or out of these bounds.
    """
    whole = isinstance(value, Integral) and not isinstance(value, bool)
    if not whole or value < least or (most is not None and value > most):
        wanted = f"{least} or more" if most is None else f"{least} to {most}"
        raise InputError(f"{name} is {value!r:.80}; give {'' if whole else 'a whole number, '}{wanted}.")


def chosen_dtype(dtype: torch.dtype | str | None, recorded: str) -> torch.dtype:
    """Returns what to compute in: what is asked for, by itself or by its name, or else what the member records.

    Raises:
        InputError: It is no type of `DTYPES`.
    """
    wanted = recorded if dtype is None else dtype
    found = DTYPES.get(wanted) if isinstance(wanted, str) else wanted
    if found is None or found not in DTYPES.values():
        raise InputError(f"dtype is {dtype!r:.80}; give one of {', '.join(DTYPES)}, or None for {recorded}.")
    return found


def chosen_device(device: torch.device | str | int | None) -> torch.device:
    """Returns the device to run on, None for the processor.

    Raises:
        InputError: There is no such device here, or it holds no numbers.
    """
    if device is None:
        return torch.device("cpu")
    try:
        found = torch.device(device)
        torch.empty(1, device=found).tolist()  # only what is tried tells: each kind of device has its own way to fail
    except (RuntimeError, AssertionError, TypeError, ValueError, ImportError) as error:
        said = (str(error).strip().splitlines() or [""])[0][:200].rstrip(".")
        raise InputError(
            f"device is {device!r:.80}, which cannot be used here: {said}. Give one that torch has, like 'cpu' or "
            f"'cuda:0', or None for the processor."
        ) from error
    return found


def count_rows(inputs: Mapping[str, Tensor]) -> int:
    """Returns the rows of a batch of model inputs.

    Raises:
        InputError: There are none, something is no tensor, or the inputs differ in how many there are.
    """
    strange = next((name for name, value in inputs.items() if not isinstance(value, Tensor) or not value.ndim), None)
    if strange is not None:
        raise InputError(f"The input '{strange}' is no tensor [batch, ...]; tokenize with return_tensors='pt'.")
    sizes = {name: len(value) for name, value in inputs.items()}
    rows = next(iter(sizes.values()), 0)
    if set(sizes.values()) - {rows}:
        told = ", ".join(f"'{name}' has {size}" for name, size in sizes.items())
        raise InputError(f"The inputs are of batches that differ in rows: {told}. Give them of the same rows.")
    if not rows:
        raise InputError("The batch is empty: give the inputs of at least one row.")
    return rows
