"""Skeletons: models without weights, built from a `config.json`, and the slots that their tensors go into.

A configuration comes from outside, so everything in it that chooses code is left out, and whatever transformers raises
over impossible values becomes one error of ours. A slot is where a tensor of a checkpoint lives in memory:
transformers renames many tensors on the way from disk, and its own conversion tells which is which.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from transformers import CONFIG_MAPPING
from transformers.core_model_loading import revert_weight_conversion

from hf_merge.errors import CheckpointDamaged, HfMergeError, UnsupportedArchitecture
from hf_merge.merging.components import Shape


# Keys that choose code, precision or the form of outputs are never taken from a checkpoint, and labels belong to the
# task. Names with an underscore in front are transformers' own notes, of which some choose code.
_DROPPED = frozenset(
    {
        "architectures", "attn_implementation", "auto_map", "custom_pipelines", "dtype", "experts_implementation",
        "finetuning_task", "gradient_checkpointing", "id2label", "label2id", "num_labels", "output_attentions",
        "output_hidden_states", "problem_type", "quantization_config", "return_dict", "torch_dtype", "torchscript",
        "transformers_version", "use_return_dict",
    }
)  # fmt: skip


def skeleton_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what a skeleton is built from: a `config.json` without the keys that choose code, precision or labels.

    The configurations inside it (of a vision tower, say) are stripped in the same way.
    """
    return {
        key: skeleton_config(value) if isinstance(value, Mapping) else value
        for key, value in config.items()
        if key not in _DROPPED and not key.startswith("_")
    }


def configuration(config: Mapping[str, Any], extra: Mapping[str, Any]) -> Any:
    """Returns transformers' configuration object for the safe part of a `config.json`, with `extra` settings.

    Raises:
        UnsupportedArchitecture: The installed transformers does not know the model type.
    """
    kept = skeleton_config(config)
    model_type = str(kept.pop("model_type", None))
    if model_type not in CONFIG_MAPPING:
        raise UnsupportedArchitecture(
            f"The installed transformers does not know the model type '{model_type:.80}'; a newer release may."
        )
    return CONFIG_MAPPING[model_type](**kept, **extra)


class BlameConfig:
    """Turns whatever transformers raises over a configuration into CheckpointDamaged.

    A context manager, because some of it comes straight below `Exception`, and nothing else is to be caught.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        self._model_type = config.get("model_type")

    def __enter__(self) -> None:
        """Starts watching."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Raises CheckpointDamaged in place of an error that the configuration causes."""
        if isinstance(error, Exception) and not isinstance(error, HfMergeError):
            reason = " ".join(str(error).split())[:200].rstrip(".")
            raise CheckpointDamaged(
                f"The config.json describes no '{self._model_type!s:.80}' model that transformers can build: "
                f"{type(error).__name__}: {reason}. Take the config.json of the base model."
            ) from error


@dataclass(eq=False)
class Slot:
    """Where one tensor lives: every module and attribute that hold it (several where tensors are tied).

    Attributes:
        shape: The tensor's shape.
        places: Modules, and what they call it.
        filled: Whether it was set.
    """

    shape: Shape
    places: list[tuple[nn.Module, str]] = field(default_factory=list)
    filled: bool = False

    def fill(self, tensor: Tensor) -> None:
        """Sets the tensor by reference."""
        self._set(tensor)
        self.filled = True

    def clear(self) -> None:
        """Lets go of the tensor."""
        self._set(torch.empty(0))
        self.filled = False

    def tensor(self) -> Tensor:
        """Returns the tensor by reference."""
        module, attribute = self.places[0]
        held: Tensor = getattr(module, attribute)
        return held.detach()

    def _set(self, tensor: Tensor) -> None:
        parameter = nn.Parameter(tensor, requires_grad=False)
        for module, attribute in self.places:
            if attribute in module._buffers:
                module._buffers[attribute] = tensor
            else:
                module._parameters[attribute] = parameter


def slots(model: nn.Module) -> dict[str, Slot]:
    """Returns where each weight of a transformers model lives, by its name on disk; tied tensors share a slot.

    Raises:
        UnsupportedArchitecture: The model fuses or splits tensors between disk and memory.
    """
    weights = {name: held for name, held in model.state_dict(keep_vars=True).items() if held.is_floating_point()}
    found: dict[int, Slot] = {}
    for name, held in weights.items():
        parent, _, attribute = name.rpartition(".")
        found.setdefault(id(held), Slot(tuple(held.shape))).places.append((model.get_submodule(parent), attribute))
    on_disk: dict[str, Tensor] = revert_weight_conversion(model, dict(weights))  # type: ignore[arg-type]
    fused = next((name for name, held in on_disk.items() if id(held) not in found), None)
    if fused is not None:
        raise UnsupportedArchitecture(
            f"{type(model).__name__} stores '{fused}' in another layout than it runs, which cannot be merged yet."
        )
    return {name: found[id(held)] for name, held in on_disk.items()}


def move_buffers(model: nn.Module, places: Mapping[str, Slot], device: torch.device) -> None:
    """Moves what a skeleton computed itself to a device; what has a slot stays where it is."""
    given = {place for slot in places.values() for place in slot.places}
    for module in model.modules():
        for name, buffer in module._buffers.items():
            if buffer is not None and (module, name) not in given:
                module._buffers[name] = buffer.to(device)


def in_precision(model: nn.Module, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns inputs with pixels and other floats in the type of the model's weights, which some models forget."""
    dtype = next(model.parameters()).dtype
    return {name: value.to(dtype) if value.is_floating_point() else value for name, value in inputs.items()}
