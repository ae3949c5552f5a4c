"""A member folder: one configuration on disk, written so that a reader sees all of it or nothing, and trusts nothing.

Shards of moderate size hold every expert and head once; `chains.json` says what they are and is written last, so that
a folder without it is no member. Reading compares each file's length and SHA-256 with the map before a byte of it is
used, and every tensor with what a codec can have written. See docs/format.md.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from hf_merge.errors import (
    CheckpointDamaged,
    DigestMismatch,
    MalformedChainMap,
    RecipeError,
    ResourceError,
    UntrustedContentError,
)
from hf_merge.merging.codecs import CodecSpec
from hf_merge.merging.experts import Expert, ExpertKey, decode_expert, find_fault, stored_names
from hf_merge.storing import chains, disk, member_files
from hf_merge.storing.chain_entries import ROUTER_FILE, ChainMap, ExpertEntry, HeadEntry
from hf_merge.storing.durable import sync_file, write_atomic
from hf_merge.storing.limits import LIMITS, MIB
from hf_merge.storing.member_files import CARD_FILE, MAP_FILE
from hf_merge.storing.tensors import SafetensorsFile


__all__ = ["MAP_FILE", "Member", "MemberContent", "StoredHead", "copy_member", "write_member"]

SHARD_BYTES = 64 * MIB

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
        experts: The distinct experts, each once; they may be built one by one while they are written.
        heads: The heads by task.
        router: The bytes of `router.safetensors`, or None where there is nothing to route.
        config: The content of `config.json`.
        settings: Folders that may hold tokenizer or processor files; the first that has any is copied from.
        card: Returns the text of `README.md` for the finished map.
    """

    chain_map: ChainMap
    experts: Iterable[Expert]
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


def copy_member(member: "Member", folder: Path) -> None:
    """Copies a member into another folder, every file checked first and the map last.

    Raises:
        RunFolderError: The folder holds something that is no member of ours.
        DigestMismatch: A file of the member is missing or not the one that its map was written for.
        ResourceError: The disk refused; the folder is then no member.
    """
    member.check_all()
    if folder.exists() and folder.samefile(member.folder):
        return
    member_files.empty_folder(folder)
    for name in member.chain_map.files:
        member_files.copy_file(member.folder / name, folder / name)
    if (member.folder / CARD_FILE).is_file():
        member_files.copy_file(member.folder / CARD_FILE, folder / CARD_FILE)
    write_atomic(folder / MAP_FILE, chains.dump(member.chain_map))


class Member:
    """A member folder opened for reading.

    Attributes:
        folder: Where it lies.
        chain_map: What it says.
    """

    def __init__(self, folder: Path) -> None:
        """Reads and checks the map; nothing else is read yet.

        Raises:
            CheckpointDamaged: There is no map.
            UntrustedContentError: The map breaks a rule of the format.
        """
        path = folder / MAP_FILE
        if not path.is_file():
            raise CheckpointDamaged(f"{folder} holds no {MAP_FILE}: it is no member, or was not written to its end.")
        with disk.naming(path), path.open("rb") as file:
            self.chain_map: ChainMap = chains.parse(file.read(LIMITS.chain_map_bytes + 1))
        self.folder = folder
        self._checked: set[str] = set()

    def check(self, name: str) -> Path:
        """Returns the path of a file of the member, after its length and digest were compared with the map, once.

        Raises:
            DigestMismatch: The file is missing or not the one that the map was written for.
        """
        path = self.folder / name
        if name not in self._checked:
            difference = member_files.find_difference(path, self.chain_map.files[name])
            if difference is not None:
                raise DigestMismatch(
                    f"{self.folder}: {name} {difference}: it is damaged or was exchanged. Fetch or build it again."
                )
            self._checked.add(name)
        return path

    def check_all(self) -> None:
        """Checks every file of the member as `check` does."""
        for name in self.chain_map.files:
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
            raise MalformedChainMap(f"{self.folder}: expert '{entry.id}': {error} Update hf-merge?") from error
        return decode_expert(codec, names, self._read(entry, entry.id, names))

    def head(self, task: str) -> dict[str, Tensor]:
        """Returns a task's head, float32, by the names of its own checkpoint.

        Raises:
            DigestMismatch: The shard is not the one that the map was written for.
            MalformedChainMap: The shard does not hold the head that the map describes.
        """
        entry = self.chain_map.heads[task]
        stored = self._read(entry, _head_prefix(task), entry.tensors)
        if stored.keys() != set(entry.tensors):
            raise MalformedChainMap(f"{self.folder}: the head of '{task}' is quantised; heads are stored in full.")
        return stored

    def router(self) -> dict[str, Tensor] | None:
        """Returns the tensors of the router, or None where the member has no router.

        Raises:
            DigestMismatch: The file is not the one that the map was written for.
        """
        if ROUTER_FILE not in self.chain_map.files:
            return None
        with SafetensorsFile(self.check(ROUTER_FILE)) as file:
            return {name: file.read(name) for name in file.specs}

    def _read(self, entry: ExpertEntry | HeadEntry, prefix: str, names: Sequence[str]) -> dict[str, Tensor]:
        """Returns the stored tensors `<prefix>/<name>` with their companions, each of them sound."""
        stored: dict[str, Tensor] = {}
        with SafetensorsFile(self.check(entry.file)) as file:
            for name in names:
                parts = [part for part in stored_names(name) if f"{prefix}/{part}" in file.specs]
                stored |= {part: file.read(f"{prefix}/{part}") for part in parts}
                fault = find_fault(name, stored)
                if fault is not None:
                    raise MalformedChainMap(f"{file.path}: the tensor '{prefix}/{name}' {fault}.")
        if _bytes_of(stored) != entry.bytes:
            raise MalformedChainMap(
                f"{self.folder}: '{prefix}' takes {_bytes_of(stored)} bytes where {MAP_FILE} promises {entry.bytes}."
            )
        return stored


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
    """Writes heads and experts into shards of about `SHARD_BYTES`; returns their entries and the shards' names."""
    keys: dict[str, ExpertKey] = {}
    places: dict[str, tuple[int, int]] = {}

    def owners() -> Iterator[_Owner]:
        for task, head in content.heads.items():
            yield _head_prefix(task), head.tensors
        for expert in content.experts:
            keys[expert.key.id] = expert.key
            yield expert.key.id, expert.tensors

    for index, batch in enumerate(_batches(owners())):
        _write_shard(member_files.unfinished_shard(folder, index + 1), batch)
        places |= {prefix: (index, _bytes_of(tensors)) for prefix, tensors in batch}
    count = 1 + max((index for index, _ in places.values()), default=-1)
    names = [f"experts-{index + 1:05}-of-{count:05}.safetensors" for index in range(count)]
    with disk.naming(folder):
        for index, name in enumerate(names):
            disk.replace(member_files.unfinished_shard(folder, index + 1), folder / name)
        disk.sync_folder(folder)
    located = {prefix: (names[index], size) for prefix, (index, size) in places.items()}
    experts = [_expert_entry(key, *located[identifier]) for identifier, key in keys.items()]
    heads = {task: _head_entry(head, *located[_head_prefix(task)]) for task, head in content.heads.items()}
    return experts, heads, names


def _batches(owners: Iterable[_Owner]) -> Iterator[list[_Owner]]:
    """Yields runs of owners whose tensors together come to about `SHARD_BYTES`; an owner is never cut."""
    batch: list[_Owner] = []
    held = 0
    for prefix, tensors in owners:
        size = _bytes_of(tensors)
        if batch and held + size > SHARD_BYTES:
            yield batch
            batch, held = [], 0
        batch.append((prefix, tensors))
        held += size
    if batch:
        yield batch


def _write_shard(path: Path, batch: Iterable[_Owner]) -> None:
    tensors = {f"{prefix}/{name}": tensor.contiguous() for prefix, held in batch for name, tensor in held.items()}
    try:
        save_file(tensors, path)
    except SafetensorError as error:
        with suppress(OSError):
            disk.unlink(path)
        raise ResourceError(f"{path} cannot be written: {error}. Make room or choose another folder.") from error
    sync_file(path)


def _expert_entry(key: ExpertKey, file: str, size: int) -> ExpertEntry:
    method = key.method.as_json() if key.method is not None else None
    return ExpertEntry(key.id, key.component, key.members, method, key.codec.as_json(), file, size)


def _head_entry(head: StoredHead, file: str, size: int) -> HeadEntry:
    usual = "regression" if head.num_labels == 1 else "single_label_classification"
    problem = head.problem_type or usual
    return HeadEntry(head.num_labels, head.labels, problem, tuple(sorted(head.tensors)), file, size)


def _head_prefix(task: str) -> str:
    return f"heads/{task}"


def _bytes_of(tensors: Mapping[str, Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
