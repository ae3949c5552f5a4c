"""Task arithmetic (Eq. 2, 5): the base plus the scaled sum of the task vectors.

The scale is that of the whole group and is not divided by its size, as in MERGE. Its default 0.4 is the value
recommended without validation data, and the one that MERGE's published rows for task arithmetic come out with (arXiv
2602.06552); 0.3 is the other common choice.

Source: Editing Models with Task Arithmetic, arXiv 2212.04089.
"""

from collections.abc import Iterable

from torch import Tensor

from hf_merge.merging.methods import Member, MergeMethod
from hf_merge.merging.methods._task_vectors import step, task_vectors, total
from hf_merge.merging.settings import Hyperparameter, Settings


def merge(base: Tensor, members: Iterable[Member], settings: Settings) -> Tensor:
    """Returns `base + scale * sum(member - base)`, [n] float32.

    Args:
        base: [n] float32, only read.
        members: The group, added in this order.
        settings: `scale`.
    """
    direction, _ = total(task_vectors(base, members), base)
    return step(base, direction, float(settings["scale"]))


METHOD = MergeMethod(
    name="task_arithmetic",
    merge=merge,
    hyperparameters=(
        Hyperparameter("scale", 0.4, low=0.0, high=10.0, help="What the sum of the task vectors is multiplied by."),
    ),
    source="https://arxiv.org/abs/2212.04089",
    summary="The base plus the scaled sum of the task vectors.",
    linear=True,
)
