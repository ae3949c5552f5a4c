"""Blocks: how deep in a model a tensor stands, read off the numbers in its name.

A name is a path, and a number inside it is a place in a list of modules. Most lists are stacks of blocks, and the
number is the depth. Some are lists of stages with a stack in each (`stages.2.layers.5`); then both numbers make the
depth. And some are no stacks at all: experts, the layers of a head, a neck, an embedding.
"""

import re
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass


# Lists whose items are no blocks, by the name of the list ...
_NO_STACK = re.compile(
    r"expert|embed|patch|proj|mlps?$|convs?\d?$|quantiz|(^|_)heads?(_|$)|merger|(down|up)sampl|fpn|(^|_)pan_|"
    r"lateral|^input_|^enc_out|pool|codebook|^neck$|bias(es)?$|bottleneck|^backbone$"
)
# ... and by what the path has passed before: numbered layers in there are parts of one small module.
_NO_STACK_INSIDE = re.compile(
    r"(^|_)heads?($|_)|subsampl|feature_extractor|quantiz|_scale$|postnet|pos_conv|(^|_)mlp$|mask_embed|fpn|^neck$|"
    r"(duration|pitch|energy)_predictor|_downsampler$"
)
# What may follow the number of a stage and be a stack: `stages.2.layers.5`, `layer.2.transformer.layer.0`.
_INNER_STACK = re.compile(r"(layer|block|stage|unit)s?$")
_NO_INNER_STACK = re.compile(r"expert|attn|attention|mlp|ffn|feed_?forward|sampl|shortcut|norm|conv|aggregat")
# T5's blocks consist of layers, Encodec's layers of blocks: sublayers, not a stack.
_SUBLAYERS = frozenset({("block", "layer"), ("blocks", "layer"), ("layers", "block"), ("layers", "layer")})
_BARE = {("weight",), ("bias",)}
_CLOSING_NORM = re.compile(r"^(layer_?)?norm$")


@dataclass(frozen=True)
class Path:
    """A tensor's name on disk, taken apart; segments are in lower case.

    Attributes:
        before: The segments before the stack of blocks, or all of them outside every stack.
        stack: What the list of blocks is called, and the way from a stage to the list inside it (`layers`, `blocks`);
            empty outside every stack.
        position: The number of the block, or those of stage and block; empty outside every stack.
        inside: The segments after the numbers.
    """

    before: tuple[str, ...]
    stack: tuple[str, ...] = ()
    position: tuple[int, ...] = ()
    inside: tuple[str, ...] = ()

    @property
    def segments(self) -> tuple[str, ...]:
        """All segments but the numbers of the block."""
        return (*self.before, *self.stack, *self.inside)

    @property
    def bare(self) -> bool:
        """Whether the numbered item is one bare layer, as in `layer_norm1.3.weight`: hardly a block."""
        return self.inside in _BARE

    @property
    def in_block(self) -> bool:
        """Whether the name alone says that the tensor belongs to a block."""
        return bool(self.position) and self.inside not in _BARE


def path_of(name: str) -> Path:
    """Returns a tensor's name on disk, taken apart."""
    segments = tuple(name.lower().split("."))
    for index in range(1, len(segments) - 1):
        if segments[index].isdecimal() and _is_stack(segments[:index]):
            end = _end_of_position(segments, index)
            position = tuple(int(segments[place]) for place in sorted({index, end - 1}))
            stack = (segments[index - 1], *segments[index + 1 : end - 1])
            return Path(segments[: index - 1], stack, position, segments[end:])
    return Path(segments)


def depth_of(name: str) -> int | None:
    """Returns the number of the block or stage that a tensor's name on disk gives, or None outside every block."""
    path = path_of(name)
    return path.position[0] if path.in_block else None


def depths(paths: Mapping[str, Path]) -> dict[str, int | None]:
    """Returns the depth of every tensor within its stack, rising in the order of execution; None outside every block.

    Blocks that are simply numbered keep their number; blocks inside stages are counted through. What a stage holds
    beside its blocks (mostly what reduces the resolution) belongs to the first of them; a norm, and what only the last
    stage lacks, to the last. A list of bare layers counts where it runs along a stack: XLM keeps its blocks' norms so.

    Args:
        paths: The model's tensors: name on disk, and the same taken apart.
    """
    alongside = _bare_lists_alongside(paths.values())
    positions: dict[tuple[str, ...], dict[str, tuple[int, ...]]] = {}
    for name, path in paths.items():
        if path.in_block or (path.before, path.stack) in alongside:
            positions.setdefault(path.before, {})[name] = path.position
    found: dict[str, int | None] = dict.fromkeys(paths)
    for stack in positions.values():
        found |= _counted({name: paths[name] for name in stack}, stack)
    return found


def _counted(paths: Mapping[str, Path], positions: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    """Returns the depth of every tensor in the stacks of one module."""
    staged = {position[0] for position in positions.values() if len(position) > 1}
    if not staged:
        return {name: position[0] for name, position in positions.items()}
    beside = {name for name, position in positions.items() if len(position) == 1 and position[0] in staged}
    closing = _closing((paths[name] for name in beside), staged)
    blocks = sorted({position for name, position in positions.items() if name not in beside})
    rank = {position: depth for depth, position in enumerate(blocks)}
    first = {block[0]: rank[block] for block in reversed(blocks)}
    last = {block[0]: rank[block] for block in blocks}
    return {
        name: (last if _part(paths[name]) in closing else first)[position[0]] if name in beside else rank[position]
        for name, position in positions.items()
    }


def _is_stack(segments: tuple[str, ...]) -> bool:
    """Returns whether the list that a path has come to is a stack of blocks."""
    if segments[-1].isdecimal() or _NO_STACK.search(segments[-1]):
        return False
    return not any(_NO_STACK_INSIDE.search(segment) for segment in segments)


def _end_of_position(segments: tuple[str, ...], index: int) -> int:
    """Returns the index after the numbers of the block, the first of which stands at `index`."""
    inner = next((place for place in range(index + 1, len(segments) - 1) if segments[place].isdecimal()), None)
    if inner == index + 1:
        return inner + 1
    if inner is None or segments[inner + 1 :] in _BARE or not _INNER_STACK.search(segments[inner - 1]):
        return index + 1
    is_part = any(_NO_INNER_STACK.search(segment) for segment in segments[index + 1 : inner])
    return index + 1 if is_part or (segments[index - 1], segments[inner - 1]) in _SUBLAYERS else inner + 1


def _bare_lists_alongside(paths: Iterable[Path]) -> set[tuple[tuple[str, ...], tuple[str, ...]]]:
    """Returns the lists of bare layers that are as long as a stack of blocks in the same module."""
    stacks: dict[tuple[tuple[str, ...], tuple[str, ...]], set[int]] = {}
    bare: dict[tuple[tuple[str, ...], tuple[str, ...]], set[int]] = {}
    for path in paths:
        if path.position:
            kind = bare if path.bare else stacks
            kind.setdefault((path.before, path.stack), set()).add(path.position[0])
    lengths = {(before, frozenset(numbers)) for (before, _), numbers in stacks.items()}
    return {key for key, numbers in bare.items() if (key[0], frozenset(numbers)) in lengths}


def _closing(beside: Iterable[Path], stages: Set[int]) -> set[str]:
    """Returns what a stage holds beside its blocks and runs after them: a norm, and what only the last stage lacks."""
    holders: dict[str, set[int]] = {}
    for path in beside:
        holders.setdefault(_part(path), set()).add(path.position[0])
    first, last = min(stages), max(stages)
    return {
        part for part, held in holders.items() if _CLOSING_NORM.search(part) or (first in held and last not in held)
    }


def _part(path: Path) -> str:
    """Returns what a stage's own tensor belongs to: a module of the stage, or a list along the stages."""
    return path.stack[-1] if path.bare else path.inside[0]
