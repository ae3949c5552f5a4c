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
import transformers
from torch import Tensor, nn
from transformers import CONFIG_MAPPING

from hf_merge.errors import CheckpointDamaged, HfMergeError, UnsupportedArchitecture
from hf_merge.merging.components import Shape
from hf_merge.modeling.fusing import Convert, fusings_of, storage_of


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
    model_type = known_type(config)
    kept = {key: value for key, value in skeleton_config(config).items() if key != "model_type"}
    built = CONFIG_MAPPING[model_type](**kept, **extra)
    built.architectures = []  # transformers goes through them where a model type has several classes of one kind
    return built


def known_type(config: Mapping[str, Any]) -> str:
    """Returns the model type of a `config.json`.

    Raises:
        UnsupportedArchitecture: The installed transformers does not know it.
    """
    model_type = str(config.get("model_type"))
    if model_type in CONFIG_MAPPING:
        return model_type
    if config.get("auto_map"):
        raise UnsupportedArchitecture(
            f"The model type '{model_type:.80}' is code that comes with the checkpoint (auto_map in config.json). "
            "hf-merge never runs code from a repo: who publishes it could do anything on your machine. Models of a "
            "type that the installed transformers itself knows can be merged."
        )
    raise UnsupportedArchitecture(
        f"The installed transformers ({transformers.__version__}) does not know the model type '{model_type:.80}'; a "
        "newer release may."
    )


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


@dataclass(eq=False)
class PartSlot(Slot):
    """Where a tensor lives that the model runs in another layout: held here by reference, and converted with others.

    Attributes:
        fusion: What it is converted with.
        held: The tensor.
    """

    fusion: "Fusion" = field(kw_only=True)
    held: Tensor = field(default_factory=lambda: torch.empty(0), kw_only=True)

    def tensor(self) -> Tensor:
        """Returns the tensor by reference."""
        return self.held.detach()

    def _set(self, tensor: Tensor) -> None:
        self.held = tensor
        self.fusion.stale = True


@dataclass(eq=False)
class Fusion:
    """Tensors of the disk, and those that the model runs in their place.

    Attributes:
        convert: Returns what the model runs, by name in memory.
        made: Where that lives.
        parts: Where the tensors of the disk are held.
        stale: Whether a tensor was set or let go of since the model's own were made.
    """

    convert: Convert
    made: Mapping[str, Slot]
    parts: dict[str, PartSlot] = field(default_factory=dict)
    stale: bool = False

    def settle(self) -> None:
        """Makes what the model runs anew if a part has changed; while one is lacking, the model has nothing here."""
        if not self.stale:
            return
        self.stale = False
        if all(part.filled for part in self.parts.values()):
            for name, tensor in self.convert({name: part.held for name, part in self.parts.items()}).items():
                self.made[name].fill(tensor)
        else:
            for slot in self.made.values():
                slot.clear()


def slots(model: nn.Module) -> dict[str, Slot]:
    """Returns where each weight of a transformers model lives, by its name on disk; tied tensors share a slot.

    Raises:
        UnsupportedArchitecture: The model converts tensors between disk and memory, and nobody says how.
    """
    weights = {name: held for name, held in model.state_dict(keep_vars=True).items() if held.is_floating_point()}
    homes: dict[int, Slot] = {}
    for name, held in weights.items():
        parent, _, attribute = name.rpartition(".")
        homes.setdefault(id(held), Slot(tuple(held.shape))).places.append((model.get_submodule(parent), attribute))
    storage = storage_of(model, weights)
    found = {name: homes[id(weights[own])] for name, own in storage.memory.items()}
    for fusing in fusings_of(model, weights, storage):
        made = {name: homes[id(weights[name])] for name in fusing.run}
        fusion = Fusion(fusing.convert, made)
        places = [place for slot in made.values() for place in slot.places]
        for name in fusing.stored:
            fusion.parts[name] = PartSlot(storage.shapes[name], places, fusion=fusion)
        found |= fusion.parts
    lost = next((name for name in storage.shapes if name not in found), None)
    if lost is not None:
        raise UnsupportedArchitecture(
            f"{type(model).__name__} stores '{lost}' in another layout than it runs, and the installed transformers "
            "does not say how to convert it."
        )
    return {name: found[name] for name in storage.shapes}


def fusions(held: Mapping[str, Slot]) -> tuple[Fusion, ...]:
    """Returns the fusions that slots belong to, each once."""
    return tuple({id(slot.fusion): slot.fusion for slot in held.values() if isinstance(slot, PartSlot)}.values())


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
