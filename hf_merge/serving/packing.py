"""Experts kept in memory as they are stored, and decoded tensor by tensor when a model uses them.

What is held is about what C says. Decoding is the same function that everyone uses, so that a model that unpacks as it
goes gives the same bits as one that was decoded beforehand.
"""

from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from threading import RLock

import torch
from torch import Tensor

from hf_merge.errors import InputError
from hf_merge.merging.experts import decode_expert
from hf_merge.storing.chain_entries import ChainMap
from hf_merge.storing.library import EncodedExpert, Member


MEMORY = ("auto", "dense", "packed")
CACHE_BYTES = 16 * 2**20
_MEMINFO = Path("/proc/meminfo")
_CGROUP = Path("/sys/fs/cgroup")
_LEDGERS = (  # of cgroups 2 and 1: a container's limit, what it uses, and where under which name what of that is cache
    ("memory.max", "memory.current", "memory.stat", "inactive_file"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat", "total_inactive_file"),
)


class PackedExperts:
    """The experts of an opened member, encoded. Threads may share it; they take turns.

    Attributes:
        decoded: How many tensors were decoded.
    """

    def __init__(
        self, member: Member, device: torch.device, dtype: torch.dtype, *, cache_bytes: int = CACHE_BYTES
    ) -> None:
        """Prepares to read experts when they are first used.

        Args:
            member: The member.
            device: Where decoded tensors go.
            dtype: What they become.
            cache_bytes: How much of what was decoded last is kept.
        """
        self._member, self._device, self._dtype, self._limit = member, device, dtype, cache_bytes
        self._entries = {entry.id: entry for entry in member.experts}
        self._experts: dict[str, EncodedExpert] = {}
        self._cache: OrderedDict[tuple[str, str], Tensor] = OrderedDict()
        self._lock = RLock()
        self.decoded = 0

    def tensor(self, identifier: str, name: str) -> Tensor:
        """Returns a tensor of an expert, decoded, where and in the type that the models compute.

        Raises:
            DigestMismatch: The shard is not the one that the map was written for.
            MalformedChainMap: The shard does not hold the expert that the map describes.
        """
        with self._lock:
            place = identifier, name
            if place in self._cache:
                self._cache.move_to_end(place)
                return self._cache[place]
            with torch.inference_mode(False):  # what is kept may be read by whoever is not in it
                found = self._decode(identifier, name).to(self._device, self._dtype)
            self.decoded += 1
            self._keep(place, found)
            return found

    @property
    def nbytes(self) -> int:
        """The bytes that are held: experts as stored, and what of them is kept decoded."""
        stored = (
            part for expert in self._experts.values() for held in expert.tensors.values() for part in held.values()
        )
        return sum(part.nbytes for part in (*stored, *self._cache.values()))

    def _decode(self, identifier: str, name: str) -> Tensor:
        """Returns a tensor of an expert, float32."""
        expert = self._experts.get(identifier)
        if expert is None:
            expert = self._experts[identifier] = self._member.encoded(self._entries[identifier])
        shared = {} if expert.reference is None else {name: self._decode(expert.reference, name)}
        return decode_expert(expert.codec, (name,), expert.tensors[name], shared)[name]

    def _keep(self, place: tuple[str, str], tensor: Tensor) -> None:
        """Keeps what was decoded last, that one at least: some models ask for a weight several times in a row."""
        self._cache[place] = tensor
        while len(self._cache) > 1 and sum(kept.nbytes for kept in self._cache.values()) > self._limit:
            self._cache.popitem(last=False)


def chosen_memory(memory: str, member: Member, device: torch.device, dtype: torch.dtype) -> str:
    """Returns `dense` or `packed`: as asked for, or by free memory.

    `auto` packs where all chains decoded would take more than half of what is free; where nobody says what is free, it
    does not.

    Raises:
        InputError: There is no such mode.
    """
    if memory not in MEMORY:
        raise InputError(f"memory is {memory!r:.80}; choose one of {', '.join(MEMORY)}.")
    if memory != "auto":
        return memory
    free = free_bytes(device)
    needed = decoded_bytes(member.chain_map, member.tasks, dtype)
    return "packed" if free is not None and needed > free / 2 else "dense"


def decoded_bytes(chain_map: ChainMap, tasks: tuple[str, ...], dtype: torch.dtype) -> int:
    """Returns about what the chains of tasks take decoded: an expert that several have is held once.

    How much of the model a component is, the largest of its experts tells, as it is stored.
    """
    stored = dict.fromkeys((component.name for component in chain_map.components), 0)
    for entry in chain_map.experts:
        stored[entry.component] = max(stored[entry.component], entry.bytes)
    chains = zip(*(chain_map.chains[task] for task in tasks), strict=True)
    held = sum(largest * len(set(column)) for largest, column in zip(stored.values(), chains, strict=True))
    return round(held / max(1, sum(stored.values())) * chain_map.base.parameters * dtype.itemsize)


def free_bytes(device: torch.device) -> int | None:
    """Returns the memory that is free on a device, in a container no more than its limit leaves; None if none says."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    if device.type != "cpu":
        return None
    kib = _entries(_MEMINFO).get("MemAvailable:")
    said = [None if kib is None else kib * 1024]
    said += [_left(_CGROUP / limit, _CGROUP / usage, _CGROUP / stat, cache) for limit, usage, stat, cache in _LEDGERS]
    return min((free for free in said if free is not None), default=None)


def _left(limit: Path, usage: Path, stat: Path, cache: str) -> int | None:
    """Returns what a container's limit leaves, None where there is none; cached files make room when asked to."""
    most, used = _number(limit), _number(usage)
    return None if most is None or used is None else max(0, most - used + _entries(stat).get(cache, 0))


def _number(file: Path) -> int | None:
    text = file.read_text().strip() if file.is_file() else ""
    return int(text) if text.isdecimal() else None


def _entries(file: Path) -> Mapping[str, int]:
    """Returns the first number of each line by the word before it."""
    lines = [line.split() for line in file.read_text().splitlines()] if file.is_file() else []
    return {words[0]: int(words[1]) for words in lines if len(words) > 1 and words[1].isdecimal()}
