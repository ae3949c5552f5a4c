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
    codec: CodecSpec,
    cost: float,
) -> str:
    """Returns a configuration's id: `c0359-2f9a1c` for C = 0.359.

    The digits after the dash come from everything that determines it: tasks, grouping, method (one for all components,
    or one for each) and codec.
    """
    names = [component.name for component in components]
    columns = dict(zip(names, map(list, grouping), strict=True))
    identity = {"tasks": list(tasks), "grouping": columns, "codec": codec.as_json()}
    if isinstance(method, MethodSpec):
        identity["method"] = method.as_json()
    else:
        identity["methods"] = {name: spec.as_json() for name, spec in zip(names, method, strict=True)}
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    return f"c{round(cost * 1000):04d}-{digest[:6]}"
