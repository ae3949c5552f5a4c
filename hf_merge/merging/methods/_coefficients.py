"""Task vectors times coefficients that were fitted: what the methods that learn them share.

A coefficient multiplies a tensor of a task vector, or a chunk of it: the tensor flattened and cut as `torch.chunk`
cuts it. Where none was fitted it is the scale that all of them started from, which is task arithmetic.
"""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from hf_merge.merging.methods import Member
from hf_merge.merging.methods._task_vectors import subtract_
from hf_merge.merging.settings import Settings


def merge(base: Tensor, members: Iterable[Member], settings: Settings) -> Tensor:
    """Returns the base plus the task vectors times their coefficients, float32 and shaped like `base`.

    Args:
        base: A tensor in its own shape, float32, only read.
        members: The group, with the coefficients [chunks] of each where there are any.
        settings: `scale`; the others are the fit's.
    """
    start, flat = torch.tensor([float(settings["scale"])]), base.reshape(-1)
    merged = torch.zeros_like(flat)
    for member in members:
        vector = subtract_(member.weights.reshape(-1), flat)
        add_scaled_(merged, vector, start if member.gathered is None else member.gathered.values)
    return merged.add_(flat).view(base.shape)


def add_scaled_(total: Tensor, vector: Tensor, coefficients: Tensor) -> None:
    """Adds a vector [n] times its coefficients [chunks] to `total` [n], chunk by chunk, all float32."""
    for part, chunk, coefficient in zip(
        chunks(total, len(coefficients)), chunks(vector, len(coefficients)), coefficients.tolist(), strict=False
    ):
        part.add_(chunk, alpha=coefficient)


def chunk_sums(values: Tensor, count: int) -> Tensor:
    """Returns the sums [count] float32 of the chunks of `values` [n]; those that do not exist are zero."""
    sums = torch.zeros(count)
    for index, part in enumerate(chunks(values, count)):
        sums[index] = part.sum()
    return sums


def chunks(values: Tensor, count: int) -> Sequence[Tensor]:
    """Returns views of `values` [n], cut into at most `count` chunks of one length but for the last."""
    return torch.chunk(values, count)
