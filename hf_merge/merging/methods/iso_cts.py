"""Iso-CTS: Iso-C whose weakest directions make room for directions of single tasks.

Of the r directions of the sum of T task vectors the leading `common` fraction stays. The rest is given to the tasks,
`(r - floor(common r)) / T` directions to each, rounded; what rounding leaves over stays common. A task's own
directions are the leading ones of its task vector after the common left singular vectors are projected out. Together
both sides are made orthonormal, and every singular value becomes the mean of all. Where tasks get no direction, the
result is Iso-C.

Directions are output directions: a weight is [out, in], as in torch's linear layers. Weights stored as [in, out] (the
Conv1D of GPT-2) are taken as they lie, so that theirs are input directions. The authors choose the scale on validation
data; 1 is the plain choice without.

Source: No Task Left Behind, arXiv 2502.04959.
"""

from collections.abc import Iterable

from torch import Tensor

from hf_merge.merging.methods import Member, MergeMethod
from hf_merge.merging.methods._selection import portion
from hf_merge.merging.methods._spectra import (
    PRESENT,
    TaskMatrices,
    Triplets,
    joined,
    leading,
    merge_matrices,
    whitening,
)
from hf_merge.merging.settings import Hyperparameter, Settings


def merge(base: Tensor, members: Iterable[Member], settings: Settings) -> Tensor:
    """Returns the base plus the scaled common and specific directions, float32 and shaped like `base`.

    Args:
        base: A tensor in its own shape, float32, only read; what is no matrix is averaged.
        members: The group, gone through twice.
        settings: `common`, `scale`.
    """
    common = float(settings["common"])
    return merge_matrices(base, members, float(settings["scale"]), lambda vectors: _merged(vectors, common))


def _merged(vectors: TaskMatrices, fraction: float) -> Tensor:
    """Returns the merged task vector, [out, in] float64."""
    summed, count = vectors.sum()
    rank = min(vectors.shape)
    specific = min(round((rank - portion(rank, fraction)) / count), rank // count)
    common = leading(summed, rank - count * specific)
    del summed  # as large as a member in float64, and the residuals need that much themselves
    triplets = [common]
    if specific:
        triplets += [_specific(vector, common[0], specific) for vector in vectors]
    del common  # what the list alone holds is free once it is joined
    left, values, right = joined(triplets)
    mean = values.sum() / max(len(values), 1)
    return left @ (mean * whitening(left) @ whitening(right) @ right.T)


def _specific(vector: Tensor, common: Tensor, count: int) -> Triplets:
    """Returns the leading triplets of a task vector [out, in] outside the span of `common` [out, k], orthonormal."""
    residual = vector.double()
    floor = PRESENT * float(residual.norm())
    residual.addmm_(common, common.T @ residual, alpha=-1)
    return leading(residual, count, floor)


METHOD = MergeMethod(
    name="iso_cts",
    merge=merge,
    hyperparameters=(
        Hyperparameter(
            "common", 0.8, low=0.0, high=1.0, help="The fraction of the directions that all tasks have in common."
        ),
        Hyperparameter("scale", 1.0, low=0.0, high=10.0, help="What the flattened task vector is multiplied by."),
    ),
    source="https://arxiv.org/abs/2502.04959",
    summary="The leading directions of the sum and some of each task's own, all made equally long.",
    shaped=True,
)
