"""Weight averaging (Eq. 1): the mean of the fine-tuned weights."""

from collections.abc import Iterable

from torch import Tensor

from hf_merge.merging.methods import Member, MergeMethod
from hf_merge.merging.methods._task_vectors import add_, divide_
from hf_merge.merging.settings import Settings


def merge(base: Tensor, members: Iterable[Member], settings: Settings) -> Tensor:
    """Returns the mean of the members' weights, [n] float32; the average of one member is that member exactly.

    Args:
        base: [n] float32, not used.
        members: The group, added in this order; at least one.
        settings: Empty.

    Raises:
        ValueError: There are no members.
    """
    merged, count = None, 0
    for member in members:
        merged = member.weights.clone() if merged is None else add_(merged, member.weights)
        count += 1
    if merged is None:
        raise ValueError("The average of no models is undefined: give at least one member.")
    return divide_(merged, count)


METHOD = MergeMethod(
    name="average",
    merge=merge,
    hyperparameters=(),
    source="https://arxiv.org/abs/2203.05482",
    summary="The mean of the fine-tuned weights.",
    linear=True,
)
