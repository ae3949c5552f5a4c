"""Running models put together from a configuration and loose tensors; the only module that imports model classes.

Every tensor is set by reference, so several tasks' models share one set of backbone tensors and swapping an expert
costs no copy. Tensors are named as on disk.
"""

from collections.abc import Mapping, Sequence
from threading import Lock
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.initialization import no_init_weights

from hf_merge.errors import ModelMismatch, UnsupportedArchitecture, some
from hf_merge.modeling.heads import Head
from hf_merge.modeling.options import option_scores
from hf_merge.modeling.skeletons import (
    BlameConfig,
    Slot,
    configuration,
    in_precision,
    move_buffers,
    skeleton_config,
    slots,
)
from hf_merge.storing.checkpoints import trunk_of


__all__ = ["FeatureModel", "Head", "Kind", "TaskModel", "TransformersModel", "skeleton_config", "skeleton_of"]

Kind = Literal["text", "image", "causal", "seq2seq"]
TransformersModel: TypeAlias = PreTrainedModel

# While a model is built, torch's initialisers are replaced in the whole process: two threads at it would mix them up.
_BUILDING = Lock()
# Of each kind the loader, the model types it knows, and what messages call them.
_CLASSES: Mapping[Kind, tuple[Any, Any, str]] = {
    "text": (AutoModelForSequenceClassification, MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING, "text classification"),
    "image": (AutoModelForImageClassification, MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING, "image classification"),
    "causal": (AutoModelForCausalLM, MODEL_FOR_CAUSAL_LM_MAPPING, "causal language"),
    "seq2seq": (AutoModelForSeq2SeqLM, MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING, "sequence-to-sequence language"),
}


class TaskModel:
    """One task's model: its own skeleton and head, and backbone tensors that are set by reference.

    Attributes:
        module: The transformers model, in evaluation mode.
        num_labels: The width of its logits.
        slots: Where each of its tensors lives, by the name that this task's checkpoint gives it on disk.
    """

    def __init__(self, config: Mapping[str, Any], kind: Kind, head: Head, *, pad_token_id: int | None = None) -> None:
        """Builds the skeleton; it holds no weights yet.

        Args:
            config: The base's `config.json`.
            kind: What the task reads, and how it answers.
            head: What the head answers.
            pad_token_id: Set where the configuration has none, as decoders with a classification head need it.

        Raises:
            UnsupportedArchitecture: transformers has no class of this kind for the model type.
            CheckpointDamaged: The configuration describes no model.
        """
        with BlameConfig(config):
            built = configuration(config, head.settings())
            loader, known, title = _CLASSES[kind]
            if type(built) not in known:
                raise UnsupportedArchitecture(
                    f"transformers has no {title} model for the model type '{built.model_type}'."
                )
            if pad_token_id is not None and getattr(built, "pad_token_id", None) is None:
                built.pad_token_id = pad_token_id
            self.module = _empty(loader, built)
            self.slots = slots(self.module)
        self._trunk = trunk_of(self.slots)
        self._backbone: set[str] = set()
        self._head_modules: set[nn.Module] = set()
        self._asks = head.wording is not None
        self.num_labels = head.num_labels
        for slot in self.slots.values():
            slot.clear()

    def set_head(self, tensors: Mapping[str, Tensor]) -> None:
        """Sets the head's tensors by reference, named as the fine-tuned checkpoint names them on disk.

        Raises:
            ModelMismatch: A tensor has no place in the model, or another shape.
        """
        for name, tensor in tensors.items():
            self.put(name, tensor)
            self._head_modules.update(module for module, _ in self.slots[name].places)

    def set_backbone(self, tensors: Mapping[str, Tensor], trunk: str) -> None:
        """Sets backbone tensors by reference, named as on the base's disk, where the base's trunk is `trunk`.

        Raises:
            ModelMismatch: A tensor has no place in the model, or another shape.
        """
        for name, tensor in tensors.items():
            own = self.own_name(name, trunk)
            self.put(own, tensor)
            self._backbone.add(own)

    def own_name(self, name: str, trunk: str) -> str:
        """Returns what this task's checkpoint calls a backbone tensor that the base, with its trunk, calls `name`."""
        own = self._trunk + name.removeprefix(trunk)
        return name if own not in self.slots and name in self.slots else own  # a language model's head is in no trunk

    def put(self, name: str, tensor: Tensor) -> None:
        """Sets one tensor by reference, named as this task's checkpoint names it on disk.

        Raises:
            ModelMismatch: The tensor has no place in the model, or another shape.
        """
        slot = self.slots.get(name)
        if slot is None:
            raise ModelMismatch(f"The tensor '{name}' has no place in {type(self.module).__name__}.")
        if tuple(tensor.shape) != slot.shape:
            found, needed = list(tensor.shape), list(slot.shape)
            raise ModelMismatch(f"'{name}' has shape {found} where {type(self.module).__name__} needs {needed}.")
        slot.fill(tensor)

    def require_complete(self) -> None:
        """Raises ModelMismatch if some tensor of the model was never set; the message names them."""
        missing = sorted(name for name, slot in self.slots.items() if not slot.filled)
        if missing:
            raise ModelMismatch(
                f"{type(self.module).__name__} lacks {len(missing)} tensors: {some(missing)}. "
                "Is the checkpoint fine-tuned for this kind of task?"
            )

    def clear(self) -> None:
        """Lets go of every backbone tensor, so that only the head stays in memory."""
        for name in self._backbone:
            self.slots[name].clear()

    def tensors(self) -> dict[str, Tensor]:
        """Returns every tensor of the model by its name on disk, by reference."""
        return {name: slot.tensor() for name, slot in self.slots.items()}

    def backbone_module(self) -> nn.Module | None:
        """Returns the submodule that is the backbone; None where there is none, or the head has tensors inside it."""
        backbone = getattr(self.module, self.module.base_model_prefix or "", None)
        if not isinstance(backbone, nn.Module) or not self._head_modules.isdisjoint(backbone.modules()):
            return None
        return backbone

    def move_buffers(self, device: torch.device) -> None:
        """Moves what the skeleton computed itself to a device; tensors that were set stay where they are."""
        move_buffers(self.module, self.slots, device)

    @torch.inference_mode()
    def logits(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Returns the logits [batch, num_labels] for a batch of model inputs; a language model's score its options."""
        if self._asks:
            return option_scores(self.module, inputs)
        logits: Tensor = self.module(**in_precision(self.module, inputs)).logits
        return logits


class FeatureModel:
    """The pre-trained model up to some block, as the router's eyes.

    Attributes:
        names: The backbone tensors it needs, named as on the base's disk.
    """

    def __init__(self, config: Mapping[str, Any], names: Sequence[str], trunk: str, layers: int | None) -> None:
        """Builds the skeleton; it holds no weights yet.

        Args:
            config: The base's `config.json`.
            names: The base's backbone tensors on disk.
            trunk: The base's trunk.
            layers: How many blocks to run, or None for all.

        Raises:
            UnsupportedArchitecture: transformers does not know the model type.
            CheckpointDamaged: The configuration describes no model.
            ModelMismatch: The model needs a tensor that is not among `names`.
        """
        with BlameConfig(config):
            built = configuration(config, {})
            inner = getattr(built, "vision_config", built)
            if layers is not None:
                inner.num_hidden_layers = min(layers, inner.num_hidden_layers)
            whole = _empty(AutoModel, inner)
            # Of an encoder-decoder the encoder alone: what it reads is what there is to see.
            self._module = whole.get_encoder() if inner.is_encoder_decoder else whole
            self._slots = _slots_within(self._module, slots(whole))
        self._places = _places(self._slots, names, trunk)
        self.names = tuple(self._places)
        used = set(map(id, self._places.values()))
        unused = {name: slot for name, slot in self._slots.items() if id(slot) not in used}
        lacking = [name for name in unused if not _is_pooler(name)]
        if lacking:
            raise ModelMismatch(f"{type(self._module).__name__} needs tensors that the base lacks: {some(lacking)}.")
        for slot in unused.values():  # what a pooler gives is thrown away
            slot.fill(torch.zeros(slot.shape))

    def set_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Sets the tensors listed in `names` by reference.

        Raises:
            ModelMismatch: A tensor has another shape than the model needs.
        """
        for name, slot in self._places.items():
            if tuple(tensors[name].shape) != slot.shape:
                found, needed = list(tensors[name].shape), list(slot.shape)
                raise ModelMismatch(f"'{name}' has shape {found} where {type(self._module).__name__} needs {needed}.")
            slot.fill(tensors[name])

    def move_buffers(self, device: torch.device) -> None:
        """Moves what the skeleton computed itself to a device; tensors that were set stay where they are."""
        move_buffers(self._module, self._slots, device)

    @torch.inference_mode()
    def hidden_states(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Returns the last hidden state [batch, positions, width] for a batch of model inputs."""
        states: Tensor = self._module(**in_precision(self._module, inputs)).last_hidden_state
        return states


def skeleton_of(built: PreTrainedConfig) -> TransformersModel:
    """Returns the pre-trained model of a configuration on the meta device: a module tree, names and shapes."""
    with torch.device("meta"):
        return _empty(AutoModel, built)


def _empty(loader: Any, built: Any) -> TransformersModel:
    """Returns a model of a configuration in evaluation mode, its weights tied but not initialised."""
    with _BUILDING, no_init_weights():
        model: TransformersModel = loader.from_config(built)
    model.tie_weights()
    model.eval()
    return model


def _slots_within(module: nn.Module, held: Mapping[str, Slot]) -> dict[str, Slot]:
    """Returns the slots with a place in some module; the others are let go of."""
    inside = set(module.modules())
    kept = {name: slot for name, slot in held.items() if any(holder in inside for holder, _ in slot.places)}
    for name in held.keys() - kept.keys():
        held[name].clear()
    return kept


def _places(held: Mapping[str, Slot], names: Sequence[str], trunk: str) -> dict[str, Slot]:
    """Returns the slots of the base's tensors; those without one are left out, and poolers.

    A skeleton without blocks shows no trunk of its own, so it is the prefix under which most of the names are found.
    """
    inside = {name: name.removeprefix(trunk) for name in names}
    prefixes = sorted({""} | {f"{name.split('.', 1)[0]}." for name in held})
    own = max(prefixes, key=lambda prefix: sum(prefix + short in held for short in inside.values()))
    return {name: held[own + short] for name, short in inside.items() if own + short in held and not _is_pooler(name)}


def _is_pooler(name: str) -> bool:
    return "pooler" in name.split(".")
