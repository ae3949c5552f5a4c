"""The name of a configuration: its cost for people, a digest for machines."""

import hashlib
import json
from collections.abc import Sequence

from hf_merge.merging.codecs import CodecSpec
from hf_merge.merging.components import Component
from hf_merge.merging.grouping import Grouping
from hf_merge.merging.methods import MethodSpec


def configuration_id(
    components: Sequence[Component],
    tasks: Sequence[str],
    grouping: Grouping,
    method: MethodSpec | Sequence[MethodSpec],
    codec: CodecSpec | Sequence[CodecSpec],
    cost: float,
) -> str:
    """Returns a configuration's id: `c0359-2f9a1c` for C = 0.359.

    The digits after the dash come from everything that determines it: tasks, grouping, method and codec (each one for
    all components, or one for each).
    """
    names = [component.name for component in components]
    columns = dict(zip(names, map(list, grouping), strict=True))
    identity: dict[str, object] = {"tasks": list(tasks), "grouping": columns}
    for label, chosen in (("method", method), ("codec", codec)):
        if isinstance(chosen, MethodSpec | CodecSpec):
            identity[label] = chosen.as_json()
        else:
            identity[f"{label}s"] = {name: spec.as_json() for name, spec in zip(names, chosen, strict=True)}
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    return f"c{round(cost * 1000):04d}-{digest[:6]}"
