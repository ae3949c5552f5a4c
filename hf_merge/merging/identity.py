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
    method: MethodSpec,
    codec: CodecSpec,
    cost: float,
) -> str:
    """Returns a configuration's id: `c0359-2f9a1c` for C = 0.359.

    The digits after the dash come from everything that determines it: tasks, grouping, method and codec.
    """
    columns = dict(zip((component.name for component in components), map(list, grouping), strict=True))
    identity = {"tasks": list(tasks), "grouping": columns, "method": method.as_json(), "codec": codec.as_json()}
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    return f"c{round(cost * 1000):04d}-{digest[:6]}"
