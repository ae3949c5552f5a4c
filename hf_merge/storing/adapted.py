"""Adapters aligned with their base: what each brings, tensor by tensor, and what it is before training.

An adapter's tensors are named after the base's weight on disk that they act on, so that adapters written by
transformers 4 and 5 agree: `encoder.layer.0.attention.self.key.ia3_l`. LoRA's scale is multiplied into the factor B,
and smaller ranks are filled up with zeros to the largest. A task that leaves a module alone has there what an adapter
is before training: ones for (IA)3, an update of zero for LoRA, the base's own bias.

Where whole fine-tunes stand beside, or adapters of both kinds, adapters are multiplied into the base's weights tensor
by tensor as these are read, and count as whole fine-tunes.
"""

import logging
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hf_merge.errors import ModelMismatch
from hf_merge.merging.components import Shape
from hf_merge.merging.factors import A_SUFFIX, B_SUFFIX
from hf_merge.storing.adapters import VECTOR_SUFFIX, Adapter
from hf_merge.storing.checkpoints import Checkpoint, check_mergeable
from hf_merge.storing.families import Family, FineTune, align
from hf_merge.storing.sources import FULL_HUB_ID


logger = logging.getLogger(__name__)
_WRAPPERS = 4  # how many names of wrapping modules may stand before a path inside the base


@dataclass(frozen=True)
class Origin:
    """What every adapter of a base starts from.

    Attributes:
        base: The opened base.
    """

    base: Checkpoint

    def read(self, name: str, out: Tensor | None = None) -> Tensor:
        """Returns a tensor before training, as float32, in `out`, which an adapter's own tensor needs."""
        before = 1.0 if name.endswith(VECTOR_SUFFIX) else 0.0 if name.endswith((A_SUFFIX, B_SUFFIX)) else None
        if before is None:
            return self.base.read(name, out)
        if out is None:
            raise ValueError(f"'{name}' has no shape of its own: give the memory to read it into.")
        return out.fill_(before)


@dataclass(frozen=True)
class Adapted:
    """One task's adapter, aligned with the base.

    Attributes:
        task: The task's name.
        adapter: The opened adapter.
        origin: What it starts from.
        names: What the family calls its tensors, to what the adapter does.
        shapes: The shape of every tensor that adapters of the family bring, by the family's names.
        head: The names of its head's tensors.
    """

    task: str
    adapter: Adapter
    origin: Origin
    names: Mapping[str, str]
    shapes: Mapping[str, Shape]
    head: tuple[str, ...]

    def read(self, name: str, out: Tensor | None = None) -> Tensor:
        """Returns a tensor of the backbone or of the adapter as float32, in `out` where it is given."""
        if name in self.shapes and out is None:
            out = torch.empty(self.shapes[name])
        own = self.names.get(name)
        if own is None or out is None:
            return self.origin.read(name, out)
        held = self.adapter.read(own)
        if name.endswith((A_SUFFIX, B_SUFFIX)):
            return self._filled(name, own, held, out)
        return out.copy_(held.view(out.shape))

    def _filled(self, name: str, own: str, held: Tensor, out: Tensor) -> Tensor:
        """Returns a factor of the family's rank: the rest zeros, and the scale inside B."""
        filled = out.view(self.shapes[name]).zero_()
        if name.endswith(A_SUFFIX):
            filled[: len(held)] = held
        else:
            filled[:, : held.shape[1]] = held * _scale_of(self.adapter, own, held.shape[1])
        return out

    def read_head(self, name: str) -> Tensor:
        """Returns a tensor of the head as float32."""
        return self.adapter.read(name)

    def head_parameters(self) -> int:
        """Returns the number of parameters of the head."""
        return sum(self.adapter.specs[name].numel for name in self.head)

    @property
    def source(self) -> Adapter:
        """The adapter, as the files that the task comes from."""
        return self.adapter

    @property
    def config(self) -> Mapping[str, Any]:
        """How many labels the head has: its last layer has one row for each, and nothing takes these as inputs."""
        shapes = [self.adapter.specs[name].shape for name in self.head]
        matrices = [shape for shape in shapes if len(shape) == 2]
        last = [
            shape
            for place, shape in enumerate(matrices)
            if all(shape[0] != inputs for _, inputs in matrices[:place] + matrices[place + 1 :])
        ]
        return {"num_labels": min(shape[0] for shape in last or matrices)} if matrices else {}


@dataclass(frozen=True)
class Folded(Adapted):
    """One task's adapter, multiplied into the base's weights as they are read."""

    def read(self, name: str, out: Tensor | None = None) -> Tensor:
        """Returns the weight that base and adapter make together, as float32, in `out` where it is given."""
        own = self.names.get(name)
        weight = self.origin.base.read(name, out) if own is None else self.adapter.read(own, out)
        module, _, what = name.rpartition(".")
        shaped = weight.view(self.origin.base.specs[name].shape)
        vector, b = self.names.get(module + VECTOR_SUFFIX), self.names.get(module + B_SUFFIX)
        if vector is not None:
            scale = self.adapter.read(vector)
            of_inputs = scale.shape[0] == 1 and scale.shape[1] > 1
            if what == "weight":
                shaped *= scale.T if self.adapter.transposed else scale
            elif not of_inputs:
                shaped *= scale.view(-1)
        elif b is not None and what == "weight":
            a, wide = self.adapter.read(self.names[module + A_SUFFIX]), self.adapter.read(b)
            update = (wide @ a) * _scale_of(self.adapter, b, len(a))
            shaped += update.T if self.adapter.transposed else update
        return weight


def align_adapted(
    base: Checkpoint,
    tuned: Mapping[str, Checkpoint | Adapter],
    used: Collection[str],
    renamed: Mapping[str, str],
) -> Family:
    """Returns a base and what was trained on it, some or all of it adapters, aligned by name.

    Args:
        base: The opened base.
        tuned: The opened fine-tuned checkpoints and adapters by task name.
        used: The base's backbone tensors that the tasks' models have, too; adapters do not say.
        renamed: What the base's tensors are called in memory, inside the model without a head, to their names on disk
            inside the trunk, where transformers calls them otherwise.

    Raises:
        ModelMismatch: They do not belong to one base; every clash is listed.
    """
    adapters = {task: held for task, held in tuned.items() if isinstance(held, Adapter)}
    whole = {task: held for task, held in tuned.items() if isinstance(held, Checkpoint)}
    placed = {task: _Placed(task, adapter, base, renamed) for task, adapter in adapters.items()}
    clashes = [clash for found in placed.values() for clash in found.clashes()]
    clashes += check_mergeable(base, whole)
    if clashes:
        raise ModelMismatch("These adapters cannot be merged:\n  " + "\n  ".join(clashes))
    kinds = {adapter.kind for adapter in adapters.values()}
    if whole or len(kinds) > 1:
        return _folded(base, tuned, whole, placed)
    names = sorted({name for found in placed.values() for name in found.names})
    shapes = {name: _widest(name, placed) for name in names}
    origin = Origin(base)
    tasks: dict[str, FineTune] = {
        task: Adapted(task, found.adapter, origin, found.names, shapes, found.head) for task, found in placed.items()
    }
    inside = list(base.backbone().values())
    of_base = {name: base.specs[name].shape for name in inside if name in used}
    targets = {name: target for found in placed.values() for name, target in found.targets.items()}
    return Family(base, tasks, of_base | shapes, sum(base.specs[name].numel for name in inside), origin, targets)


def _folded(
    base: Checkpoint,
    tuned: Mapping[str, Checkpoint | Adapter],
    whole: Mapping[str, Checkpoint],
    placed: Mapping[str, "_Placed"],
) -> Family:
    """Returns a family in which adapters count as whole fine-tunes."""
    logger.warning(
        "Adapters beside %s: %s become whole fine-tunes here, and cost as much storage as these do.",
        "whole fine-tunes" if whole else "adapters of another kind",
        ", ".join(f"'{task}'" for task in placed),
    )
    family = align(base, whole)
    origin = Origin(base)
    tasks: dict[str, FineTune] = {
        task: Folded(task, placed[task].adapter, origin, placed[task].names, {}, placed[task].head)
        if task in placed
        else family.tasks[task]
        for task in tuned
    }
    return Family(base, tasks, family.shapes, family.parameters, base)


class _Placed:
    """An adapter's tensors, each found its place in the base.

    Attributes:
        adapter: The adapter.
        names: What the family calls its tensors, to what the adapter does.
        targets: The base's tensor that each acts on, by the family's names.
        head: The names of the tensors that have no place in the base: the task's head.
    """

    def __init__(self, task: str, adapter: Adapter, base: Checkpoint, renamed: Mapping[str, str]) -> None:
        self.adapter, self._base, self._task = adapter, base, task
        self.names: dict[str, str] = {}
        self.targets: dict[str, str] = {}
        self._lost: list[str] = []
        self._inside = base.backbone()
        self._renamed = renamed
        for module, names in adapter.modules().items():
            target = self._find(f"{module}.weight")
            if target is None:
                self._lost.append(module)
                continue
            for name in names:
                own = target.removesuffix(".weight") + name.removeprefix(module)
                self.names[own], self.targets[own] = name, target
        found = {name: self._find(name) for name in adapter.whole()}
        self.head = tuple(name for name, target in found.items() if target is None)
        for name, target in found.items():
            if target is not None:
                self.names[target], self.targets[target] = name, target

    def clashes(self) -> Iterator[str]:
        """Yields a line for everything that keeps the adapter from acting on the base."""
        place = f"task '{self._task}' ({self.adapter.source})"
        told, base = self.adapter.trained_on, self._base.source
        if told and told != base and _is_other(told, base):
            yield (
                f"{place}: an adapter of '{told}', where the base is '{base}'; give its own base, or, if both are the "
                "same weights, a local copy of the base"
            )
        if self._lost:
            more = f" and {len(self._lost) - 1} more" if len(self._lost) > 1 else ""
            yield (
                f"{place}: its target module '{self._lost[0]}'{more} is not in the base ({base}); "
                f"it says that its base is '{told or 'unknown'}'"
            )
        elif not self.targets:
            yield f"{place}: it acts on nothing in the base; was it saved whole?"
        for name, own in self.names.items():
            found, target = self.adapter.specs[own].shape, self._base.specs[self.targets[name]].shape
            if not _fits(name, found, target):
                yield f"{place}: '{own}' has shape {list(found)}, which does not act on the base's {list(target)}"
                return

    def _find(self, name: str) -> str | None:
        """Returns the base's name on disk of a tensor, whatever modules are wrapped around it."""
        parts = name.replace(".base_layer.", ".").split(".")  # what newer releases of peft call a wrapped module's own
        for start in range(min(_WRAPPERS, len(parts))):
            short = ".".join(parts[start:])
            inside = short if short in self._inside else self._renamed.get(short)
            if inside in self._inside:
                return self._inside[inside]
        return None


def _widest(name: str, placed: Mapping[str, _Placed]) -> Shape:
    """Returns a tensor's shape in the family: that of the largest rank where ranks differ."""
    shapes = [found.adapter.specs[found.names[name]].shape for found in placed.values() if name in found.names]
    return tuple(max(sizes) for sizes in zip(*shapes, strict=True))


def _fits(name: str, found: Shape, target: Shape) -> bool:
    """Returns whether a tensor of an adapter can act on a tensor of the base."""
    if name.endswith(VECTOR_SUFFIX):
        return len(target) == 2 and len(found) == 2 and min(found) == 1 and max(found) in target
    if name.endswith((A_SUFFIX, B_SUFFIX)):
        side = found[1] if name.endswith(A_SUFFIX) else found[0]
        return len(target) == 2 and len(found) == 2 and side in target
    return found == target


def _is_other(told: str, base: str) -> bool:
    """Returns whether two Hub ids name different models; owners may differ, for models move and are mirrored."""
    both = FULL_HUB_ID.fullmatch(told) and FULL_HUB_ID.fullmatch(base)
    return both is not None and told.rsplit("/", 1)[-1].lower() != base.rsplit("/", 1)[-1].lower()


def _scale_of(adapter: Adapter, name: str, rank: int) -> float:
    """Returns what the factor B called `name` is multiplied by."""
    if adapter.scale is None:
        raise RuntimeError(f"{adapter.source}: only LoRA has factors.")
    return adapter.scale.of(name.removesuffix(B_SUFFIX), rank)
