"""The headers of safetensors files, read within limits and without touching a tensor; no torch.

The library takes headers of 100 MB, a key given twice, 100,000 dimensions. Everything that this reader takes the
library takes too, with the same names, types and shapes.

Source: https://github.com/huggingface/safetensors#format
"""

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from types import MappingProxyType
from typing import TypeAlias

from hf_merge.errors import CheckpointDamaged, LimitExceeded, UnsafeName
from hf_merge.storing import disk
from hf_merge.storing.limits import LIMITS
from hf_merge.storing.strict_json import JsonValue, loads, quote


ITEM_BYTES = MappingProxyType(
    {"BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "U16": 2, "I16": 2, "F16": 2, "BF16": 2}
    | {"U32": 4, "I32": 4, "F32": 4, "U64": 8, "I64": 8, "F64": 8}
)

_NAME = re.compile(rf"[!-~]{{1,{LIMITS.stored_name_characters}}}")
_LENGTH_BYTES = 8
_METADATA = "__metadata__"
_SPEC_KEYS = {"dtype", "shape", "data_offsets"}


@dataclass(frozen=True)
class TensorSpec:
    """What a header says of one tensor.

    Attributes:
        name: Its name on disk.
        dtype: Its type in the words of safetensors: `F32`, `BF16`.
        shape: Its shape.
        start: Where its bytes begin, counted from the end of the header.
        end: Where they end.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int

    @property
    def numel(self) -> int:
        """The number of its elements."""
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Its bytes on disk."""
        return self.end - self.start


Header: TypeAlias = tuple[int, dict[str, TensorSpec]]


def read_header(path: Path) -> dict[str, TensorSpec]:
    """Returns the tensors of a safetensors file by name, in the order of their bytes; no tensor is read.

    Raises:
        CheckpointDamaged: The file is missing, no regular file, or its header and length do not agree.
        LimitExceeded: Its header, its number of tensors or a shape is larger than its limit.
        UnsafeName: A tensor's name is not visible ASCII.
    """
    descriptor = disk.open_regular(path)
    try:
        return parse_header(descriptor, path)[1]
    finally:
        os.close(descriptor)


def parse_header(descriptor: int, path: Path) -> Header:
    """Returns where the tensors' bytes begin in an open file, and what its header says of them; `path` names it.

    Raises:
        CheckpointDamaged: The header and the file's length do not agree.
        LimitExceeded: The header, the number of tensors or a shape is larger than its limit.
        UnsafeName: A tensor's name is not visible ASCII.
    """
    with disk.naming(path):
        file_bytes = os.fstat(descriptor).st_size
        length = int.from_bytes(os.pread(descriptor, _LENGTH_BYTES, 0), "little")
    data_start = _LENGTH_BYTES + length
    if data_start > file_bytes:
        raise CheckpointDamaged(
            f"{path} has {file_bytes} bytes, but its header alone claims {length}: "
            "it was cut short, or is no safetensors file."
        )
    if length > LIMITS.header_bytes:
        raise LimitExceeded(f"{path}: a header of {length} bytes, where at most {LIMITS.header_bytes} are read.")
    with disk.naming(path):
        raw = os.pread(descriptor, length, _LENGTH_BYTES)
    if not raw.startswith(b"{"):
        raise CheckpointDamaged(f"{path} is no safetensors file: its header begins with {raw[:8]!r}, not with '{{'.")
    header = loads(raw, f"{path}: header", limit_bytes=LIMITS.header_bytes, error=CheckpointDamaged)
    specs = _specs(header, path)
    _check_contiguous(specs, file_bytes - data_start, path)
    return data_start, {spec.name: spec for spec in specs}


def _specs(header: JsonValue, path: Path) -> list[TensorSpec]:
    """Returns the header's tensors in the order of their bytes; what others write under `__metadata__` is dropped."""
    entries = dict(header) if isinstance(header, dict) else {}
    metadata = entries.pop(_METADATA, {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise CheckpointDamaged(f"{path}: the header's {_METADATA} is no object of texts.")
    if len(entries) > LIMITS.tensors_per_file:
        raise LimitExceeded(f"{path}: {len(entries)} tensors, where at most {LIMITS.tensors_per_file} are read.")
    specs = [_spec(name, entry, path) for name, entry in entries.items()]
    return sorted(specs, key=lambda spec: (spec.start, spec.end))


def _spec(name: str, entry: JsonValue, path: Path) -> TensorSpec:
    place = f"{path}: tensor {quote(name)}"
    if not _NAME.fullmatch(name):
        raise UnsafeName(f"{place}: a name must be visible ASCII, at most {LIMITS.stored_name_characters} characters.")
    if not isinstance(entry, dict) or entry.keys() != _SPEC_KEYS:
        raise CheckpointDamaged(f"{place}: the header must give exactly dtype, shape and data_offsets.")
    dtype = entry["dtype"]
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        raise CheckpointDamaged(f"{place}: the type {quote(dtype)} is none of {', '.join(ITEM_BYTES)}.")
    shape, offsets = _integers(entry["shape"], place), _integers(entry["data_offsets"], place)
    if len(shape) > LIMITS.dimensions or prod(max(size, 1) for size in shape) > LIMITS.tensor_elements:
        raise LimitExceeded(
            f"{place}: a shape of {len(shape)} dimensions, where at most {LIMITS.dimensions} "
            f"and {LIMITS.tensor_elements} elements are read."
        )
    if len(offsets) != 2 or prod(shape) * ITEM_BYTES[dtype] != offsets[1] - offsets[0]:
        raise CheckpointDamaged(
            f"{place}: shape {list(shape)} of {dtype} takes {prod(shape) * ITEM_BYTES[dtype]} bytes, "
            f"but data_offsets are {list(offsets[:3])}."
        )
    return TensorSpec(name, dtype, shape, offsets[0], offsets[1])


def _integers(value: JsonValue, place: str) -> tuple[int, ...]:
    if not isinstance(value, list) or not all(type(item) is int and 0 <= item < 2**63 for item in value):
        raise CheckpointDamaged(
            f"{place}: shape and data_offsets must be arrays of integers of 64 bits, none negative."
        )
    return tuple(item for item in value if isinstance(item, int))


def _check_contiguous(specs: Iterable[TensorSpec], data_bytes: int, path: Path) -> None:
    """Refuses tensors that overlap or leave a hole, and bytes that belong to none."""
    end = 0
    for spec in specs:
        if spec.start != end:
            what = "overlaps the tensor before it" if spec.start < end else "leaves a hole before it"
            raise CheckpointDamaged(f"{path}: '{spec.name}' begins at byte {spec.start}, not at {end}: it {what}.")
        end = spec.end
    if end != data_bytes:
        raise CheckpointDamaged(
            f"{path}: the tensors take {end} bytes, but {data_bytes} follow the header; it was cut short or added to."
        )
