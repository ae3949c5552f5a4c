"""A member folder opened for reading, which trusts nothing.

Each file's length and SHA-256 are compared with the map before a byte of it is used, and every tensor with what a
codec can have written. How a member is written: `member_writing`. See docs/format.md.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from hf_merge.errors import DigestMismatch, MalformedChainMap, RecipeError
from hf_merge.merging.codecs import CodecSpec
from hf_merge.merging.experts import decode_expert, find_fault, stored_names
from hf_merge.recipe.merging import settings_of
from hf_merge.storing import member_files
from hf_merge.storing.chain_entries import ROUTER_FILE, ChainMap, ExpertEntry, HeadEntry
from hf_merge.storing.headers import Header
from hf_merge.storing.member_files import MAP_FILE
from hf_merge.storing.tensors import SafetensorsFile
from hf_merge.version import VERSION


__all__ = ["MAP_FILE", "EncodedExpert", "Member", "bytes_of", "head_prefix"]

_HEAD_CODEC = "full"
_READ_UNASKED = member_files.COPIED_FILES | {"additional_chat_templates", "chat_template.json"}


@dataclass(frozen=True)
class EncodedExpert:
    """An expert as it is stored, in memory.

    Attributes:
        codec: How it is stored.
        tensors: By the name of each tensor of its component what is stored of it, by stored name.
        reference: The id of the shared expert whose differences it holds; None where it stands alone.
    """

    codec: CodecSpec
    tensors: Mapping[str, Mapping[str, Tensor]]
    reference: str | None


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
            UntrustedContentError: The map breaks a rule of the format, or names a codec that this version does not
                know.
            InputError: A task is unknown or named twice, or there is none.
        """
        self.folder, self.source = folder, source or str(folder)
        self.chain_map: ChainMap = member_files.read_map(folder, self.source, map_sha256)
        self.tasks = member_files.choose_tasks(self.chain_map, tasks)
        self.files = member_files.needed_files(self.chain_map, self.tasks)
        self._codecs = {entry.id: self._codec(entry) for entry in self.chain_map.experts}
        self._checked: dict[str, tuple[int, int, int]] = {}
        self._headers: dict[str, tuple[tuple[int, int, int] | None, Header]] = {}

    @property
    def experts(self) -> tuple[ExpertEntry, ...]:
        """The experts in the chains of its tasks, and those whose differences they store."""
        used = self.chain_map.experts_of(self.tasks)
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

    def require_nothing_unlisted(self) -> None:
        """Refuses files that a tokenizer or processor would read though no digest in the map covers them.

        Raises:
            DigestMismatch: The folder holds such a file.
        """
        stray = sorted({path.name for path in self.folder.iterdir()} & _READ_UNASKED - self.chain_map.files.keys())
        if stray:
            raise DigestMismatch(
                f"{self.source}: {stray[0]} is not in chains.json, and a tokenizer or processor would read it all the "
                f"same. Delete {self.folder / stray[0]}, or fetch or build the member again."
            )

    def check_all(self) -> None:
        """Checks every file in `files` as `check` does."""
        for name in self.files:
            self.check(name)

    def expert(self, entry: ExpertEntry, shared: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Returns an expert's weights, decoded to float32, by tensor name.

        Args:
            entry: The expert.
            shared: What this returns for the shared expert that it differs from, where that is known; only read. None
                has that one read too.

        Raises:
            DigestMismatch: The shard is not the one that the map was written for.
            MalformedChainMap: The shard does not hold the expert that the map describes.
        """
        return dict(self._decoded(entry, self._names(entry), shared))

    def encoded(self, entry: ExpertEntry) -> EncodedExpert:
        """Returns an expert as it is stored, read and checked.

        Raises:
            DigestMismatch: The shard is not the one that the map was written for.
            MalformedChainMap: The shard does not hold the expert that the map describes.
        """
        codec = self._codecs[entry.id]
        stored = self._stored(entry, entry.id, self._names(entry), codec.name)
        return EncodedExpert(codec, dict(stored), entry.reference)

    def _names(self, entry: ExpertEntry) -> tuple[str, ...]:
        """Returns the tensors of an expert's component."""
        return next(item.tensors for item in self.chain_map.components if item.name == entry.component)

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
        for _, stored in self._stored(entry, head_prefix(task), entry.tensors, _HEAD_CODEC):
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

    def _decoded(
        self, entry: ExpertEntry, names: Sequence[str], known: Mapping[str, Tensor] | None = None
    ) -> Iterator[tuple[str, Tensor]]:
        """Yields an expert's weights by name; a difference is added to its shared expert tensor by tensor."""
        codec = self._codecs[entry.id]
        stored = self._stored(entry, entry.id, names, codec.name)
        if entry.reference is None:
            for name, tensors in stored:
                yield name, decode_expert(codec, (name,), tensors)[name]
            return
        shared = next(expert for expert in self.chain_map.experts if expert.id == entry.reference)
        references = self._decoded(shared, names) if known is None else ((name, known[name]) for name in names)
        for (name, tensors), reference in zip(stored, references, strict=True):
            yield name, decode_expert(codec, (name,), tensors, dict([reference]))[name]

    def _codec(self, entry: ExpertEntry) -> CodecSpec:
        """Returns an expert's codec.

        Raises:
            MalformedChainMap: The installed version does not know it or a setting of it, or it stores differences and
                the map does not say from what, or the other way round.
        """
        try:
            codec = CodecSpec.resolve(*settings_of(entry.codec))
        except RecipeError as error:
            writer = self.chain_map.library_version
            told = f"hf-merge {writer} wrote it, and this is {VERSION}: update hf-merge."
            if writer == VERSION:
                told = f"It says that hf-merge {writer} wrote it, which has no such codec: {MAP_FILE} was changed."
            raise MalformedChainMap(f"{self.source}: expert '{entry.id}': {error} {told}") from error
        if codec.residual != (entry.reference is not None):
            difference = f"'{entry.reference}'" if entry.reference is not None else "nothing"
            raise MalformedChainMap(
                f"{self.source}: expert '{entry.id}' of codec '{codec.name}' is said to be a difference from "
                f"{difference}, which does not fit the codec."
            )
        return codec

    def _opened(self, name: str) -> SafetensorsFile:
        """Returns a shard, checked and open; its header is read once for as long as the file stays the same."""
        path = self.check(name)
        state = self._checked.get(name)
        known, header = self._headers.get(name, (None, None))
        file = SafetensorsFile(path, header=header if state is not None and known == state else None)
        self._headers[name] = state, file.header
        return file

    def _stored(
        self, entry: ExpertEntry | HeadEntry, prefix: str, names: Sequence[str], codec: str
    ) -> Iterator[tuple[str, dict[str, Tensor]]]:
        """Yields each name with its stored tensor `<prefix>/<name>` and companions, sound, one after the other.

        Whoever decodes each before the next is read finds it in the processor's cache, and its memory is used again.
        """
        held = 0
        with self._opened(entry.file) as file:
            for name in names:
                parts = [part for part in stored_names(codec, name) if f"{prefix}/{part}" in file.specs]
                stored = {part: file.read(f"{prefix}/{part}") for part in parts}
                fault = find_fault(codec, name, stored)
                if fault is not None:
                    raise MalformedChainMap(f"{file.path}: the tensor '{prefix}/{name}' {fault}.")
                held += bytes_of(stored)
                yield name, stored
        if held != entry.bytes:
            raise MalformedChainMap(
                f"{self.source}: '{prefix}' takes {held} bytes where {MAP_FILE} promises {entry.bytes}."
            )


def head_prefix(task: str) -> str:
    """Returns the first part of the names that a head's tensors have in their shard."""
    return f"heads/{task}"


def bytes_of(tensors: Mapping[str, Tensor]) -> int:
    """Returns what tensors take on disk, without headers."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
