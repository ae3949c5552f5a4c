"""Components that a user names: each a list of patterns for tensor names, where no rule knows what belongs together.

Source: the heterogeneous blocks of AutoMerge, arXiv 2601.22748, which its authors split by hand.
"""

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

from hf_merge.errors import RecipeError, some
from hf_merge.merging.components import Component


def segment(whole: Component, patterns: Mapping[str, Sequence[str]], rest: str) -> tuple[Component, ...]:
    """Returns the components that patterns cut a backbone into: an exact partition, in the order of the patterns.

    A tensor belongs to the first segment one of whose patterns its name matches (`*` is anything, dots too); those
    that match none are the segment `rest`, at the end.

    Args:
        whole: The backbone as one component.
        patterns: For each segment its patterns.
        rest: What the segment is called of the tensors that no other takes.

    Raises:
        RecipeError: A segment gets no tensor; the message says what names look like.
    """
    found: dict[str, list[int]] = {name: [] for name in (*patterns, rest)}
    for index, tensor in enumerate(whole.tensors):
        fitting = (name for name, given in patterns.items() if any(fnmatchcase(tensor, one) for one in given))
        found[next(fitting, rest)].append(index)
    empty = next((name for name in patterns if not found[name]), None)
    if empty is not None:
        raise RecipeError(
            f"merge.segments: no tensor belongs to '{empty}' ({', '.join(patterns[empty])}): its patterns match none, "
            f"or earlier segments took all. Names on disk: {some(list(whole.tensors))}."
        )
    return tuple(
        Component(
            name,
            tuple(whole.tensors[index] for index in members),
            depths=tuple(whole.depths[index] for index in members),
        )
        for name, members in found.items()
        if members
    )
