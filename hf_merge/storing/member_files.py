"""The files of a member folder, whatever they hold: names, the map, which are needed, emptying and copying.

A folder with `chains.json` is a member; so the map is the first file to go when a member is replaced, and the last to
come.
"""

import hashlib
import os
import re
import shutil
import stat
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file

from hf_merge.errors import (
    CheckpointDamaged,
    DigestMismatch,
    InputError,
    LimitExceeded,
    ResourceError,
    RunFolderError,
    nearest,
)
from hf_merge.storing import chains, disk
from hf_merge.storing.chain_entries import (
    CONFIG_FILE,
    ROUTER_FILE,
    SETTINGS_FILES,
    SHARD_NAME,
    TOKENIZER_FILES,
    ChainMap,
    FileEntry,
)
from hf_merge.storing.durable import atomic_file, sweep_partials, sync_file, write_atomic
from hf_merge.storing.limits import LIMITS, MIB
from hf_merge.storing.strict_json import dumps
from hf_merge.storing.tensors import sha256_of


MAP_FILE, CARD_FILE = "chains.json", "README.md"
# What a tokenizer or processor is read from; the model's configuration is our own, and what is written
# depends on the caller's options alone.
COPIED_FILES = frozenset((SETTINGS_FILES | TOKENIZER_FILES) - {CONFIG_FILE, "generation_config.json"})
# By these a folder is known to hold a whole tokenizer or processor; the others only add to it.
_READERS = frozenset({"tokenizer.json", "vocab.txt", "tokenizer_config.json", "preprocessor_config.json"})
_UNFINISHED_SHARD = re.compile(r"experts-[0-9]{5}\.part")
_KILLED_SHARD = re.compile(r"\.tmp[A-Za-z0-9]{6}")  # what safetensors writes, until it gets the shard's name
_COPY_BYTES = 4 * MIB


def unfinished_shard(folder: Path, number: int) -> Path:
    """Returns what a shard is called until it is known how many there are."""
    return folder / f"experts-{number:05}.part"


def empty_folder(folder: Path) -> None:
    """Makes `folder` if need be, and removes the member, whole or not, that it holds.

    Raises:
        RunFolderError: The folder holds something that is no member of ours; nothing was removed.
        ResourceError: The disk refused.
    """
    with disk.naming(folder):
        missing = [path for path in (folder, *folder.parents) if not path.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        for path in missing:
            disk.sync_folder(path.parent)
    sweep_partials(folder)
    with disk.naming(folder):
        names = sorted(path.name for path in folder.iterdir())
        foreign = _foreign(names)
        if foreign is not None:
            raise RunFolderError(
                f"{folder} holds '{foreign}', which hf-merge did not write. Choose a new or empty folder."
            )
        # Without the map it is no member, and by its shards, which go last, we know it for ours.
        for name in sorted(names, key=lambda name: (name != MAP_FILE, _is_shard(name))):
            disk.unlink(folder / name)
            if name == MAP_FILE:
                disk.sync_folder(folder)


def read_map(folder: Path, source: str, sha256: str | None) -> ChainMap:
    """Returns the map of a member folder.

    Args:
        folder: The member folder.
        source: What messages call it.
        sha256: What the map's SHA-256 must be; None where nobody vouches for it.

    Raises:
        CheckpointDamaged: There is no map.
        DigestMismatch: The map has another SHA-256.
        UntrustedContentError: The map breaks a rule of the format.
    """
    path = folder / MAP_FILE
    if not path.is_file():
        raise CheckpointDamaged(f"{source} holds no {MAP_FILE}: it is no member, or was not written to its end.")
    with disk.naming(path), path.open("rb") as file:
        data = file.read(LIMITS.chain_map_bytes + 1)
    digest = hashlib.sha256(data).hexdigest()
    if sha256 is not None and digest != sha256:
        raise DigestMismatch(
            f"{source}: {MAP_FILE} has SHA-256 {digest[:16]}... where front.json promises {sha256[:16]}...: this is "
            "not the member that was published. Fetch the family again, or have it pushed again."
        )
    return chains.parse(data)


def choose_tasks(chain_map: ChainMap, tasks: Sequence[str] | None) -> tuple[str, ...]:
    """Returns the chosen tasks of a member in the order of its chains; None chooses all.

    Raises:
        InputError: The choice is empty, or a task is unknown or named twice.
    """
    if tasks is None:
        return chain_map.tasks
    chosen = [] if isinstance(tasks, str) else list(tasks)
    if not chosen:
        known = ", ".join(chain_map.tasks)
        raise InputError(f"tasks is {tasks!r:.80}: give a list of one task or more, or None for all. Known: {known}.")
    for index, task in enumerate(chosen):
        if not isinstance(task, str) or task not in chain_map.chains:
            raise InputError(f"Unknown task '{task!s:.80}'.{nearest(str(task), chain_map.tasks)}")
        if task in chosen[:index]:
            raise InputError(f"The task '{task}' is chosen twice; name each once.")
    return tuple(task for task in chain_map.tasks if task in chosen)


def needed_files(chain_map: ChainMap, tasks: Sequence[str]) -> tuple[str, ...]:
    """Returns the names of the files that serving these tasks takes: all for all tasks, else no shard of others alone.

    A single one of several tasks needs no router.
    """
    if len(tasks) == len(chain_map.tasks):
        return tuple(chain_map.files)
    used = chain_map.experts_of(tasks)
    shards = {expert.file for expert in chain_map.experts if expert.id in used}
    shards |= {chain_map.heads[task].file for task in tasks if task in chain_map.heads}
    router = {ROUTER_FILE} if len(tasks) == 1 else set()
    return tuple(name for name in chain_map.files if name in shards or not (_is_shard(name) or name in router))


def write_shard(path: Path, tensors: Mapping[str, Any]) -> None:
    """Writes tensors to a safetensors file and onto the disk.

    Raises:
        ResourceError: The disk refused; nothing is left of the file.
    """
    try:
        os.close(disk.open_file(path, os.O_WRONLY | os.O_CREAT))
        rights = stat.S_IMODE(path.stat().st_mode)
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
        path.chmod(rights)  # safetensors leaves what it writes to its writer alone
    except (SafetensorError, OSError) as error:
        with suppress(OSError):
            disk.unlink(path)
        raise ResourceError(f"{path} cannot be written: {error}. Make room or choose another folder.") from error
    sync_file(path)


def write_settings(folder: Path, config: Mapping[str, object], sources: Sequence[Path]) -> list[str]:
    """Writes `config.json`, and the tokenizer or processor files of one of `sources`.

    That is the first that holds a whole tokenizer or processor, or else the first that holds any of the files.

    Returns:
        The names of the files written.

    Raises:
        LimitExceeded: A file is larger than its kind may be.
        ResourceError: The disk refused.
    """
    write_atomic(folder / CONFIG_FILE, dumps(config, indent=2))
    held = [(source, sorted(name for name in COPIED_FILES if (source / name).is_file())) for source in sources]
    some = [(source, names) for source, names in held if names] or [(folder, [])]
    source, names = next(((source, names) for source, names in some if not _READERS.isdisjoint(names)), some[0])
    for name in names:
        limit = LIMITS.config_bytes if name in SETTINGS_FILES else LIMITS.tokenizer_bytes
        if (source / name).stat().st_size > limit:
            raise LimitExceeded(f"{source / name}: more than the {limit} bytes that a member's {name} may have.")
        copy_file(source / name, folder / name)
    return [CONFIG_FILE, *names]


def copy_file(source: Path, target: Path) -> None:
    """Copies a file so that `target` is whole or not there.

    Raises:
        ResourceError: The disk refused.
    """
    with disk.naming(source), source.open("rb") as reader, atomic_file(target) as writer:
        shutil.copyfileobj(reader, writer, _COPY_BYTES)


def file_entry(path: Path) -> FileEntry:
    """Returns what the map promises of a file: its SHA-256 and its length.

    Raises:
        CheckpointDamaged: The file cannot be read.
    """
    return FileEntry(sha256_of(path), path.stat().st_size)


def state_of(path: Path) -> tuple[int, int, int] | None:
    """Returns what changes when a file is written over: its place, its length and its time; None where it is not."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns


def find_difference(path: Path, entry: FileEntry) -> str | None:
    """Returns how a file differs from what the map promises (the end of a sentence), or None where it does not.

    Raises:
        CheckpointDamaged: The file cannot be read.
    """
    if not path.is_file():
        return f"is missing where {MAP_FILE} promises {entry.bytes} bytes"
    length = path.stat().st_size
    if length != entry.bytes:
        return f"has {length} bytes where {MAP_FILE} promises {entry.bytes}"
    digest = sha256_of(path)
    if digest != entry.sha256:
        return f"has SHA-256 {digest[:16]}... where {MAP_FILE} promises {entry.sha256[:16]}..."
    return None


def _foreign(names: Iterable[str]) -> str | None:
    """Returns a name that shows a folder not to be ours, or None where it is empty or holds what a member holds."""
    ours = {MAP_FILE, CARD_FILE, CONFIG_FILE, ROUTER_FILE} | COPIED_FILES
    names = list(names)
    if any(map(_is_shard, names)):  # only beside a shard: the name alone does not show that it is ours
        names = [name for name in names if _KILLED_SHARD.fullmatch(name) is None]
    strange = next((name for name in names if name not in ours and not _is_shard(name)), None)
    if strange is None and names and MAP_FILE not in names and not any(map(_is_shard, names)):
        return names[0]
    return strange


def _is_shard(name: str) -> bool:
    return SHARD_NAME.fullmatch(name) is not None or _UNFINISHED_SHARD.fullmatch(name) is not None
