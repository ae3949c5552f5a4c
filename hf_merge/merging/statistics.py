"""Statistics of batch normalisation: what a model measured of its inputs, which is no weight and has no direction.

A task vector of a running mean or variance means nothing, and scaled or trimmed like one a variance can fall below 0.
So the statistics of a group are those of its members' inputs taken together: who sees each member's inputs equally
often sees the mean of their means, and the mean of their variances plus the variance of their means. Of one member
that is its own. What the merged weights would really give is known only after a pass over data, and none is asked for.

Source: the law of total variance; Chan, Golub and LeVeque 1979, Updating formulae and a pairwise algorithm for
computing sample variances; that merged networks have statistics of their own: REPAIR, arXiv 2211.08403.
"""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor


_MEAN, _VARIANCE = "running_mean", "running_var"


def is_statistic(name: str) -> bool:
    """Returns whether a tensor, by its name on disk, is a running mean or variance."""
    return name.rpartition(".")[2] in (_MEAN, _VARIANCE)


def units_of(names: Iterable[str]) -> list[tuple[str, ...]]:
    """Returns the statistics among names, a layer's mean and variance together and in this order."""
    layers: dict[str, list[str]] = {}
    for name in sorted(name for name in names if is_statistic(name)):
        layers.setdefault(name.rpartition(".")[0], []).append(name)
    return [tuple(layer) for layer in layers.values()]


def pooled(names: Sequence[str], members: Sequence[Tensor]) -> Tensor:
    """Returns the statistics of inputs that come from each member equally often, [n] float32.

    Args:
        names: What is pooled, as `units_of` returns it: a mean and its variance, or one of them without the other.
        members: For each member its statistics [n] float32, one after the other in the order of `names`.
    """
    stacked = torch.stack(list(members)).double()
    result = stacked.mean(dim=0)
    if len(names) == 2:
        width = stacked.shape[1] // 2
        result[width:] += stacked[:, :width].var(dim=0, correction=0)
    return result.float()
