"""Components: tensor names cut into an exact partition, by rule rather than by architecture.

The rule reads a tensor's path on disk. The first number inside it is the block (its depth). Inside a block a tensor is
a norm (or a gain), attention, or mlp; outside every block it is a norm or an embedding, where embedding also takes
poolers and projections. The paper's components are these four types, each over all layers: its published costs come
out only so.

Source: MERGE, arXiv 2602.06552, section on decomposition; docs/adr/0003-components-by-rule.md.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import prod

from hf_merge.errors import RecipeError, nearest


Shape = tuple[int, ...]

ROLES = ("embedding", "attention", "mlp", "norm")
GRANULARITIES = ("model", "layer", "type", "type-stage", "type-layer")

_NORM = re.compile(r"norm|^ln(_|\d|$)|layer_?scale|^ls\d|^(gamma|lambda)_?\d")
_ATTENTION = re.compile(r"attn|attention")
_BEFORE_BLOCKS = re.compile(r"embed|(^|[._])pre([._]|$)")
# Bare position and class parameters stay at full precision, and so does CLIP's table (`position_embedding`, singular):
# the published ViT costs come out only so. BERT's `position_embeddings.weight` and GPT-2's `wpe.weight` are quantised.
_KEPT = re.compile(
    r"(^|\.)(class_embedding|cls_token|mask_token|positional_embedding|position_embeddings?|pos_embed|"
    r"position_embedding\.weight)$"
)
# One row makes a vector of no table: the published RoBERTa costs count its token types, [1, 768], as quantised.
_TABLE = re.compile(r"embeddings\.weight$")


@dataclass(frozen=True)
class Component:
    """A set of tensors that moves as one.

    Attributes:
        name: What the component is called in `chains.json`: `attention`, `mlp.1`, `layer.0`.
        tensors: The names of its tensors on disk, sorted.
    """

    name: str
    tensors: tuple[str, ...]


def depth_of(name: str) -> int | None:
    """Returns the block that a tensor belongs to, counted from 0, or None outside every block."""
    segments = name.split(".")
    return next((int(segment) for segment in segments[1:-1] if segment.isdecimal()), None)


def role_of(name: str) -> str:
    """Returns the role of a tensor, one of `ROLES`, read off its name on disk."""
    segments = name.lower().split(".")
    if any(_NORM.search(segment) for segment in segments):
        return "norm"
    if depth_of(name) is None:
        return "embedding"
    return "attention" if any(_ATTENTION.search(segment) for segment in segments) else "mlp"


def keeps_full_precision(name: str, shape: Shape) -> bool:
    """Returns whether a tensor is never quantised: vectors of any rank, and bare position or class parameters.

    A vector is a tensor with `numel == max(shape)`, so the two-dimensional (IA)3 vectors of peft count as vectors; an
    embedding table of one row does not.
    """
    is_vector = prod(shape) == max(shape, default=1) and not (len(shape) == 2 and _TABLE.search(name))
    return is_vector or _KEPT.search(name) is not None


def require_granularity(granularity: str) -> None:
    """Raises RecipeError, naming the nearest, unless `granularity` is one of `GRANULARITIES`."""
    if granularity not in GRANULARITIES:
        raise RecipeError(f"Unknown granularity '{granularity}'.{nearest(granularity, GRANULARITIES)}")


def decompose(names: Iterable[str], granularity: str, *, stages: int = 3) -> tuple[Component, ...]:
    """Returns the components of a backbone: an exact partition of `names`, in forward order.

    Args:
        names: The backbone's tensor names on disk.
        granularity: One of `GRANULARITIES`: `model` (one component), `layer` (one per block, and the stem), `type`
            (one per role, the paper's), `type-stage` (role x contiguous depth stages), `type-layer` (role x block).
        stages: How many depth stages `type-stage` cuts the blocks into; at least 1.

    Raises:
        RecipeError: The granularity is unknown, or `stages` is below 1.
    """
    require_granularity(granularity)
    if stages < 1:
        raise RecipeError(f"stages is {stages}; a depth stage needs at least 1.")
    ordered = sorted(set(names))
    depths = sorted({depth for name in ordered if (depth := depth_of(name)) is not None})
    cut: dict[tuple[int, int, str], list[str]] = {}
    for name in ordered:
        cut.setdefault(_place(name, granularity, depths, stages), []).append(name)
    return tuple(Component(label, tuple(tensors)) for (_, _, label), tensors in sorted(cut.items()))


def _place(name: str, granularity: str, depths: Sequence[int], stages: int) -> tuple[int, int, str]:
    """Returns (stage, rank of the role, component name) of a tensor; components are sorted by it."""
    if granularity == "model":
        return 0, 0, "model"
    depth, role = depth_of(name), role_of(name)
    if granularity == "layer":
        return (0, 0, "stem") if depth is None else (depth + 1, 0, f"layer.{depth}")
    rank = ROLES.index(role)
    if granularity == "type" or role == "embedding":
        return 0, rank, role
    if depth is None:  # a norm before the first or after the last block joins the stage it runs beside
        position = 0 if _BEFORE_BLOCKS.search(name.lower()) else max(len(depths) - 1, 0)
    else:
        position = depths.index(depth)
    stage = position if granularity == "type-layer" else position * min(stages, len(depths)) // max(len(depths), 1)
    return stage, rank, f"{role}.{stage}"
