"""safetensors files, read one tensor at a time into memory that the caller owns.

Tensors are read by position and never mapped: mapped pages would count as resident memory, and a file that is cut
short meanwhile would kill the process rather than raise.
"""

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Self

import torch
from safetensors.torch import save
from torch import Tensor

from hf_merge.errors import CheckpointDamaged, ModelMismatch
from hf_merge.storing import disk
from hf_merge.storing.headers import Header, TensorSpec, parse_header, read_header
from hf_merge.storing.limits import MIB
from hf_merge.storing.strict_json import quote


__all__ = ["DTYPES", "SafetensorsFile", "TensorSpec", "read_header", "sha256_of", "tensor_bytes"]

DTYPES = MappingProxyType(
    {
        "BOOL": torch.bool,
        "U8": torch.uint8,
        "I8": torch.int8,
        "U16": torch.uint16,
        "I16": torch.int16,
        "U32": torch.uint32,
        "I32": torch.int32,
        "U64": torch.uint64,
        "I64": torch.int64,
        "F8_E4M3": torch.float8_e4m3fn,
        "F8_E5M2": torch.float8_e5m2,
        "F16": torch.float16,
        "BF16": torch.bfloat16,
        "F32": torch.float32,
        "F64": torch.float64,
    }
)

_BUFFER_BYTES = 4 * MIB


class SafetensorsFile:
    """An open safetensors file.

    Attributes:
        path: Where it lies.
        header: Where its tensors' bytes begin, and `specs`.
    """

    def __init__(self, path: Path, *, follow_links: bool = True, header: Header | None = None) -> None:
        """Opens `path` and reads its header.

        Args:
            path: The file.
            follow_links: Whether `path` may be a symbolic link, as every file in a snapshot of the Hub's cache is.
            header: The header, where the very same file was open before; reading it again takes a while.

        Raises:
            CheckpointDamaged: The file is missing, no regular file, or its header and length do not agree.
            LimitExceeded: Its header, its number of tensors or a shape is larger than its limit.
            UnsafeName: A tensor's name is not visible ASCII.
        """
        self.path = path
        self._scratch: Tensor | None = None
        self._descriptor = disk.open_regular(path, follow_links=follow_links)
        try:
            self.header = parse_header(self._descriptor, path) if header is None else header
        except BaseException:
            self.close()
            raise

    @property
    def specs(self) -> dict[str, TensorSpec]:
        """Its tensors by name, in the order of their bytes."""
        return self.header[1]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the file; reading afterwards is an error."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def read(self, name: str) -> Tensor:
        """Returns the tensor `name` in its own type and shape, in fresh memory.

        Raises:
            CheckpointDamaged: There is no such tensor, or the file became shorter.
        """
        spec = self._spec(name)
        buffer = torch.empty(spec.nbytes, dtype=torch.uint8)
        self._fill(spec, 0, buffer)
        if spec.dtype == "BOOL":
            return buffer.ne(0).view(spec.shape)
        return buffer.view(DTYPES[spec.dtype]).view(spec.shape)

    def read_float32(self, name: str, out: Tensor | None = None) -> Tensor:
        """Returns the tensor `name` as float32.

        Args:
            name: Its name on disk.
            out: Memory to read into and return: float32, contiguous, on the CPU, as many elements, any shape. None
                takes fresh memory in the tensor's shape.

        Raises:
            CheckpointDamaged: There is no such tensor, or the file became shorter.
            ModelMismatch: It holds integers, so it is no weight or a quantised one.
            ValueError: `out` does not fit.
        """
        spec = self._spec(name)
        if not DTYPES[spec.dtype].is_floating_point:
            raise ModelMismatch(
                f"{self.path}: '{name}' is stored as {spec.dtype}, not as floating-point numbers; "
                "dequantise the checkpoint and save it first."
            )
        if out is None:
            out = torch.empty(spec.shape, dtype=torch.float32)
        if (
            out.dtype != torch.float32
            or out.numel() != spec.numel
            or not out.is_contiguous()
            or out.device.type != "cpu"
        ):
            raise ValueError(
                f"out must be {spec.numel} contiguous float32 values on the CPU, not {out.dtype} {out.shape}"
            )
        flat = out.detach().view(-1)
        if spec.dtype == "F32":
            self._fill(spec, 0, flat.view(torch.uint8))
        else:
            self._convert(spec, flat)
        return out

    def _convert(self, spec: TensorSpec, flat: Tensor) -> None:
        """Reads a tensor of another float type into `flat` [n] float32, a bounded piece at a time."""
        if self._scratch is None:
            self._scratch = torch.empty(_BUFFER_BYTES, dtype=torch.uint8)
        dtype = DTYPES[spec.dtype]
        step = _BUFFER_BYTES // dtype.itemsize
        for first in range(0, spec.numel, step):
            piece = flat[first : first + step]
            raw = self._scratch[: piece.numel() * dtype.itemsize]
            self._fill(spec, first * dtype.itemsize, raw)
            piece.copy_(raw.view(dtype))

    def _fill(self, spec: TensorSpec, offset: int, target: Tensor) -> None:
        """Reads bytes of a tensor, from `offset` on, straight into the memory of `target` [n] uint8."""
        view = memoryview(target.numpy().data)
        position = self.header[0] + spec.start + offset
        while view:
            with disk.naming(self.path):
                count = os.preadv(self._descriptor, [view], position)
            if count == 0:
                raise CheckpointDamaged(
                    f"{self.path} became shorter while '{spec.name}' was read; copy or fetch it again."
                )
            view = view[count:]
            position += count

    def _spec(self, name: str) -> TensorSpec:
        if name not in self.specs:
            raise CheckpointDamaged(f"{self.path} holds no tensor {quote(name)}; is the checkpoint complete?")
        return self.specs[name]


def sha256_of(path: Path) -> str:
    """Returns the SHA-256 of a file in hex, read through one small buffer.

    Raises:
        CheckpointDamaged: The file is missing, or no regular file.
    """
    digest = hashlib.sha256()
    buffer = bytearray(_BUFFER_BYTES)
    view = memoryview(buffer)
    with os.fdopen(disk.open_regular(path), "rb", buffering=0) as file, disk.naming(path):
        while count := file.readinto(buffer):
            digest.update(view[:count])
    return digest.hexdigest()


def tensor_bytes(tensors: Mapping[str, Tensor]) -> bytes:
    """Returns tensors as the bytes of a safetensors file: the same for equal tensors. Meant for small files."""
    return save(dict(tensors))
