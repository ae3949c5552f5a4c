"""Tensors that run in another layout than they are stored: experts stacked into one tensor, say.

transformers converts some tensors between disk and memory: it stacks, joins, cuts or turns them. Merging knows the
tensors of the disk only. So these are held as they are given, and what the model runs is made from them by
transformers' own conversion, group by group: of a model in which one component was exchanged, only the groups that it
reaches are made anew. What was made is a copy; every other tensor is set by reference.
"""

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    PrefixChange,
    WeightConverter,
    WeightRenaming,
    dot_natural_key,
    rename_source_key,
    revert_weight_conversion,
)

from hf_merge.merging.components import Shape


Convert: TypeAlias = Callable[[Mapping[str, Tensor]], dict[str, Tensor]]


@dataclass(frozen=True, eq=False)
class Fusing:
    """Tensors of the disk that together become other tensors in memory.

    Attributes:
        stored: Their names on disk.
        run: What they become: names in memory.
        convert: Returns the tensors in memory by name, from all tensors of the disk by name.
    """

    stored: tuple[str, ...]
    run: tuple[str, ...]
    convert: Convert


@dataclass(frozen=True)
class Layout:
    """What a model keeps on disk.

    Attributes:
        shapes: The shape of every tensor by its name on disk; of tied ones only that which `save_pretrained` writes.
        memory: The name in memory of those tensors that are the same in both, by name on disk.
    """

    shapes: Mapping[str, Shape]
    memory: Mapping[str, str]

    @property
    def fused(self) -> tuple[str, ...]:
        """The names on disk of the tensors that the model fuses, splits or turns in memory."""
        return tuple(name for name in self.shapes if name not in self.memory)


def storage_of(model: Any, weights: Mapping[str, Tensor]) -> Layout:
    """Returns how some weights of a transformers model are stored; no weight is read, and none is converted.

    Args:
        model: The model.
        weights: Its tensors by name in memory; tied ones are one tensor under several names.
    """
    stand_ins = _stand_ins(weights)
    names = {id(stand_in): name for name, stand_in in reversed(stand_ins.items())}
    on_disk: dict[str, Tensor] = revert_weight_conversion(model, dict(stand_ins))
    return Layout(
        {name: tuple(held.shape) for name, held in on_disk.items()},
        {name: names[id(held)] for name, held in on_disk.items() if id(held) in names},
    )


def fusings_of(model: Any, weights: Mapping[str, Tensor], storage: Layout) -> list[Fusing]:
    """Returns how tensors become what a model runs that are stored otherwise, in the groups that convert together.

    Args:
        model: The model.
        weights: Its tensors by name in memory.
        storage: How these are stored.
    """
    stored = {name: torch.empty(storage.shapes[name], device="meta") for name in storage.fused}
    if not stored:
        return []
    # `revert_weight_conversion` leaves prefixes alone too, for a model that no checkpoint was loaded into.
    steps = [step for step in get_model_conversion_mapping(model, add_legacy=False) if type(step) is not PrefixChange]
    renamings = [step for step in steps if isinstance(step, WeightRenaming)]
    converters = [step for step in steps if isinstance(step, WeightConverter)]
    by_pattern = {pattern: converter for converter in converters for pattern in converter.source_patterns}
    memory = _stand_ins(weights)
    groups: dict[str, list[tuple[str, str]]] = {}
    for name in sorted(stored, key=dot_natural_key):
        first, pattern = rename_source_key(name, renamings, converters, model.base_model_prefix, memory)
        if pattern is not None:
            groups.setdefault(first, []).append((name, pattern))
    found = []
    for first, parts in groups.items():
        convert = _conversion(model, by_pattern[parts[0][1]], first, parts)
        made = convert({name: stored[name] for name, _ in parts})
        if all(name in memory and held.shape == memory[name].shape for name, held in made.items()):
            found.append(Fusing(tuple(name for name, _ in parts), tuple(made), convert))
    return found


def _stand_ins(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns tensors like these that hold nothing; tied ones are one tensor again."""
    made = {id(held): held.detach().to("meta", copy=True) for held in weights.values()}
    return {name: made[id(held)] for name, held in weights.items()}


def _conversion(model: Any, converter: WeightConverter, first: str, parts: Sequence[tuple[str, str]]) -> Convert:
    """Returns what converts the tensors of one group.

    Args:
        model: The model, whose configuration tells some conversions how many heads or experts there are.
        converter: How to convert.
        first: The name in memory of the first tensor that comes out.
        parts: The names on disk of what goes in, each with the pattern that it fits, in the converter's order.
    """

    def convert(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        collecting: Any = deepcopy(converter)
        for name, pattern in parts:
            collecting.add_tensor(first, name, pattern, tensors[name])
        made = collecting.convert(first, model=model, config=model.config)
        return {name: held[0] if isinstance(held, list) else held for name, held in made.items()}

    return convert
