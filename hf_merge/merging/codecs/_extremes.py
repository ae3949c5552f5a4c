"""The smallest and largest weight of a unit, which also tell whether all weights are finite."""

import numpy as np
import torch
from torch import Tensor

from hf_merge.errors import NonFiniteWeights


def extremes(name: str, weight: Tensor, *, by_row: bool = False) -> tuple[Tensor, Tensor]:
    """Returns the smallest and the largest weight, float32: scalars, or [rows] by row (the first axis).

    Both are zero where there are no weights.

    Raises:
        NonFiniteWeights: A weight is NaN or infinite.
    """
    if weight.numel() == 0:
        return torch.zeros(()), torch.zeros(())
    # In numpy, as the blocks of the codec: torch would wake its threads twice per tensor, ten times the work when busy.
    values = weight.numpy() if weight.device.type == "cpu" else weight.cpu().numpy()
    axis = tuple(range(1, values.ndim)) if by_row else None
    low, high = torch.from_numpy(np.asarray(values.min(axis))), torch.from_numpy(np.asarray(values.max(axis)))
    if not bool(torch.isfinite(low).all() and torch.isfinite(high).all()):
        raise NonFiniteWeights(
            f"Tensor '{name}' holds NaN or infinity, which cannot be stored. Repair or leave out its checkpoint."
        )
    return low, high
