"""What was gathered of fine-tunes for merge methods, kept in files, so that it is gathered once.

One safetensors file per fine-tune; a tensor's name says which dimension of the weight meets the inputs, and then the
weight's name in the base. The file's name holds a digest of all that it was gathered from: whoever asks for something
else finds nothing, and gathers anew.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from hf_merge.merging.methods import Gathered
from hf_merge.storing.durable import write_atomic
from hf_merge.storing.headers import Header
from hf_merge.storing.member_files import state_of
from hf_merge.storing.tensors import SafetensorsFile, tensor_bytes


@dataclass(frozen=True)
class GatheredFile:
    """What was gathered of one fine-tune.

    Attributes:
        path: Where it lies; opened for each tensor, so that nothing stays open. Its header is read once for as long
            as the file stays the same.
    """

    path: Path
    _known: dict[tuple[int, int, int], Header] = field(default_factory=dict, init=False, repr=False, compare=False)

    def find(self, name: str) -> Gathered | None:
        """Returns what was gathered of a tensor, or None where there is nothing of the kind.

        Raises:
            CheckpointDamaged: The file is missing or damaged.
        """
        with self._opened() as file:
            axis = next((axis for axis in (0, 1) if f"{axis}/{name}" in file.specs), None)
            return None if axis is None else Gathered(file.read_float32(f"{axis}/{name}"), axis)

    def _opened(self) -> SafetensorsFile:
        state = state_of(self.path)
        file = SafetensorsFile(self.path, header=None if state is None else self._known.get(state))
        if state is not None and state not in self._known:
            self._known.clear()
            self._known[state] = file.header
        return file


def gathered_path(folder: Path, task: str, origin: Mapping[str, str]) -> Path:
    """Returns where what was gathered of a task's fine-tune is kept; another origin is another file.

    Args:
        folder: Where such files lie.
        task: The task.
        origin: Everything that decides what is gathered, by name.
    """
    digest = hashlib.sha256(json.dumps(dict(origin), sort_keys=True).encode()).hexdigest()
    return folder / f"{task}-{digest[:16]}.safetensors"


def write_gathered(path: Path, gathered: Mapping[str, Gathered]) -> None:
    """Writes what was gathered of a fine-tune, by the tensors' names in the base.

    Raises:
        ResourceError: The disk refused.
    """
    tensors = {f"{part.axis}/{name}": part.values.contiguous() for name, part in gathered.items()}
    write_atomic(path, tensor_bytes(tensors))
