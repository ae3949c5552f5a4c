"""The range of a unit: its extremes, whether they are finite, and whether merging made it wider (Eq. 6)."""

import numpy as np
import torch
from torch import Tensor

from hf_merge.errors import NonFiniteWeights


# Models whose extremes sit at one element average to an equal range, which float rounding then tips either way.
_TOLERANCE = 1e-6


def is_within(low: Tensor, high: Tensor, mean_range: Tensor) -> bool:
    """Returns whether every unit's range is within the mean range of its sources: the criterion of Eq. 6."""
    return bool((high.double() - low.double() <= (1 + _TOLERANCE) * mean_range.double()).all())


def bounds(weight: Tensor, *, by_row: bool = False) -> tuple[Tensor, Tensor]:
    """Returns the smallest and the largest weight, NaN included: scalars, or [rows] by row (the first axis)."""
    if weight.numel() == 0:
        return torch.zeros(()), torch.zeros(())
    # In numpy, as the codec's blocks: torch would wake its threads twice per tensor, which costs ten times the work.
    values = weight.numpy() if weight.device.type == "cpu" else weight.cpu().numpy()
    axis = tuple(range(1, values.ndim)) if by_row else None
    return torch.from_numpy(np.asarray(values.min(axis))), torch.from_numpy(np.asarray(values.max(axis)))


def extremes(name: str, weight: Tensor, *, by_row: bool = False) -> tuple[Tensor, Tensor]:
    """Returns the smallest and the largest weight, float32: scalars, or [rows] by row (the first axis).

    Both are zero where there are no weights.

    Raises:
        NonFiniteWeights: A weight is NaN or infinite.
    """
    low, high = bounds(weight, by_row=by_row)
    if not bool(torch.isfinite(low).all() and torch.isfinite(high).all()):
        raise NonFiniteWeights(
            f"Tensor '{name}' holds NaN or infinity, which cannot be stored. Repair or leave out its checkpoint."
        )
    return low, high
