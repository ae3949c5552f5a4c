"""Fisher merging: every weight is averaged, each fine-tune counting as much as its loss depends on that weight.

The importance of a weight is the diagonal of the Fisher information, of each fine-tune scaled to length one over its
whole backbone, so that no task speaks louder because its loss is larger; `floor` is added, so that a weight on which
no task depends becomes the plain mean. (The authors' option for a favourite floors that one alone; MergeLM and
FusionBench add the floor to all, as here.) What nothing was gathered of is averaged.

Source: Merging Models with Fisher-Weighted Averaging, arXiv 2111.09832.
"""

from collections.abc import Iterable

import torch
from torch import Tensor

from hf_merge.merging.methods import ROWS, Member, MergeMethod, Need
from hf_merge.merging.settings import Hyperparameter, Settings


def merge(base: Tensor, members: Iterable[Member], settings: Settings) -> Tensor:
    """Returns the members' weights averaged by importance, [n] float32.

    The average is taken over the changes, which is the same and loses no digits where weights hardly differ.

    Args:
        base: [n] float32, only read.
        members: The group, with the squared gradients of each.
        settings: `floor`; `rows` is the caller's.
    """
    floor = float(settings["floor"])
    weighted, importance = (torch.zeros(base.shape, dtype=torch.float64) for _ in range(2))
    for member in members:
        found = member.gathered
        own = torch.full_like(weighted, floor) if found is None else found.values.reshape(-1).double() + floor
        importance += own
        weighted += own.mul_(member.weights.sub_(base))
    return base + torch.where(importance > 0, weighted / importance, 0.0).float()


METHOD = MergeMethod(
    name="fisher",
    merge=merge,
    hyperparameters=(
        Hyperparameter("floor", 1e-6, low=1e-12, high=1.0, help="The least importance that a weight has."),
        ROWS,
    ),
    source="https://arxiv.org/abs/2111.09832",
    summary="Average every weight, each fine-tune counting by its Fisher information there.",
    needs=Need.SQUARED_GRADIENTS,
)
