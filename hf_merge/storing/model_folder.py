"""An ordinary model folder, written tensor by tensor: what transformers loads, with no model in memory.

The tensors keep the names, shapes and types that another checkpoint has on disk. They may come in any order, so what
a merge spans never has to fit the order of a file. The folder gets its name when all of it is on the disk; before, it
lies beside it under a name of its own, locked by the kernel, so that what a killed merge left is known as such.
"""

import fcntl
import os
import re
import secrets
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor

from hf_merge.errors import RunFolderError
from hf_merge.storing import disk
from hf_merge.storing.checkpoints import Checkpoint
from hf_merge.storing.durable import write_atomic
from hf_merge.storing.headers import ITEM_BYTES, TensorSpec
from hf_merge.storing.member_files import copy_file, write_settings
from hf_merge.storing.shards import INDEX_FILE, WEIGHTS_FILE
from hf_merge.storing.strict_json import dumps
from hf_merge.storing.tensors import DTYPES


SHARD_BYTES = 5 * 10**9  # as transformers cut them for years
GENERATION_FILE = "generation_config.json"


@dataclass(frozen=True)
class _Slot:
    """Where a tensor's bytes go: the number of its file, and the offset in it."""

    file: int
    offset: int
    spec: TensorSpec


class ModelFolder:
    """A folder under way; as a context manager it appears whole when the block ends well, and vanishes otherwise."""

    def __init__(self, out: Path, like: Checkpoint, settings: Sequence[Path]) -> None:
        """Prepares to write `out`.

        Args:
            out: The folder; new or empty.
            like: The checkpoint whose tensors, by name, shape and type, the folder will hold, and whose `config.json`.
            settings: Folders that may hold tokenizer or processor files; `write_settings` chooses one.

        Raises:
            RunFolderError: `out` is a file, or a folder that holds something or cannot be replaced.
            ResourceError: The disk refused.
        """
        # Of a link what it points to is replaced: a folder cannot take a link's place.
        self._out, self._like, self._settings = out.resolve(), like, tuple(settings)
        self._partial = self._out.parent / f".{self._out.name}.{secrets.token_hex(8)}.partial"
        self._slots: dict[str, _Slot] = {}
        self._descriptors: list[int] = []
        self._lock: list[int] = []
        self._missing = set(like.specs)

    def __enter__(self) -> Self:
        require_free(self._out)
        with disk.naming(self._out):
            self._out.parent.mkdir(parents=True, exist_ok=True)
            _sweep(self._out)
            self._partial.mkdir()
        try:
            with suppress(OSError):  # where there are no locks, nobody sweeps either
                self._lock.append(_locked(self._partial))
            self._begin()
        except BaseException:
            self._give_up()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self._give_up()
            return
        try:
            self._finish()
        except BaseException:
            self._give_up()
            raise

    def write(self, name: str, values: Tensor) -> None:
        """Writes a tensor.

        Args:
            name: Its name on the checkpoint's disk.
            values: Its values, float32, contiguous; stored in the type that the checkpoint has.
        """
        slot = self._slots[name]
        stored = values.to(DTYPES[slot.spec.dtype]).reshape(-1)
        with disk.naming(self._out):
            _write_at(self._descriptors[slot.file], memoryview(_bytes_of(stored)), slot.offset)
        self._missing.discard(name)

    def copy(self, name: str) -> None:
        """Writes a tensor as the checkpoint has it."""
        self.write(name, self._like.read(name))

    def add_file(self, name: str, data: bytes) -> None:
        """Writes a small file beside the weights."""
        write_atomic(self._partial / name, data)

    def _begin(self) -> None:
        """Makes the files at their full length, each with its header."""
        # The widest types first, as the safetensors library has it, so that every tensor is aligned.
        ordered = sorted(self._like.specs.values(), key=lambda spec: -ITEM_BYTES[spec.dtype])
        shards = _cut(ordered)
        names = [
            WEIGHTS_FILE if len(shards) == 1 else f"model-{number:05}-of-{len(shards):05}.safetensors"
            for number in range(1, len(shards) + 1)
        ]
        for number, (file, specs) in enumerate(zip(names, shards, strict=True)):
            header, start = _header(specs)
            path = self._partial / file
            with disk.naming(self._out):
                descriptor = disk.open_file(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
                self._descriptors.append(descriptor)
                _write_at(descriptor, memoryview(header), 0)
            for spec in specs:
                self._slots[spec.name] = _Slot(number, start, spec)
                start += spec.nbytes
        if len(shards) > 1:
            self._write_index(names)

    def _write_index(self, files: Sequence[str]) -> None:
        total = sum(slot.spec.nbytes for slot in self._slots.values())
        weight_map = {name: files[slot.file] for name, slot in self._slots.items()}
        self.add_file(INDEX_FILE, dumps({"metadata": {"total_size": total}, "weight_map": weight_map}, indent=2))

    def _finish(self) -> None:
        if self._missing:
            raise RuntimeError(f"{len(self._missing)} tensors were not written: {sorted(self._missing)[:3]}")
        write_settings(self._partial, self._like.config, self._settings)
        generation = self._like.folder / GENERATION_FILE
        if generation.is_file():
            copy_file(generation, self._partial / GENERATION_FILE)
        with disk.naming(self._out):
            for descriptor in self._descriptors:
                disk.sync(descriptor)
            _close(self._descriptors)
            disk.sync_folder(self._partial)
            disk.replace(self._partial, self._out)
            disk.sync_folder(self._out.parent)
        _close(self._lock)

    def _give_up(self) -> None:
        _close(self._descriptors)
        shutil.rmtree(self._partial, ignore_errors=True)
        _close(self._lock)


def require_free(out: Path) -> None:
    """Returns if a folder is new, or empty and such that another can take its place.

    Raises:
        RunFolderError: It is a file, holds something, is mounted, or is where this process works.
        ResourceError: It cannot be read.
    """
    with disk.naming(out):
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise RunFolderError(f"{out} exists already and is not empty. Choose a new or empty folder.")
        kind = "the current folder" if out.resolve() == Path.cwd() else "a mount point" if out.is_mount() else None
    if kind is not None:
        raise RunFolderError(
            f"{out} is {kind}, and the model's folder cannot take its place. Name a new folder, as {out / 'model'}."
        )


def _sweep(out: Path) -> None:
    """Removes what killed merges into `out` left beside it: what nobody holds the lock of."""
    left = re.compile(rf"\.{re.escape(out.name)}\.[0-9a-f]+\.partial")
    for partial in [path for path in out.parent.iterdir() if left.fullmatch(path.name)]:
        with suppress(OSError):  # somebody writes it
            lock = _locked(partial)
            shutil.rmtree(partial, ignore_errors=True)
            os.close(lock)


def _locked(folder: Path) -> int:
    """Returns the descriptor of a folder that nobody else has locked; the kernel frees it even after kill -9."""
    descriptor = disk.open_file(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _close(descriptors: list[int]) -> None:
    while descriptors:
        with suppress(OSError):
            os.close(descriptors.pop())


def _cut(specs: Sequence[TensorSpec]) -> list[list[TensorSpec]]:
    """Returns tensors in files of at most SHARD_BYTES, or of one tensor that is larger, in their order."""
    shards: list[list[TensorSpec]] = []
    held = 0
    for spec in specs:
        if not shards or held + spec.nbytes > SHARD_BYTES:
            shards.append([])
            held = 0
        shards[-1].append(spec)
        held += spec.nbytes
    return shards


def _header(specs: Sequence[TensorSpec]) -> tuple[bytes, int]:
    """Returns a safetensors header with its length before it, and where the first tensor begins."""
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    start = 0
    for spec in specs:
        end = start + spec.nbytes
        entries[spec.name] = {"dtype": spec.dtype, "shape": list(spec.shape), "data_offsets": [start, end]}
        start = end
    text = dumps(entries).strip()
    text += b" " * (-len(text) % 8)  # the library aligns tensors so
    return len(text).to_bytes(8, "little") + text, 8 + len(text)


def _bytes_of(flat: Tensor) -> Any:
    """Returns the memory of a contiguous tensor [n] as bytes."""
    return flat.contiguous().view(torch.uint8).numpy().data if flat.numel() else b""


def _write_at(descriptor: int, data: memoryview, offset: int) -> None:
    """Writes every byte at a place of a file."""
    while data:
        written = os.pwrite(descriptor, data, offset)
        data, offset = data[written:], offset + written
