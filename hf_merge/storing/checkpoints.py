"""A base and its fine-tunes on disk: opened by header, aligned by name, read tensor by tensor.

Nothing here knows an architecture. A checkpoint's *trunk* is the first path segment that holds every block and every
embedding (`bert.`, `vit.`, `transformer.`), or nothing where there is no such segment; what lies outside the trunk is
the task's head. Backbones are aligned by their names inside the trunk and spoken of by the base's names on disk; in
memory nothing is renamed. Whatever does not fit is found in configurations and headers, before a weight is read.
"""

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from torch import Tensor

from hf_merge.errors import CheckpointDamaged, some
from hf_merge.merging.components import depth_of
from hf_merge.storing.config_clashes import config_clashes
from hf_merge.storing.counterparts import backbone_beside, unused_in_all
from hf_merge.storing.digests import KeptDigests
from hf_merge.storing.limits import LIMITS
from hf_merge.storing.repo_files import ADAPTER_CONFIG
from hf_merge.storing.shards import find_shards
from hf_merge.storing.strict_json import quote, read_json
from hf_merge.storing.tensor_names import is_pooler, present_name, weights_of
from hf_merge.storing.tensors import SafetensorsFile, TensorSpec


FLOATS = ("F64", "F32", "F16", "BF16")
_EMBEDDING = re.compile(r"embed(?!_out)|(^|\.)(wte|wpe|shared|conv1|patch)")
_SHOWN = 5


class Checkpoint:
    """A checkpoint folder opened for reading: its configuration, its headers, and its tensors on demand.

    Attributes:
        source: The Hub id or path that the user gave.
        revision: The commit it is pinned to, or None for a local folder.
        folder: Where it lies.
        config: Its `config.json`.
        specs: What its headers say, by name on disk; buffers and tied copies left out.
        trunk: The first path segment of its backbone with the dot, or the empty string.
    """

    def __init__(self, source: str, folder: Path, revision: str | None = None, *, headers_only: bool = False) -> None:
        """Opens a checkpoint folder; with `headers_only` its weights are holes, and reading one is an error."""
        self._headers_only, self._digests = headers_only, KeptDigests()
        self.source, self.folder, self.revision = source, folder, revision
        self.config: dict[str, Any] = _read_config(folder, source)
        self._files: list[SafetensorsFile] = []
        self._home: dict[str, tuple[SafetensorsFile, TensorSpec]] = {}
        try:
            self._open_shards()
        except BaseException:
            self.close()
            raise
        everything = {name: spec for name, (_, spec) in self._home.items()}
        self.specs: dict[str, TensorSpec] = weights_of(everything, self.config)
        self.trunk = trunk_of(self.specs)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes every file; reading afterwards is an error."""
        for file in self._files:
            file.close()

    def read(self, name: str, out: Tensor | None = None) -> Tensor:
        """Returns the tensor `name` as float32, in `out` where it is given (same number of elements, contiguous)."""
        if self._headers_only:
            raise RuntimeError(f"{self.source} was opened for its headers alone.")
        file, spec = self._home[name]
        return file.read_float32(spec.name, out)

    def digest(self) -> str:
        """Returns the SHA-256 over its weight files, in the order of their names."""
        joined = hashlib.sha256()
        for path in sorted(file.path for file in self._files):
            joined.update(bytes.fromhex(self._digests.of(path)))
        return joined.hexdigest()

    def backbone(self) -> dict[str, str]:
        """Returns the trunk's tensors: name inside the trunk to name on disk."""
        return {name[len(self.trunk) :]: name for name in self.specs if name.startswith(self.trunk)}

    def outside(self) -> tuple[str, ...]:
        """Returns the names on disk of the tensors outside the trunk: the head."""
        return tuple(name for name in self.specs if not name.startswith(self.trunk))

    def _open_shards(self) -> None:
        shards = find_shards(self.folder, self.source)
        for path in shards.paths:
            opened = SafetensorsFile(path)
            self._files.append(opened)
            found = {present_name(name): (opened, spec) for name, spec in opened.specs.items()}
            doubled = self._home.keys() & found.keys()
            if doubled or len(found) < len(opened.specs):
                raise CheckpointDamaged(
                    f"{self.source}: {path.name} holds a tensor for the second time. Save it anew."
                )
            self._home |= found
        for name, file in shards.index.items():
            held = self._home.get(present_name(name))
            if held is None or held[0].path.name != file:
                raise CheckpointDamaged(
                    f"{self.source}: the index promises {quote(name)} in {file}, which does not hold it. "
                    "Fetch or copy the folder again."
                )


def check_mergeable(base: Checkpoint, tuned: Mapping[str, Checkpoint]) -> list[str]:
    """Returns one line per clash between the base and its fine-tunes, empty if none; no weight is read."""
    place = f"base ({base.source})"
    clashes = list(_unusable(base, place))
    if not any(depth_of(name) is not None for name in base.specs):
        clashes.append(f"{place}: no tensor belongs to a block, so nothing can be cut; is it a transformer?")
    backbones = backbones_beside(base, tuned)
    unused = unused_in_all(base.backbone(), backbones.values())
    for task, checkpoint in tuned.items():
        place = f"task '{task}' ({checkpoint.source})"
        clashes += _unusable(checkpoint, place)
        clashes += config_clashes(base.config, checkpoint.config, place)
        if checkpoint.config["model_type"] == base.config["model_type"]:
            inside = {key: name for key, name in base.backbone().items() if key not in unused}
            clashes += _name_clashes(inside, backbones[task], place)
            clashes += _shape_clashes(base, checkpoint, backbones[task], place)
    return clashes + list(_uneven(base, backbones))


def trunk_of(names: Iterable[str]) -> str:
    """Returns the trunk of a checkpoint with its dot (`bert.`), or the empty string where it has none.

    The trunk is the first path segment that holds every block and every embedding; a head never does.
    """
    core = [name for name in names if depth_of(name) is not None or _EMBEDDING.search(name)]
    first = {name.split(".", 1)[0] for name in core}
    if len(first) != 1 or not any(_EMBEDDING.search(name.split(".", 1)[1]) for name in core if "." in name):
        return ""
    return f"{first.pop()}."


def _read_config(folder: Path, source: str) -> dict[str, Any]:
    path = folder / "config.json"
    if not path.is_file() and (folder / ADAPTER_CONFIG).is_file():
        raise CheckpointDamaged(
            f"{source} is an adapter of peft, where a whole model is needed. Give it as `adapter` of its task, and "
            "the model that it was trained on as the base."
        )
    if not path.is_file():
        raise CheckpointDamaged(f"{source}: there is no config.json in {folder}; give the folder of a whole model.")
    config = read_json(path, LIMITS.config_bytes)
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise CheckpointDamaged(f"{source}: config.json names no model_type, so the architecture is unknown.")
    return config


def _unusable(checkpoint: Checkpoint, place: str) -> Iterator[str]:
    """Yields what makes a checkpoint's weights unusable whatever the others are."""
    if "quantization_config" in checkpoint.config:
        yield (
            f"{place}: the weights are quantised (quantization_config); load it with transformers, call "
            ".dequantize(), save_pretrained, and give that folder"
        )
    others = [name for name in checkpoint.backbone().values() if checkpoint.specs[name].dtype not in FLOATS]
    if others:
        dtypes = sorted({checkpoint.specs[name].dtype for name in others})
        yield f"{place}: stored as {', '.join(dtypes)}, where one of {', '.join(FLOATS)} is needed: {some(others)}"


def backbones_beside(base: Checkpoint, tuned: Mapping[str, Checkpoint]) -> dict[str, dict[str, str]]:
    """Returns the backbone of each fine-tune by task: the name inside the base's trunk to the name on its own disk."""
    inside = base.backbone()
    return {
        task: backbone_beside(inside, checkpoint.backbone(), tuple(checkpoint.specs))
        for task, checkpoint in tuned.items()
    }


def _name_clashes(inside: Mapping[str, str], own: Mapping[str, str], place: str) -> Iterator[str]:
    missing = [inside[key] for key in inside if key not in own and not is_pooler(key)]
    extra = [own[key] for key in own if key not in inside and not is_pooler(key)]
    for names, what in ((missing, "the base has and it lacks"), (extra, "it has and the base lacks")):
        if names:
            yield f"{place}: backbone tensors that {what}: {some(names)}"


def _shape_clashes(base: Checkpoint, tuned: Checkpoint, own: Mapping[str, str], place: str) -> Iterator[str]:
    inside = base.backbone()
    pairs = [(base.specs[inside[key]], tuned.specs[own[key]]) for key in inside if key in own]
    different = [(first, second) for first, second in pairs if first.shape != second.shape]
    for first, second in different[:_SHOWN]:
        shapes = f"{list(second.shape)} where the base has {list(first.shape)}"
        yield f"{place}: '{second.name}' has shape {shapes}"
    if len(different) > _SHOWN:
        yield f"{place}: and {len(different) - _SHOWN} more tensors of other shapes"


def _uneven(base: Checkpoint, backbones: Mapping[str, Mapping[str, str]]) -> Iterator[str]:
    """Yields a line per pooler tensor of the base that some fine-tunes have and others lack."""
    for key in (key for key in base.backbone() if is_pooler(key)):
        having = [task for task, own in backbones.items() if key in own]
        if having and len(having) < len(backbones):
            lacking = [task for task in backbones if task not in having]
            yield f"'{key}' is in {some(having)} but not in {some(lacking)}"
