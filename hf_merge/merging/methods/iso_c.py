"""Iso-C: the sum of the task vectors with a flat spectrum.

The few directions that tasks share dominate the sum. Every singular value is replaced by the mean of all of them, so
that directions of single tasks count as much. The mean is over the directions in which there is a change: in a sum of
full rank that is all of them, and the update of a low-rank adapter is not thinned out over directions that it lacks.
The authors choose the scale on validation data; 1 is the plain choice without.

A merged adapter is cut back to the rank of its members. Of a flat spectrum any part of that rank is as near as any
other, so the cut keeps an arbitrary part of the tasks: for adapters rather take another method.

Source: No Task Left Behind, arXiv 2502.04959.
"""

from collections.abc import Iterable

from torch import Tensor

from hf_merge.merging.methods import Member, MergeMethod
from hf_merge.merging.methods._spectra import TaskMatrices, leading, merge_matrices
from hf_merge.merging.settings import Hyperparameter, Settings


def merge(base: Tensor, members: Iterable[Member], settings: Settings) -> Tensor:
    """Returns the base plus the scaled sum with equal singular values, float32 and shaped like `base`.

    Args:
        base: A tensor in its own shape, float32, only read; what is no matrix is averaged.
        members: The group.
        settings: `scale`.
    """
    return merge_matrices(base, members, float(settings["scale"]), _merged)


def _merged(vectors: TaskMatrices) -> Tensor:
    """Returns the merged task vector, [out, in] float64."""
    summed, _ = vectors.sum()
    left, values, right = leading(summed, min(vectors.shape))
    return left @ (values.sum() / max(len(values), 1) * right.T)


METHOD = MergeMethod(
    name="iso_c",
    merge=merge,
    hyperparameters=(
        Hyperparameter("scale", 1.0, low=0.0, high=10.0, help="What the flattened sum is multiplied by."),
    ),
    source="https://arxiv.org/abs/2502.04959",
    summary="The sum of the task vectors with every singular value replaced by their mean.",
    shaped=True,
)
