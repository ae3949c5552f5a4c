"""Adapters in a running model: peft's own layers around the base's modules, their tensors set by reference.

Every task's model wraps its own modules, but the base's weights inside them are the same tensors for all, so that a
family of adapters takes one base in memory whatever its size.
"""

import re
from collections.abc import Iterable, Mapping

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from hf_merge.errors import ModelMismatch, UnsupportedArchitecture
from hf_merge.merging.components import Shape
from hf_merge.merging.factors import A_SUFFIX, B_SUFFIX
from hf_merge.modeling.skeletons import PartSlot, Slot
from hf_merge.storing.adapters import VECTOR_SUFFIX


_NAME = "default"
_SUFFIXES = (VECTOR_SUFFIX, A_SUFFIX, B_SUFFIX)


def adapter_shapes(shapes: Mapping[str, Shape]) -> dict[str, Shape]:
    """Returns those of the shapes that are an adapter's, by name: vectors and factors."""
    return {name: shape for name, shape in shapes.items() if name.endswith(_SUFFIXES)}


def attach(model: nn.Module, slots: Mapping[str, Slot], shapes: Mapping[str, Shape]) -> dict[str, Slot]:
    """Wraps modules of a model in peft's layers, and returns where their tensors live.

    Args:
        model: The model.
        slots: Where its own tensors live.
        shapes: The adapter's tensors, named after the weights they act on, as the model names these on disk.

    Raises:
        ModelMismatch: The model has no such weight.
        UnsupportedArchitecture: The model runs a weight in another layout than it stores.
    """
    from peft import IA3Config, LoraConfig, inject_adapter_in_model

    holders = {module: _holder(model, slots, module) for module in dict.fromkeys(map(_module_of, shapes))}
    # Inside a plain module, for peft asks models for attributes that newer transformers warn of.
    shell = nn.ModuleDict({"model": model})
    places = {id(held): name for name, held in shell.named_modules()}
    paths = {module: places[id(holder)] for module, holder in holders.items()}
    transposed = any(isinstance(holder, Conv1D) for holder in holders.values())
    if any(name.endswith(VECTOR_SUFFIX) for name in shapes):
        inputs = [path for module, path in paths.items() if shapes[module + VECTOR_SUFFIX][0] == 1]
        settings = IA3Config(
            target_modules=_any_of(paths.values()), feedforward_modules=_any_of(inputs), fan_in_fan_out=transposed
        )
        inject_adapter_in_model(settings, shell, low_cpu_mem_usage=True)
    else:
        ranks = {re.escape(path): shapes[module + A_SUFFIX][0] for module, path in paths.items()}
        rank = max(ranks.values())
        plain = LoraConfig(
            r=rank, lora_alpha=rank, rank_pattern=ranks, alpha_pattern=dict(ranks), fan_in_fan_out=transposed,
            target_modules=_any_of(paths.values()), lora_dropout=0.0, init_lora_weights=False,
        )  # fmt: skip
        inject_adapter_in_model(plain, shell, low_cpu_mem_usage=True)
    model.eval()
    return {name: _slot(shell, paths, name, shape) for name, shape in shapes.items()}


def fold(model: nn.Module) -> None:
    """Multiplies every adapter of a model into the weights it acts on, which must be the model's own."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    wrapped = [(name, layer) for name, layer in model.named_modules() if isinstance(layer, BaseTunerLayer)]
    with torch.no_grad():
        for name, layer in wrapped:
            layer.merge(safe_merge=True)
            parent, _, attribute = name.rpartition(".")
            setattr(model.get_submodule(parent), attribute, layer.get_base_layer())


def _holder(model: nn.Module, slots: Mapping[str, Slot], module: str) -> nn.Module:
    slot = slots.get(f"{module}.weight")
    if slot is None:
        raise ModelMismatch(f"An adapter acts on '{module}', which {type(model).__name__} does not have.")
    if isinstance(slot, PartSlot):
        raise UnsupportedArchitecture(
            f"An adapter acts on '{module}', which {type(model).__name__} runs fused with others. Merge the adapter "
            "into its base with peft's merge_and_unload, save that, and give it as the task's model."
        )
    return slot.places[0][0]


def _slot(model: nn.Module, paths: Mapping[str, str], name: str, shape: Shape) -> Slot:
    """Returns where an adapter's tensor lives: in peft's layer around the module it acts on."""
    module = _module_of(name)
    layer, part = model.get_submodule(paths[module]), name.removeprefix(module).split(".")[1]
    if name.endswith(VECTOR_SUFFIX):
        return Slot(shape, [(layer.get_submodule(part), _NAME)])
    return Slot(shape, [(layer.get_submodule(f"{part}.{_NAME}"), "weight")])


def _module_of(name: str) -> str:
    """Returns the module that an adapter's tensor acts on, named as the model names its weight on disk."""
    return name.removesuffix(next(suffix for suffix in _SUFFIXES if name.endswith(suffix)))


def _any_of(paths: Iterable[str]) -> str:
    """Returns the pattern that peft takes for exactly these modules."""
    return "|".join(re.escape(path) for path in paths) or r"(?!)"
