"""TSV-Merge: of each task vector the leading singular triplets, turned so that tasks do not overlap.

Of T task vectors of rank r each keeps its `r / T` leading triplets (at least one). Side by side their singular vectors
are not orthogonal, which is how tasks interfere; both sides are replaced by the nearest orthonormal ones, and the
triplets multiplied out again. The authors choose the scale on validation data from 0 to 3; 1 is their choice without.

Where singular vectors of two tasks coincide there is no nearest orthonormal set. Here they share a direction, in which
the tasks are then averaged.

Source: Task Singular Vectors, arXiv 2412.00081.
"""

from collections.abc import Iterable

from torch import Tensor

from hf_merge.merging.methods import Member, MergeMethod
from hf_merge.merging.methods._spectra import TaskMatrices, joined, leading, merge_matrices, whitening
from hf_merge.merging.settings import Hyperparameter, Settings


def merge(base: Tensor, members: Iterable[Member], settings: Settings) -> Tensor:
    """Returns the base plus the scaled product of the orthogonalised triplets, float32 and shaped like `base`.

    The triplets of all members together take the memory of one task vector in float64.

    Args:
        base: A tensor in its own shape, float32, only read; what is no matrix is averaged.
        members: The group, gone through twice.
        settings: `scale`.
    """
    return merge_matrices(base, members, float(settings["scale"]), _merged)


def _merged(vectors: TaskMatrices) -> Tensor:
    """Returns the merged task vector, [out, in] float64."""
    kept = max(1, min(vectors.shape) // sum(1 for _ in vectors))
    triplets = [leading(vector, kept) for vector in vectors]
    left, values, right = joined(triplets)
    return left @ (whitening(left) * values @ whitening(right) @ right.T)


METHOD = MergeMethod(
    name="tsv",
    merge=merge,
    hyperparameters=(
        Hyperparameter("scale", 1.0, low=0.0, high=10.0, help="What the merged task vector is multiplied by."),
    ),
    source="https://arxiv.org/abs/2412.00081",
    summary="Keep the leading singular triplets of each task vector, make those of all tasks orthogonal, add.",
    shaped=True,
)
