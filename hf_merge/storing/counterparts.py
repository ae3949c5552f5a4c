"""Which tensor of one checkpoint is which of another, where their trunks alone do not tell.

A base saved by itself may lack a prefix that its fine-tunes have before every name, or before some (`decoder.layers.0`
and `model.decoder.layers.0`), or have one that they lack. And a base may have a whole tower that no fine-tune has: of
CLIP, an image classifier keeps the vision model alone.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence

from hf_merge.merging.components import depth_of, places


_LONGEST = 2


def prefixes_of(names: Iterable[str]) -> tuple[str, ...]:
    """Returns the leading segments of names, one or two with their dots, shortest first; no numbers are among them."""
    found = set[str]()
    for name in names:
        segments = name.split(".")[:-1]
        for count in range(1, min(_LONGEST, len(segments)) + 1):
            if not segments[count - 1].isdecimal():
                found.add(".".join(segments[:count]) + ".")
    return tuple(sorted(found, key=lambda prefix: (prefix.count("."), prefix)))


def counterpart(name: str, known: Collection[str], prefixes: Sequence[str]) -> str | None:
    """Returns what a checkpoint calls a tensor that another calls `name`, or None where it has none.

    That is the name itself, the name with one of the prefixes before it, or the name without its first segments.

    Args:
        name: The name in the other checkpoint.
        known: The checkpoint's names.
        prefixes: Its leading segments, as `prefixes_of` returns them.
    """
    if name in known:
        return name
    longer = (prefix + name for prefix in prefixes)
    shorter = (name.split(".", count)[-1] for count in range(1, _LONGEST + 1) if name.count(".") > count)
    return next((found for found in (*longer, *shorter) if found in known), None)


def backbone_beside(inside: Mapping[str, str], own: Mapping[str, str], names: Sequence[str]) -> dict[str, str]:
    """Returns a fine-tune's backbone by the names inside the base's trunk; to the name on its disk.

    Args:
        inside: The base's backbone: name inside its trunk to name on disk.
        own: The fine-tune's backbone, likewise.
        names: All names on the fine-tune's disk.
    """
    lacking = [key for key in inside if key not in own]
    if not lacking:
        return dict(own)
    matched = {key: own[key] for key in inside if key in own}
    free = set(names) - set(matched.values())
    prefixes = prefixes_of(free)
    for key in lacking:
        found = counterpart(inside[key], free, prefixes)
        if found is not None:
            matched[key] = found
            free.discard(found)
    if not matched.keys() - own.keys():
        return dict(own)
    # What is left belongs to the head where it stands beside the modules of the backbone and outside every block.
    modules = {name.split(".", 1)[0] for name in matched.values()}
    rest = {key: name for key, name in own.items() if name in free}
    return matched | {
        key: name for key, name in rest.items() if name.split(".", 1)[0] in modules or depth_of(name) is not None
    }


def unused_in_all(inside: Mapping[str, str], backbones: Iterable[Mapping[str, str]]) -> frozenset[str]:
    """Returns what of a base no fine-tune runs, by the names inside its trunk: whole towers, and what joins them.

    Args:
        inside: The base's backbone: name inside its trunk to name on disk.
        backbones: The fine-tunes' backbones, by the names inside the base's trunk.
    """
    held = set[str]().union(*backbones)
    absent = inside.keys() - held
    if not absent or len(absent) == len(inside):
        return frozenset()
    placed = places(inside.values())
    used = {placed[inside[key]].tower for key in inside.keys() & held if placed[inside[key]].depth is not None}
    idle = {placed[inside[key]].tower for key in absent if placed[inside[key]].depth is not None} - used - {""}
    if not idle:
        return frozenset()
    towers_and_joints = (
        key for key in absent if placed[inside[key]].tower in idle or placed[inside[key]].depth is None
    )
    return frozenset(towers_and_joints)
