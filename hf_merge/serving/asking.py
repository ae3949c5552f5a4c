"""What a caller asks for, checked: names of tasks become numbers, batches are counted."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from hf_merge.errors import InputError, nearest
from hf_merge.storing.chains import ChainMap


def task_numbers(task: str | Sequence[str], rows: int, tasks: Sequence[str], chain_map: ChainMap) -> Tensor:
    """Returns the task of each row, [rows] int64, as indices of `tasks`.

    Args:
        task: The task of all rows, or of each.
        rows: How many rows there are.
        tasks: The tasks that were loaded.
        chain_map: What else there is.

    Raises:
        InputError: A task is unknown or was not loaded, or there are not as many as rows.
    """
    names = [task] * rows if isinstance(task, str) else list(task)
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
    if not 0 < claim <= 1:
        raise InputError(f"claim is {claim}; give a probability above 0 and at most 1, like 0.9.")
    if task is not None:
        raise InputError("claim is for inputs that are routed, and here the task is named: leave one of the two out.")


def count_rows(inputs: Mapping[str, Tensor]) -> int:
    """Returns the rows of a batch of model inputs.

    Raises:
        InputError: There are none, or something is no tensor.
    """
    strange = next((name for name, value in inputs.items() if not isinstance(value, Tensor) or not value.ndim), None)
    if strange is not None:
        raise InputError(f"The input '{strange}' is no tensor [batch, ...]; tokenize with return_tensors='pt'.")
    rows = len(next(iter(inputs.values()), ()))
    if not rows:
        raise InputError("The batch is empty: give the inputs of at least one row.")
    return rows
