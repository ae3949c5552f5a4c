"""Tensors that run in another layout than they are stored: experts stacked into one tensor, say.

transformers converts some tensors between disk and memory: it stacks, joins, cuts or turns them. Merging knows the
tensors of the disk only. So these are held as they are given, and what the model runs is made from them by
transformers' own conversion, group by group: of a model in which one component was exchanged, only the groups that it
reaches are made anew. What was made is a copy; every other tensor is set by reference.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, TypeAlias

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


@dataclass(frozen=True, eq=False)
class Storage:
    """How the tensors of a model are stored.

    Attributes:
        shapes: The shape of every tensor by its name on disk.
        memory: The name in memory of those tensors that are the same in both, by name on disk.
        fusings: How the others become what the model runs.
    """

    shapes: Mapping[str, Shape]
    memory: Mapping[str, str]
    fusings: tuple[Fusing, ...]


def storage_of(model: Any, weights: Mapping[str, Tensor]) -> Storage:
    """Returns how some weights of a transformers model are stored; no weight is read, and none is converted.

    Args:
        model: The model.
        weights: Its tensors by name in memory; tied ones are one tensor under several names.
    """
    stand_ins = {id(held): held.detach().to("meta") for held in weights.values()}
    by_name = {name: stand_ins[id(held)] for name, held in weights.items()}
    names = {id(stand_in): name for name, stand_in in reversed(by_name.items())}
    on_disk: dict[str, Tensor] = revert_weight_conversion(model, dict(by_name))
    memory = {name: names[id(held)] for name, held in on_disk.items() if id(held) in names}
    converted = {name: held for name, held in on_disk.items() if name not in memory}
    return Storage(
        {name: tuple(held.shape) for name, held in on_disk.items()},
        memory,
        tuple(_fusings(model, converted, by_name)) if converted else (),
    )


def _fusings(model: Any, stored: Mapping[str, Tensor], memory: Mapping[str, Tensor]) -> Iterable[Fusing]:
    """Yields the groups of tensors that are converted together, as `from_pretrained` would collect them."""
    # `revert_weight_conversion` leaves prefixes alone too, for a model that no checkpoint was loaded into.
    steps = [step for step in get_model_conversion_mapping(model, add_legacy=False) if type(step) is not PrefixChange]
    renamings = [step for step in steps if isinstance(step, WeightRenaming)]
    converters = [step for step in steps if isinstance(step, WeightConverter)]
    by_pattern = {pattern: converter for converter in converters for pattern in converter.source_patterns}
    groups: dict[str, list[tuple[str, str]]] = {}
    for name in sorted(stored, key=dot_natural_key):
        first, pattern = rename_source_key(name, renamings, converters, model.base_model_prefix, dict(memory))
        if pattern is not None:
            groups.setdefault(first, []).append((name, pattern))
    for first, parts in groups.items():
        convert = _conversion(model, by_pattern[parts[0][1]], first, parts)
        made = convert({name: stored[name] for name, _ in parts})
        if all(name in memory and made[name].shape == memory[name].shape for name in made):
            yield Fusing(tuple(name for name, _ in parts), tuple(made), convert)


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
