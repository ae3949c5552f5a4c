"""A base and what was trained on it, checked and aligned: what the rest of the library merges.

Backbones are aligned by their names inside the trunk and spoken of by the base's names on disk.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from torch import Tensor

from hf_merge.errors import ModelMismatch
from hf_merge.merging.components import Shape
from hf_merge.merging.group_reader import TensorSource
from hf_merge.storing.checkpoints import Checkpoint, backbones_beside, check_mergeable
from hf_merge.storing.counterparts import unused_in_all


class Source(Protocol):
    """The opened files that one task comes from."""

    @property
    def source(self) -> str:
        """The Hub id or path that the user gave."""

    @property
    def revision(self) -> str | None:
        """The commit they are pinned to, or None for a local folder."""

    @property
    def folder(self) -> Path:
        """Where they lie."""

    def digest(self) -> str:
        """Returns the SHA-256 over everything that decides the weights."""

    def close(self) -> None:
        """Closes every file; reading afterwards is an error."""


class FineTune(TensorSource, Protocol):
    """What one task brings, aligned with the base: a whole fine-tune or an adapter."""

    @property
    def source(self) -> Source:
        """The files that it comes from."""

    @property
    def config(self) -> Mapping[str, Any]:
        """What is known of its head, as a `config.json` would say it."""

    @property
    def head(self) -> tuple[str, ...]:
        """The names of the tensors that are kept per task, as the task's own model names them on disk."""

    def read_head(self, name: str) -> Tensor:
        """Returns a tensor of the head as float32."""

    def head_parameters(self) -> int:
        """Returns the number of parameters of the head."""


@dataclass(frozen=True)
class FineTuned:
    """One task's checkpoint, aligned with the base.

    Attributes:
        task: The task's name.
        checkpoint: The opened checkpoint.
        names: The base's name on disk to this checkpoint's name on disk, for every backbone tensor.
        head: This checkpoint's names on disk of the tensors that are kept per task.
    """

    task: str
    checkpoint: Checkpoint
    names: Mapping[str, str]
    head: tuple[str, ...]

    def read(self, name: str, out: Tensor | None = None) -> Tensor:
        """Returns the backbone tensor that the base calls `name`, as float32, in `out` where it is given."""
        return self.checkpoint.read(self.names[name], out)

    def read_head(self, name: str) -> Tensor:
        """Returns a tensor of the head as float32."""
        return self.checkpoint.read(name)

    def head_parameters(self) -> int:
        """Returns the number of parameters of the head."""
        return sum(self.checkpoint.specs[name].numel for name in self.head)

    @property
    def source(self) -> Checkpoint:
        """The checkpoint, as the files that the task comes from."""
        return self.checkpoint

    @property
    def config(self) -> Mapping[str, Any]:
        """The checkpoint's `config.json`."""
        return self.checkpoint.config


@dataclass(frozen=True)
class Family:
    """A base and its fine-tunes, checked and aligned.

    Attributes:
        base: The opened base.
        tasks: The aligned fine-tunes, in the recipe's order, by task name.
        shapes: The shape of every backbone tensor that all fine-tunes have, by the base's name on disk.
        parameters: d, the parameters of the base backbone as saved.
        origin: Reads what every task vector starts from: the base's weights, and where tasks are adapters what an
            adapter is before training.
        adapted: Where tasks are adapters: each tensor that they bring, and the base's tensor that it acts on. All
            other tensors are the base's own in every task. Empty where tasks are whole fine-tunes.
    """

    base: Checkpoint
    tasks: Mapping[str, FineTune]
    shapes: Mapping[str, Shape]
    parameters: int
    origin: TensorSource
    adapted: Mapping[str, str] = field(default_factory=dict)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.base.close()
        for tuned in self.tasks.values():
            tuned.source.close()

    @property
    def of_base(self) -> tuple[str, ...]:
        """The names of the tensors that the base has too: all but those of adapters."""
        return tuple(name for name in self.shapes if name in self.base.specs)

    def digests(self) -> dict[str, str]:
        """Returns the digest of every checkpoint: `base`, and `task <name>` for each task."""
        return {"base": self.base.digest()} | {
            f"task {name}": tuned.source.digest() for name, tuned in self.tasks.items()
        }

    def head_parameters(self) -> int:
        """Returns the parameters of all heads together; all of them are trained per task."""
        return sum(tuned.head_parameters() for tuned in self.tasks.values())

    def individual_cost(self) -> float:
        """Returns C of the fine-tunes as they are: a whole model each, or one base and all adapters; and all heads."""
        adapter = sum(prod(self.shapes[name]) for name in self.adapted)
        beside = self.head_parameters() + len(self.tasks) * adapter
        return (1 if self.adapted else len(self.tasks)) + beside / self.parameters


def align(base: Checkpoint, tuned: Mapping[str, Checkpoint]) -> Family:
    """Returns the base and its fine-tunes aligned by name.

    Args:
        base: The opened base.
        tuned: The opened fine-tuned checkpoints by task name.

    Raises:
        ModelMismatch: They are not fine-tunes of one base; every clash is listed.
    """
    clashes = check_mergeable(base, tuned)
    if clashes:
        raise ModelMismatch("These checkpoints cannot be merged:\n  " + "\n  ".join(clashes))
    inside, backbones = base.backbone(), backbones_beside(base, tuned)
    common = [key for key in inside if all(key in own for own in backbones.values())]
    tasks: dict[str, FineTune] = {}
    for task, checkpoint in tuned.items():
        own = backbones[task]
        shared = {own[key] for key in own if key in inside}
        heads = tuple(name for name in checkpoint.specs if name not in shared)
        tasks[task] = FineTuned(task, checkpoint, {inside[key]: own[key] for key in common}, heads)
    shapes = {inside[key]: base.specs[inside[key]].shape for key in common}
    unused = unused_in_all(inside, backbones.values())
    used = (name for key, name in inside.items() if key not in unused)
    return Family(base, tasks, shapes, sum(base.specs[name].numel for name in used), base)
