"""Weights that a model reads when it uses them, so that nobody need hold them all at once.

transformers and torch take a module's weight as its attribute, and so from the module's own mapping of parameters or
buffers: a mapping that asks for the weight instead of holding it serves every architecture, also where one module uses
another's weight. What stands in the weight's place has its shape, type and device, no memory, and is NaN throughout:
whoever went around the attribute would not get wrong numbers, but none.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from hf_merge.errors import ModelMismatch
from hf_merge.modeling.assembly import TaskModel
from hf_merge.modeling.skeletons import PartSlot, Slot


def set_on_use(
    model: TaskModel, names: Iterable[str], trunk: str, dtype: torch.dtype, read: Callable[[str], Tensor]
) -> None:
    """Has a model read its backbone tensors each time that it uses them.

    What a model runs in another layout than it stores is read now, and held.

    Args:
        model: The model; its device is where the tensors must be.
        names: The tensors, as on the base's disk.
        trunk: The base's trunk.
        dtype: The type of the tensors.
        read: Returns a tensor by its name on the base's disk.

    Raises:
        ModelMismatch: A tensor has no place in the model; or another shape, which shows when it is first used.
    """
    for name in names:
        own = model.own_name(name, trunk)
        slot = model.slots.get(own)
        if slot is None or isinstance(slot, PartSlot):
            model.put(own, read(name))
            continue
        slot.fill(torch.full((), torch.nan, dtype=dtype, device=model.device).expand(slot.shape))
        reader = _reader(slot, name, read)
        for module, attribute in slot.places:
            _mapping(module, attribute).ask[attribute] = reader
    model.settle()


class _AskedFor(dict[str, Any]):
    """A module's parameters or buffers, of which some are asked for anew each time.

    Attributes:
        ask: What returns them, by attribute.
    """

    def __init__(self, held: dict[str, Any]) -> None:
        super().__init__(held)
        self.ask: dict[str, Callable[[], Tensor]] = {}

    def __getitem__(self, attribute: str) -> Any:
        ask = self.ask.get(attribute)
        return super().__getitem__(attribute) if ask is None else ask()


def _mapping(module: nn.Module, attribute: str) -> _AskedFor:
    """Returns a module's mapping that holds an attribute, put in the place of the one that it had."""
    kind = "_buffers" if attribute in module._buffers else "_parameters"
    held = getattr(module, kind)
    if not isinstance(held, _AskedFor):
        held = _AskedFor(held)
        vars(module)[kind] = held
    return held


def _reader(slot: Slot, name: str, read: Callable[[str], Tensor]) -> Callable[[], Tensor]:
    def asked() -> Tensor:
        tensor = read(name)
        if tuple(tensor.shape) != slot.shape:
            raise ModelMismatch(f"'{name}' has shape {list(tensor.shape)} where the model needs {list(slot.shape)}.")
        return nn.Parameter(tensor, requires_grad=False)

    return asked
