"""DARE: drop entries of each task vector at random and rescale the rest, so that the expected vector is unchanged.

Every entry survives with probability `density` and is divided by it. `combine: sum` then is task arithmetic, hence the
same default scale 0.4; the default density 0.5 is the middle of the authors' grid (they drop 0.1 to 0.9) and
FusionBench's default. `combine: ties` trims what survived to its largest `trim` of all entries and elects signs (the
authors' DARE with TIES); scale 1 suits it.

Source: Language Models are Super Mario, arXiv 2311.03099.
"""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from hf_merge.merging.methods import SCOPE, Member, MergeMethod
from hf_merge.merging.methods._election import COMBINE, combine
from hf_merge.merging.methods._selection import keep_ranks_, portion
from hf_merge.merging.methods._task_vectors import BLOCK, step, subtract_
from hf_merge.merging.settings import Hyperparameter, Settings


def merge(base: Tensor, members: Iterable[Member], settings: Settings) -> Tensor:
    """Returns the base plus the scaled combination of the thinned and rescaled task vectors, [n] float32.

    A member's random choices depend on its seed alone, not on the other members nor on their order.

    Args:
        base: [n] float32, only read.
        members: The group; at most 255 members for `combine: ties`.
        settings: `density`, `scale`, `combine`, `trim`; `scope` is the caller's, who decides what n spans.
    """
    density, rule = float(settings["density"]), str(settings["combine"])
    survivors = _survivors(base, members, density)
    if rule == "ties":
        kept = max(1, portion(base.numel(), float(settings["trim"])))
        survivors = (keep_ranks_(vector, 0, kept) for vector in survivors)
    # Sum, mean and election all commute with a common factor, so the rescaling waits for the last step.
    return step(base, combine(survivors, base, rule), float(settings["scale"]) / density)


def _survivors(base: Tensor, members: Iterable[Member], density: float) -> Iterator[Tensor]:
    """Yields each member's task vector [n] float32 with dropped entries zero, not yet rescaled."""
    for member in members:
        generator = torch.Generator().manual_seed(member.seed)
        vector = subtract_(member.weights, base)
        for block in torch.split(vector, BLOCK):  # the numbers drawn do not depend on the size of blocks
            entries = block.numpy()
            entries *= torch.rand(block.numel(), generator=generator).numpy() < density
        yield vector


METHOD = MergeMethod(
    name="dare",
    merge=merge,
    hyperparameters=(
        Hyperparameter(
            "density", 0.5, low=0.001, high=1.0, help="The probability that an entry stays; it is divided by it."
        ),
        Hyperparameter("scale", 0.4, low=0.0, high=10.0, help="What the combined task vector is multiplied by."),
        COMBINE,
        Hyperparameter(
            "trim", 0.2, low=0.001, high=1.0, help="With `combine: ties`, the fraction of all entries that stays."
        ),
        SCOPE,
    ),
    source="https://arxiv.org/abs/2311.03099",
    summary="Drop entries of each task vector at random, rescale the rest, add.",
    scoped=True,
)
