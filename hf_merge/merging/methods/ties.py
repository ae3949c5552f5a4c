"""TIES: trim each task vector to its largest entries, elect a sign per entry, merge the entries of that sign.

Defaults are the authors' recipe without validation data: the largest 20 % of the entries, the disjoint mean, scale 1.
The authors' threshold spans the whole model; here it spans the component (`scope: component`), as in MERGE, or one
tensor. `combine: sum` with `scale: 0.3` is the variant of AdaMerging and FusionBench.

Source: TIES-Merging, arXiv 2306.01708.
"""

from collections.abc import Iterable

from torch import Tensor

from hf_merge.merging.methods import SCOPE, Member, MergeMethod
from hf_merge.merging.methods._election import elect
from hf_merge.merging.methods._selection import keep_ranks_, portion
from hf_merge.merging.methods._task_vectors import step, task_vectors
from hf_merge.merging.settings import Hyperparameter, Settings


def merge(base: Tensor, members: Iterable[Member], settings: Settings) -> Tensor:
    """Returns the base plus the scaled disjoint mean or sum of the trimmed task vectors, [n] float32.

    Exactly `max(1, floor(density * n))` entries of each task vector stay, equal magnitudes by index. Where the trimmed
    entries sum to zero, no sign is elected and the base stays.

    Args:
        base: [n] float32, only read.
        members: The group, at most 255 members.
        settings: `density`, `scale`, `combine`; `scope` is the caller's, who decides what n spans.
    """
    kept = max(1, portion(base.numel(), float(settings["density"])))
    trimmed = (keep_ranks_(vector, 0, kept) for vector in task_vectors(base, members))
    return step(base, elect(trimmed, base, mean=settings["combine"] == "mean"), float(settings["scale"]))


METHOD = MergeMethod(
    name="ties",
    merge=merge,
    hyperparameters=(
        Hyperparameter(
            "density", 0.2, low=0.001, high=1.0, help="The fraction of each task vector's entries that stays."
        ),
        Hyperparameter("scale", 1.0, low=0.0, high=10.0, help="What the merged task vector is multiplied by."),
        Hyperparameter(
            "combine",
            "mean",
            choices=("mean", "sum"),
            help="Whether entries of the elected sign are averaged or added.",
        ),
        SCOPE,
    ),
    source="https://arxiv.org/abs/2306.01708",
    summary="Trim task vectors to their largest entries, elect a sign per entry, average the entries of that sign.",
    scoped=True,
)
