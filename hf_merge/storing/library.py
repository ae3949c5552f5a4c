"""A member folder: one configuration on disk, written so that a reader sees all of it or nothing, and trusts nothing.

Shards of moderate size hold every expert and head once; `chains.json` says what they are and is written last, so that
a folder without it is no member. Reading compares each file's length and SHA-256 with the map before a byte of it is
used, and every tensor with what a codec can have written. See docs/format.md.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

from torch import Tensor

from hf_merge.errors import (
    CheckpointDamaged,
    DigestMismatch,
    MalformedChainMap,
    RecipeError,
    UntrustedContentError,
)
from hf_merge.merging.codecs import CodecSpec
from hf_merge.merging.experts import Expert, ExpertKey, decode_expert, find_fault, stored_names
from hf_merge.storing import chains, disk, member_files, shard_layout
from hf_merge.storing.chain_entries import ROUTER_FILE, ChainMap, ExpertEntry, HeadEntry
from hf_merge.storing.durable import write_atomic
from hf_merge.storing.member_files import CARD_FILE, MAP_FILE
from hf_merge.storing.shard_layout import Piece
from hf_merge.storing.tensors import SafetensorsFile


__all__ = ["MAP_FILE", "Member", "MemberContent", "StoredHead", "write_member"]

# An expert or a head on its way into a shard: the first part of its tensors' names there, and its tensors.
_Owner: TypeAlias = tuple[str, Mapping[str, Tensor]]
_HEAD_CODEC = "full"


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
        experts: Builds the expert of an id; asked once for each expert of the chains, one after the other.
        heads: The heads by task.
        router: The bytes of `router.safetensors`, or None where there is nothing to route.
        config: The content of `config.json`.
        settings: Folders that may hold tokenizer or processor files; the first that has any is copied from.
        card: Returns the text of `README.md` for the finished map.
    """

    chain_map: ChainMap
    experts: Callable[[str], Expert]
    heads: Mapping[str, StoredHead]
    router: bytes | None
    config: Mapping[str, object]
    settings: Sequence[Path]
    card: Callable[[ChainMap], str]


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


class Member:
    """A member folder opened for reading, for all of its tasks or for some.

    Attributes:
        folder: Where it lies.
        source: What messages call it.
        chain_map: What it says, of all its tasks.
        tasks: The tasks that it is opened for, in the order of its chains.
        files: The names of the files that they need.
    """

    def __init__(
        self,
        folder: Path,
        tasks: Sequence[str] | None = None,
        *,
        source: str | None = None,
        map_sha256: str | None = None,
    ) -> None:
        """Reads and checks the map; nothing else is read yet.

        Args:
            folder: A member folder; of the other files only those in `files` need to be there.
            tasks: Names of tasks, None for all.
            source: What messages call it, by default the folder.
            map_sha256: What the SHA-256 of the map must be; None where nobody vouches for it.

        Raises:
            CheckpointDamaged: There is no map.
            DigestMismatch: The map has another SHA-256.
            UntrustedContentError: The map breaks a rule of the format.
            InputError: A task is unknown or named twice, or there is none.
        """
        self.folder, self.source = folder, source or str(folder)
        self.chain_map: ChainMap = member_files.read_map(folder, self.source, map_sha256)
        self.tasks = member_files.choose_tasks(self.chain_map, tasks)
        self.files = member_files.needed_files(self.chain_map, self.tasks)
        self._checked: dict[str, tuple[int, int, int]] = {}

    @property
    def experts(self) -> tuple[ExpertEntry, ...]:
        """The experts in the chains of its tasks."""
        used = {identifier for task in self.tasks for identifier in self.chain_map.chains[task]}
        return tuple(entry for entry in self.chain_map.experts if entry.id in used)

    def check(self, name: str) -> Path:
        """Returns the path of a file of the member, after its length and digest were compared with the map.

        They are compared once, and again if the file was written over since.

        Raises:
            DigestMismatch: The file is missing or not the one that the map was written for.
        """
        path = self.folder / name
        state = member_files.state_of(path)
        if state is None or self._checked.get(name) != state:
            difference = member_files.find_difference(path, self.chain_map.files[name])
            if difference is not None:
                # The client takes what lies in its cache for whole, so that fetching alone would bring it back.
                remedy = f"Delete {path.resolve()} and fetch it" if path.is_symlink() else "Fetch or build it"
                raise DigestMismatch(
                    f"{self.source}: {name} {difference}: it is damaged or was exchanged. {remedy} again."
                )
            if state is not None:
                self._checked[name] = state
        return path

    def check_all(self) -> None:
        """Checks every file in `files` as `check` does."""
        for name in self.files:
            self.check(name)

    def expert(self, entry: ExpertEntry) -> dict[str, Tensor]:
        """Returns an expert's weights, decoded to float32, by tensor name.

        Raises:
            DigestMismatch: The shard is not the one that the map was written for.
            MalformedChainMap: The shard does not hold the expert that the map describes.
        """
        names = next(item.tensors for item in self.chain_map.components if item.name == entry.component)
        settings = {key: value for key, value in entry.codec.items() if key != "name"}
        try:
            codec = CodecSpec.resolve(str(entry.codec["name"]), settings)
        except RecipeError as error:
            raise MalformedChainMap(f"{self.source}: expert '{entry.id}': {error} Update hf-merge?") from error
        decoded: dict[str, Tensor] = {}
        for name, stored in self._stored(entry, entry.id, names, codec.name):
            decoded |= decode_expert(codec, (name,), stored)
        return decoded

    def head(self, task: str) -> dict[str, Tensor]:
        """Returns a task's head, float32, by the names of its own checkpoint; nothing where tasks share it.

        Raises:
            DigestMismatch: The shard is not the one that the map was written for.
            MalformedChainMap: The shard does not hold the head that the map describes.
        """
        entry = self.chain_map.heads.get(task)
        if entry is None:
            return {}
        head: dict[str, Tensor] = {}
        for _, stored in self._stored(entry, _head_prefix(task), entry.tensors, _HEAD_CODEC):
            head |= stored
        return head

    def router(self) -> dict[str, Tensor] | None:
        """Returns the tensors of the router, or None where the member has none or its tasks need none.

        Raises:
            DigestMismatch: The file is not the one that the map was written for.
        """
        if ROUTER_FILE not in self.files:
            return None
        with SafetensorsFile(self.check(ROUTER_FILE)) as file:
            return {name: file.read(name) for name in file.specs}

    def _stored(
        self, entry: ExpertEntry | HeadEntry, prefix: str, names: Sequence[str], codec: str
    ) -> Iterator[tuple[str, dict[str, Tensor]]]:
        """Yields each name with its stored tensor `<prefix>/<name>` and companions, sound, one after the other.

        Whoever decodes each before the next is read finds it in the processor's cache, and its memory is used again.
        """
        held = 0
        with SafetensorsFile(self.check(entry.file)) as file:
            for name in names:
                parts = [part for part in stored_names(codec, name) if f"{prefix}/{part}" in file.specs]
                stored = {part: file.read(f"{prefix}/{part}") for part in parts}
                fault = find_fault(codec, name, stored)
                if fault is not None:
                    raise MalformedChainMap(f"{file.path}: the tensor '{prefix}/{name}' {fault}.")
                held += _bytes_of(stored)
                yield name, stored
        if held != entry.bytes:
            raise MalformedChainMap(
                f"{self.source}: '{prefix}' takes {held} bytes where {MAP_FILE} promises {entry.bytes}."
            )


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
        places |= {prefix: (index, _bytes_of(held)) for prefix, held in batch}
    count = 1 + max((index for index, _ in places.values()), default=-1)
    names = [f"experts-{index + 1:05}-of-{count:05}.safetensors" for index in range(count)]
    with disk.naming(folder):
        for index, name in enumerate(names):
            disk.replace(member_files.unfinished_shard(folder, index + 1), folder / name)
        disk.sync_folder(folder)
    located = {prefix: (names[index], size) for prefix, (index, size) in places.items()}
    order = shard_layout.tasks_of_experts(content.chain_map.chains)
    experts = [_expert_entry(keys[name], *located[name]) for name in order]
    heads = {task: _head_entry(head, *located[_head_prefix(task)]) for task, head in content.heads.items()}
    return experts, heads, names


def _pieces(content: MemberContent, keys: dict[str, ExpertKey]) -> Iterator[Piece[_Owner]]:
    """Yields experts and heads in the order of shards, each expert built when its turn comes; fills `keys` by id."""
    heads = {_head_prefix(task): head.tensors for task, head in content.heads.items()}
    served = shard_layout.tasks_of_experts(content.chain_map.chains)
    served |= {_head_prefix(task): (task,) for task in content.heads}
    for prefix in shard_layout.in_order(served, content.chain_map.tasks):
        if prefix in heads:
            tensors = heads[prefix]
        else:
            expert = content.experts(prefix)
            keys[prefix], tensors = expert.key, expert.tensors
        yield Piece(served[prefix], _bytes_of(tensors), (prefix, tensors))


def _expert_entry(key: ExpertKey, file: str, size: int) -> ExpertEntry:
    method = key.method.as_json() if key.method is not None else None
    return ExpertEntry(key.id, key.component, key.members, method, key.codec.as_json(), file, size)


def _head_entry(head: StoredHead, file: str, size: int) -> HeadEntry:
    problem = head.problem_type or ("regression" if head.num_labels == 1 else "single_label_classification")
    return HeadEntry(head.num_labels, head.labels, problem, tuple(sorted(head.tensors)), file, size)


def _head_prefix(task: str) -> str:
    return f"heads/{task}"


def _bytes_of(tensors: Mapping[str, Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
