"""Towers: which part of a model of several stacks a tensor belongs to, read off its name on disk.

The way to each stack of blocks passes words such as `vision`, `text`, `encoder`, `decoder`. They make a tree; where it
branches, the branches are towers. Where it does not, the word is only what the module happens to be called: BERT's
`encoder` and OPT's `decoder` are no towers.

Source: docs/adr/0009-roles-by-rule.md.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache

from hf_merge.merging.blocks import Path


# A segment may say several: `text_encoder`.
_PATTERNS = tuple(
    (word, re.compile(pattern))
    for word, pattern in (
        ("multimodal", r"multimodal|cross_modal"),
        ("vision", r"vision|visual|image|(^|_)img(_|$)|(^|_)vit(_|$)|pixel_level|^(patch_encoder|sam_model)$"),
        ("video", r"video"),
        ("audio", r"audio|speech|acoustic|(^|_)asr(_|$)"),
        ("text", r"text|language|^llm$"),
        ("connector", r"qformer|perceiver|resampler|projector|connector|merger|adapter|aligner"),
        ("codec", r"codec|^vq|quantiz|vocoder"),
        ("backbone", r"^backbone"),
        ("predictor", r"^predictor$"),
        ("encoder", r"encoder"),
        ("decoder", r"decoder"),
    )
)
# In the order of a forward pass, as far as there is one.
TOWERS = (
    "backbone", "vision", "video", "audio", "encoder", "connector", "text", "multimodal", "predictor", "decoder",
    "codec",
)  # fmt: skip
_BESIDE_TEXT = {"vision", "video", "audio", "connector", "codec"}


@dataclass
class _Node:
    """A point of the tree: whether stacks stand here, and what branches off by which word."""

    stacked: bool = False
    branches: dict[str, "_Node"] = field(default_factory=dict)


def towers(paths: Mapping[str, Path]) -> dict[str, str]:
    """Returns the tower of every tensor, by name: `vision`, `text.decoder`; empty for what belongs to none.

    A model with one stack of blocks has no towers. In a model with several, what belongs to none is shared, or joins
    them (T5's embedding table, the projection between a vision tower and a language model).

    Args:
        paths: The tensors: name on disk, and the same taken apart.
    """
    words = {name: words_of(path) for name, path in paths.items()}
    root = _Node()
    for way in {words[name] for name, path in paths.items() if path.in_block}:
        node = root
        for word in way:
            node = node.branches.setdefault(word, _Node())
        node.stacked = True
    names = {way: _tower(root, way) for way in set(words.values())}
    return {name: names[way] for name, way in words.items()}


def words_of(path: Path) -> tuple[str, ...]:
    """Returns the words for towers on the way to a tensor's block, or to the tensor where it belongs to none."""
    return _words_in((*path.before, *path.stack) if path.in_block else path.segments[:-1] or path.segments)


def rank_of(tower: str) -> tuple[int, ...]:
    """Returns what sorts towers into the order of a forward pass, as far as there is one."""
    return tuple(TOWERS.index(word) for word in tower.split(".") if word)


@lru_cache(maxsize=2**12)
def _words_in(segments: tuple[str, ...]) -> tuple[str, ...]:
    said = (word for segment in segments for word, pattern in _PATTERNS if pattern.search(segment))
    return tuple(dict.fromkeys(said))


def _tower(root: _Node, way: tuple[str, ...]) -> str:
    """Returns the words at which the tree branches, down a way as far as it leads to stacks."""
    node, parts = root, list[str]()
    for word in way:
        if word not in node.branches:
            return ".".join(parts)
        if node.stacked or len(node.branches) > 1:
            parts.append(word)
        node = node.branches[word]
    # Beside towers for other senses, a stack that no word names is a language model.
    if node.stacked and node.branches and node.branches.keys() <= _BESIDE_TEXT and set(way) <= {"encoder", "decoder"}:
        parts.append("text")
    return ".".join(parts)
