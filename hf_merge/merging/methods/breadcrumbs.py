"""Model Breadcrumbs: leave out both the largest and the small entries of each task vector.

In the authors' order: first the largest `gamma` of the entries are dropped, then the largest of the rest are kept
until `density` of *all* entries are kept. With n entries the kept ranks are `floor(gamma n) + 1 .. floor(gamma n) +
floor(density n)`.

Defaults are the point where the authors' own search starts: scale 0.2, density 0.15, gamma 0.006. The authors' code
ranks inside each row of a tensor, their paper inside each layer; here ranks span the component (`scope: component`) or
one tensor.

Source: Model Breadcrumbs, arXiv 2312.06795; defaults from https://github.com/rezazzr/breadcrumbs,
find_best_hyperparam.py.
"""

from collections.abc import Iterable

from torch import Tensor

from hf_merge.merging.methods import SCOPE, Member, MergeMethod
from hf_merge.merging.methods._election import COMBINE, combine
from hf_merge.merging.methods._selection import keep_ranks_, portion
from hf_merge.merging.methods._task_vectors import step, task_vectors
from hf_merge.merging.settings import Hyperparameter, Settings


def merge(base: Tensor, members: Iterable[Member], settings: Settings) -> Tensor:
    """Returns the base plus the scaled combination of the masked task vectors, [n] float32.

    Exactly `floor(gamma * n)` entries are dropped from the top and `max(1, floor(density * n))` are kept after them
    (fewer where fewer are left), equal magnitudes by index.

    Args:
        base: [n] float32, only read.
        members: The group; at most 255 members for `combine: ties`.
        settings: `density`, `gamma`, `scale`, `combine`; `scope` is the caller's, who decides what n spans.
    """
    entries = base.numel()
    dropped = portion(entries, float(settings["gamma"]))
    kept = max(1, portion(entries, float(settings["density"])))
    masked = (keep_ranks_(vector, dropped, kept) for vector in task_vectors(base, members))
    return step(base, combine(masked, base, str(settings["combine"])), float(settings["scale"]))


METHOD = MergeMethod(
    name="breadcrumbs",
    merge=merge,
    hyperparameters=(
        Hyperparameter(
            "density", 0.15, low=0.001, high=1.0, help="The fraction of all entries that stays, after the largest."
        ),
        Hyperparameter(
            "gamma", 0.006, low=0.0, high=0.5, help="The fraction of all entries that is dropped as outliers."
        ),
        Hyperparameter("scale", 0.2, low=0.0, high=10.0, help="What the combined task vector is multiplied by."),
        COMBINE,
        SCOPE,
    ),
    source="https://arxiv.org/abs/2312.06795",
    summary="Drop the largest and the small entries of each task vector, add what is left.",
    scoped=True,
)
