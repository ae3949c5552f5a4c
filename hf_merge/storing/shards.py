"""Which files of a checkpoint folder hold its weights: one safetensors file, or the shards that an index names.

An index comes from outside: it may name only plain safetensors files that lie beside it. Pickled weights are never
opened.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from hf_merge.errors import CheckpointDamaged, PickleRefused, UnsafeName, some
from hf_merge.storing.limits import LIMITS
from hf_merge.storing.repo_files import PICKLE_FILES
from hf_merge.storing.strict_json import quote, read_json


WEIGHTS_FILE, INDEX_FILE = "model.safetensors", "model.safetensors.index.json"
_SHARD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}\.safetensors")


@dataclass(frozen=True)
class Shards:
    """The files that hold a checkpoint's weights.

    Attributes:
        paths: The files, by name.
        index: The name of the file that holds each tensor, by the tensor's name; empty where there is one file.
    """

    paths: tuple[Path, ...]
    index: Mapping[str, str]


def find_shards(folder: Path, source: str) -> Shards:
    """Returns the safetensors files of a checkpoint folder, as transformers chooses them: one file before an index.

    Args:
        folder: The checkpoint's folder.
        source: What the user calls it, for messages.

    Raises:
        PickleRefused: The folder holds pickled weights only.
        CheckpointDamaged: There are no weights, or the index names a file that is not there.
        UnsafeName: The index names something that is no plain file name.
    """
    if (folder / WEIGHTS_FILE).is_file():
        return Shards((folder / WEIGHTS_FILE,), {})
    if (folder / INDEX_FILE).is_file():
        index = _read_index(folder, source)
        return Shards(tuple(folder / name for name in sorted(set(index.values()))), index)
    pickles = sorted(path.name for pattern in PICKLE_FILES for path in folder.glob(pattern))
    if pickles:
        raise PickleRefused(
            f"{source} holds pickled weights only ({_some(pickles)}), which can run code when opened. "
            "Convert them once: model.save_pretrained(folder) with transformers 5 writes safetensors."
        )
    found = _some(sorted(path.name for path in folder.iterdir())) or "nothing"
    raise CheckpointDamaged(f"{source}: there is no {WEIGHTS_FILE} in {folder}, but {found}. Is the folder complete?")


def _read_index(folder: Path, source: str) -> dict[str, str]:
    document = read_json(folder / INDEX_FILE, LIMITS.index_bytes)
    weight_map = document.get("weight_map") if isinstance(document, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointDamaged(f"{source}: {INDEX_FILE} has no 'weight_map' from tensor to file.")
    index: dict[str, str] = {}
    for name, file in weight_map.items():
        if not isinstance(file, str) or not _SHARD.fullmatch(file):
            raise UnsafeName(f"{source}: {INDEX_FILE} names the shard {quote(file)}, which is no plain file name.")
        index[name] = file
    missing = sorted(file for file in set(index.values()) if not (folder / file).is_file())
    if missing:
        raise CheckpointDamaged(
            f"{source}: {INDEX_FILE} names {_some(missing)}, not found in {folder}. Fetch or copy the folder again."
        )
    return index


def _some(names: list[str]) -> str:
    return some([quote(name)[1:-1] for name in names])
