"""Layouts: what a model keeps on disk, by name and shape, without weights.

transformers renames, fuses and splits tensors between disk and memory, and its own conversion tells which. On the meta
device that costs no memory, so that it is known of fused tensors too what they are called in the files: experts that
run as one tensor lie there one by one.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from hf_merge.modeling.assembly import TransformersModel, skeleton_of
from hf_merge.modeling.fusing import Layout, storage_of
from hf_merge.modeling.skeletons import BlameConfig, configuration


__all__ = ["Layout", "layout_of", "names_in_memory"]


def layout_of(model: TransformersModel) -> Layout:
    """Returns the layout on disk of a transformers model, which may be on the meta device."""
    return storage_of(model, _weights(model))


def names_in_memory(config: Mapping[str, Any]) -> dict[str, str]:
    """Returns what a base's tensors are called in memory, to their names on disk, both without the trunk.

    Args:
        config: The base's `config.json`.

    Raises:
        UnsupportedArchitecture: transformers does not know the model type.
        CheckpointDamaged: The configuration describes no model.
    """
    with BlameConfig(config):
        model = skeleton_of(configuration(config, {}))
    return {memory: disk for disk, memory in layout_of(model).memory.items()}


def _weights(model: TransformersModel) -> dict[str, Tensor]:
    """Returns the tensors that are saved, by name in memory: floating point, and of tied ones the source."""
    tied, ignored = set(model.all_tied_weights_keys), set(model._keys_to_ignore_on_save or ())
    held = {name: value for name, value in model.state_dict(keep_vars=True).items() if name not in ignored}
    shared: dict[int, list[str]] = {}
    for name, value in held.items():
        if value.is_floating_point():
            shared.setdefault(id(value), []).append(name)
    kept = (next((name for name in names if name not in tied), names[0]) for names in shared.values())
    return {name: held[name] for name in kept}
