"""Members of a tiny family, as the tests of member folders write and damage them."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hf_merge.merging.codecs import CodecSpec
from hf_merge.merging.components import Component, decompose
from hf_merge.merging.cost import normalised
from hf_merge.merging.experts import Expert, ExpertKey, build_expert, expert_key
from hf_merge.merging.grouping import Grouping, groups, members_of
from hf_merge.merging.methods import MethodSpec
from hf_merge.storing.chains import BaseRef, ChainMap, ComponentEntry, ModelEntry
from hf_merge.storing.families import Family
from hf_merge.storing.member_writing import MemberContent, StoredHead


AVERAGE, INT8, FULL = MethodSpec.resolve("average"), CodecSpec.resolve("int8"), CodecSpec.resolve("full")
MIXED: Grouping = ((0, 0, 0), (0, 1, 0), (0, 1, 2), (0, 0, 1))
SHARD = "experts-00001-of-00001.safetensors"


def cut(family: Family) -> tuple[Component, ...]:
    return decompose(family.shapes, "type")


def chain(family: Family, grouping: Grouping, codec: CodecSpec, task: str) -> list[ExpertKey]:
    tasks = list(family.tasks)
    return [
        expert_key(component.name, [tasks[index] for index in members_of(column, tasks.index(task))], AVERAGE, codec)
        for component, column in zip(cut(family), grouping, strict=True)
    ]


def built(family: Family, grouping: Grouping, codec: CodecSpec) -> Iterator[Expert]:
    tasks = list(family.tasks)
    for component, column in zip(cut(family), grouping, strict=True):
        for members in groups(column):
            key = expert_key(component.name, [tasks[index] for index in members], AVERAGE, codec)
            yield build_expert(key, component, family.shapes, family.base, family.tasks)


def content_of(
    family: Family, grouping: Grouping, codec: CodecSpec, experts: Sequence[Expert], **changes: Any
) -> MemberContent:
    heads = {
        task: StoredHead(2, ("no", "yes"), {name: tuned.read_head(name) for name in tuned.head})
        for task, tuned in family.tasks.items()
    }
    stored = sum(expert.parameters for expert in experts) + family.head_parameters()
    chain_map = ChainMap(
        id="c0500-abcdef",
        library_version="0.1.0",
        base=BaseRef("base", None, family.parameters, 32),
        cost=normalised(stored, family.parameters),
        performance=dict.fromkeys(family.tasks, 0.5),
        metrics=dict.fromkeys(family.tasks, "accuracy"),
        granularity="type",
        dtype="float32",
        model=ModelEntry("text", None),
        components=tuple(ComponentEntry(component.name, component.tensors) for component in cut(family)),
        experts=(),
        chains={task: tuple(key.id for key in chain(family, grouping, codec, task)) for task in family.tasks},
        heads={},
        files={},
    )
    settings = [family.base.folder, *(tuned.source.folder for tuned in family.tasks.values())]
    by_id = {expert.key.id: expert for expert in experts}
    given = MemberContent(
        chain_map, by_id.__getitem__, heads, b"router", {"model_type": "bert"}, settings, lambda _: "# Card\n"
    )
    return replace(given, **changes)


def flip(path: Path, position: int = -5) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)
