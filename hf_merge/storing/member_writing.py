"""A member folder written: one configuration put on disk, so that a reader sees all of it or nothing.

Shards of moderate size hold every expert and head once; `chains.json` says what they are and is written last, so that
a folder without it is no member. See docs/format.md.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeAlias

from torch import Tensor

from hf_merge.errors import CheckpointDamaged, UntrustedContentError
from hf_merge.merging.experts import Expert, ExpertKey
from hf_merge.storing import chains, disk, member_files, shard_layout
from hf_merge.storing.chain_entries import ROUTER_FILE, ChainMap, ExpertEntry, HeadEntry
from hf_merge.storing.durable import write_atomic
from hf_merge.storing.library import Member, bytes_of, head_prefix
from hf_merge.storing.member_files import CARD_FILE, MAP_FILE
from hf_merge.storing.shard_layout import Piece


__all__ = ["MemberContent", "StoredHead", "write_member"]

# An expert or a head on its way into a shard: the first part of its tensors' names there, and its tensors.
_Owner: TypeAlias = tuple[str, Mapping[str, Tensor]]


@dataclass(frozen=True)
class StoredHead:
    """A task's head on its way into a member folder.

    Attributes:
        num_labels: Width of its logits.
        labels: The labels' names in the order of the logits, or None where they have none.
        tensors: Its tensors, float32, as the fine-tuned checkpoint names them.
        problem_type: As in transformers; None takes a regression for one label, else one label of several.
    """

    num_labels: int
    labels: tuple[str, ...] | None
    tensors: Mapping[str, Tensor]
    problem_type: str | None = None


@dataclass(frozen=True)
class MemberContent:
    """Everything that a member folder is written from.

    Attributes:
        chain_map: The map, its experts, heads and files still empty; they follow from what is written.
        experts: Builds the expert of an id; asked once for each expert of the chains and of `references`, one after
            the other.
        heads: The heads by task.
        router: The bytes of `router.safetensors`, or None where there is nothing to route.
        config: The content of `config.json`.
        settings: Folders that may hold tokenizer or processor files; `write_settings` chooses one.
        card: Returns the text of `README.md` for the finished map.
        references: The shared experts of those that are stored as differences, by id.
    """

    chain_map: ChainMap
    experts: Callable[[str], Expert]
    heads: Mapping[str, StoredHead]
    router: bytes | None
    config: Mapping[str, object]
    settings: Sequence[Path]
    card: Callable[[ChainMap], str]
    references: Mapping[str, str] = field(default_factory=dict)


def write_member(folder: Path, content: MemberContent) -> ChainMap:
    """Writes a member folder, the map last, and returns the map.

    A whole member of the same map is left as it is, and its experts are not built again.

    Raises:
        RunFolderError: The folder holds something that is no member of ours.
        ResourceError: The disk refused; the folder is then no member.
        UntrustedContentError: The content breaks a rule of the format.
    """
    held = _whole_member(folder, content)
    if held is not None:
        return held
    member_files.empty_folder(folder)
    experts, heads, names = _write_shards(folder, content)
    names += member_files.write_settings(folder, content.config, content.settings)
    if content.router is not None:
        write_atomic(folder / ROUTER_FILE, content.router)
        names.append(ROUTER_FILE)
    files = {name: member_files.file_entry(folder / name) for name in names}
    chain_map = replace(content.chain_map, experts=tuple(experts), heads=heads, files=files)
    data = chains.dump(chain_map)
    write_atomic(folder / CARD_FILE, content.card(chain_map).encode())
    write_atomic(folder / MAP_FILE, data)
    return chain_map


def _whole_member(folder: Path, content: MemberContent) -> ChainMap | None:
    """Returns the map of a member that is there already, whole and as wanted; None where it must be written."""
    if not (folder / MAP_FILE).is_file():
        return None
    try:
        member = Member(folder)
        member.check_all()
    except (UntrustedContentError, CheckpointDamaged):
        return None
    found, wanted = member.chain_map, content.chain_map
    same = replace(found, library_version=wanted.library_version, experts=(), heads={}, files={}) == wanted
    router = found.files[ROUTER_FILE].sha256 if ROUTER_FILE in found.files else None
    same = same and router == (hashlib.sha256(content.router).hexdigest() if content.router is not None else None)
    return found if same and found.tasks == wanted.tasks else None


def _write_shards(folder: Path, content: MemberContent) -> tuple[list[ExpertEntry], dict[str, HeadEntry], list[str]]:
    """Writes heads and experts into shards as `shard_layout` cuts them; returns their entries and the shard names."""
    keys: dict[str, ExpertKey] = {}
    places: dict[str, tuple[int, int]] = {}
    for index, batch in enumerate(shard_layout.cut(_pieces(content, keys))):
        tensors = {f"{prefix}/{name}": tensor for prefix, held in batch for name, tensor in held.items()}
        member_files.write_shard(member_files.unfinished_shard(folder, index + 1), tensors)
        places |= {prefix: (index, bytes_of(held)) for prefix, held in batch}
    count = 1 + max((index for index, _ in places.values()), default=-1)
    names = [f"experts-{index + 1:05}-of-{count:05}.safetensors" for index in range(count)]
    with disk.naming(folder):
        for index, name in enumerate(names):
            disk.replace(member_files.unfinished_shard(folder, index + 1), folder / name)
        disk.sync_folder(folder)
    located = {prefix: (names[index], size) for prefix, (index, size) in places.items()}
    order = shard_layout.tasks_of_experts(content.chain_map.chains, content.references)
    experts = [_expert_entry(keys[name], *located[name]) for name in order]
    heads = {task: _head_entry(head, *located[head_prefix(task)]) for task, head in content.heads.items()}
    return experts, heads, names


def _pieces(content: MemberContent, keys: dict[str, ExpertKey]) -> Iterator[Piece[_Owner]]:
    """Yields experts and heads in the order of shards, each expert built when its turn comes; fills `keys` by id."""
    heads = {head_prefix(task): head.tensors for task, head in content.heads.items()}
    served = shard_layout.tasks_of_experts(content.chain_map.chains, content.references)
    served |= {head_prefix(task): (task,) for task in content.heads}
    for prefix in shard_layout.in_order(served, content.chain_map.tasks):
        if prefix in heads:
            tensors = heads[prefix]
        else:
            expert = content.experts(prefix)
            keys[prefix], tensors = expert.key, expert.tensors
        yield Piece(served[prefix], bytes_of(tensors), (prefix, tensors))


def _expert_entry(key: ExpertKey, file: str, size: int) -> ExpertEntry:
    method = key.method.as_json() if key.method is not None else None
    reference = key.reference.id if key.reference is not None else None
    return ExpertEntry(key.id, key.component, key.members, method, key.codec.as_json(), file, size, reference)


def _head_entry(head: StoredHead, file: str, size: int) -> HeadEntry:
    problem = head.problem_type or ("regression" if head.num_labels == 1 else "single_label_classification")
    return HeadEntry(head.num_labels, head.labels, problem, tuple(sorted(head.tensors)), file, size)
