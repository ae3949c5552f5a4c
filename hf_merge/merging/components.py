"""Components: tensor names cut into an exact partition, by rule rather than by architecture.

The rule reads a tensor's path on disk: which tower it belongs to (none, in most models), in which block it stands, and
what it does there. The paper's components are types of layer, each over all blocks: its published costs come out only
so.

Source: MERGE, arXiv 2602.06552, section on decomposition; docs/adr/0003-components-by-rule.md, 0009-roles-by-rule.md.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from typing import TypeAlias

from hf_merge.errors import RecipeError, nearest
from hf_merge.merging.blocks import depth_of, depths, path_of
from hf_merge.merging.roles import ROLES, role_of, roles_of
from hf_merge.merging.towers import TOWERS, rank_of, towers


__all__ = [
    "BASE", "GRANULARITIES", "ROLES", "Component", "Place", "Shape", "cut", "decompose", "depth_of",
    "keeps_full_precision", "places", "require_granularity", "role_of", "unplaced",
]  # fmt: skip

Shape = tuple[int, ...]

# What the base is called where tasks are adapters of it: one component that all of them share.
BASE = "base"
GRANULARITIES = ("model", "layer", "type", "type-stage", "type-layer")

_Rank: TypeAlias = tuple[tuple[int, ...], int, int]
_LAST = (len(TOWERS),)
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
        shared: Whether every task has the base's own weights here, as adapters leave them: one expert serves all.
        depths: How deep each of the tensors stands, from 0 in the first block to 1 in the last; what is no part of a
            block counts as the first or the last, whichever it runs beside. Empty where nobody asked.
    """

    name: str
    tensors: tuple[str, ...]
    shared: bool = False
    depths: tuple[float, ...] = ()


@dataclass(frozen=True)
class Place:
    """Where a tensor stands in its model, and what it does there.

    Attributes:
        tower: `vision`, `encoder`, `text.decoder`; empty in a model of one stack, and for what no tower owns.
        role: One of `ROLES`.
        depth: The block within its stack, rising in the order of execution; None outside every block.
    """

    tower: str
    role: str
    depth: int | None


_place = lru_cache(maxsize=2**14)(Place)  # of a million tensors a few hundred differ
_HEAD = Place("", "head", None)


def places(names: Iterable[str]) -> dict[str, Place]:
    """Returns where every tensor of a model stands; `other` is the role of those that the rule cannot place.

    Args:
        names: All names of the model's tensors on disk: what some mean shows only beside others.
    """
    paths = {name: path_of(name) for name in names}
    roles, tower_of, depth_in = roles_of(paths), towers(paths), depths(paths)
    return {
        name: _HEAD if role == "head" else _place(tower_of[name], role, depth_in[name]) for name, role in roles.items()
    }


def unplaced(placed: Mapping[str, Place]) -> tuple[str, ...]:
    """Returns the names of the tensors whose role the rule cannot tell; their components are called `other`."""
    return tuple(name for name, place in placed.items() if place.role == "other")


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
            Each tower has components of its own.
        stages: How many depth stages `type-stage` cuts the blocks of a tower into; at least 1.

    Raises:
        RecipeError: The granularity is unknown, or `stages` is below 1.
    """
    return cut(places(names), granularity, stages=stages)


def cut(placed: Mapping[str, Place], granularity: str, *, stages: int = 3) -> tuple[Component, ...]:
    """Returns the components of a backbone, as `decompose`, where it is known how its tensors stand.

    Raises:
        RecipeError: The granularity is unknown, or `stages` is below 1.
    """
    require_granularity(granularity)
    if stages < 1:
        raise RecipeError(f"stages is {stages}; a depth stage needs at least 1.")
    blocks: dict[str, set[int]] = {}
    for place in placed.values():
        if place.depth is not None:
            blocks.setdefault(place.tower, set()).add(place.depth)
    ordered = {tower: sorted(depths_in) for tower, depths_in in blocks.items()}
    keys: dict[tuple[Place, bool], tuple[_Rank, str]] = {}
    found: dict[tuple[_Rank, str], list[str]] = {}
    for name in sorted(placed):
        place = placed[name]
        is_first = place.depth is None and _BEFORE_BLOCKS.search(name.lower()) is not None
        key = keys.get((place, is_first))
        if key is None:
            key = _component(place, is_first, granularity, ordered.get(place.tower, []), stages)
            keys[place, is_first] = key
        found.setdefault(key, []).append(name)
    deep = {name: _depth(name, placed[name], ordered.get(placed[name].tower, [])) for name in placed}
    return tuple(
        Component(label, tuple(tensors), depths=tuple(deep[name] for name in tensors))
        for (_, label), tensors in sorted(found.items())
    )


def _depth(name: str, place: Place, blocks: Sequence[int]) -> float:
    """Returns how deep a tensor stands in its tower, in [0, 1]; `blocks` are the tower's."""
    if place.depth is not None:
        return blocks.index(place.depth) / max(len(blocks) - 1, 1)
    return 0.0 if place.role == "embedding" or _BEFORE_BLOCKS.search(name.lower()) else 1.0


def _component(
    place: Place, is_first: bool, granularity: str, blocks: Sequence[int], stages: int
) -> tuple[_Rank, str]:
    """Returns (rank of the tower, stage, rank of the role) and the name of a tensor's component.

    Components are sorted by it; `blocks` are the depths of the tensor's tower. A norm outside the blocks joins the
    stage that it runs beside: the first with `is_first`, else the last.
    """
    if granularity == "model":
        return ((), 0, 0), "model"
    tower, prefix = rank_of(place.tower), f"{place.tower}." if place.tower else ""
    if granularity == "layer":
        if place.depth is None:
            return (tower, 0, 0), f"{prefix}stem"
        return (tower, place.depth + 1, 0), f"{prefix}layer.{place.depth}"
    rank, label = ROLES.index(place.role), prefix + place.role
    if place.role == "head":
        return (_LAST, 0, rank), label
    if granularity == "type" or place.role == "embedding":
        return (tower, 0, rank), label
    outside = 0 if is_first else max(len(blocks) - 1, 0)
    position = outside if place.depth is None else blocks.index(place.depth)
    stage = position if granularity == "type-layer" else position * min(stages, len(blocks)) // max(len(blocks), 1)
    return (tower, stage, rank), f"{label}.{stage}"
