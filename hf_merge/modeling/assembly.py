"""Running models put together from a configuration and loose tensors; the only module that imports model classes.

Every tensor is set by reference, so several tasks' models share one set of backbone tensors and swapping an expert
costs no copy. Tensors are named as on disk.
"""

import logging
from collections.abc import Collection, Mapping
from threading import Lock
from types import MappingProxyType
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn
from transformers import (
    MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    AutoModel,
    AutoModelForAudioClassification,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.initialization import no_init_weights

from hf_merge.errors import ModelMismatch, UnsupportedArchitecture, some
from hf_merge.merging.components import Shape
from hf_merge.modeling.adapters import attach, fold
from hf_merge.modeling.heads import Head
from hf_merge.modeling.options import option_scores
from hf_merge.modeling.skeletons import (
    BlameConfig,
    PartSlot,
    configuration,
    fusions,
    in_precision,
    move_buffers,
    skeleton_config,
    slots,
)
from hf_merge.storing.checkpoints import trunk_of
from hf_merge.storing.counterparts import counterpart, prefixes_of


__all__ = [
    "CLASSIFIERS", "CPU", "Head", "Kind", "TaskModel", "TransformersModel", "classifies_images", "empty_base",
    "require_kind", "skeleton_config", "skeleton_of", "used_names",
]  # fmt: skip

CPU = torch.device("cpu")
Kind = Literal["text", "image", "audio", "causal", "seq2seq"]
TransformersModel: TypeAlias = PreTrainedModel

_log = logging.getLogger(__name__)

# While a model is built, torch's initialisers are replaced in the whole process: two threads at it would mix them up.
_BUILDING = Lock()
CLASSIFIERS: tuple[Kind, ...] = ("text", "image", "audio")  # each named like its column in a recipe
# Of each kind the loader, the model types it knows, and what messages call them.
_CLASSES: Mapping[Kind, tuple[Any, Any, str]] = {
    "text": (AutoModelForSequenceClassification, MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING, "text classification"),
    "image": (AutoModelForImageClassification, MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING, "image classification"),
    "audio": (AutoModelForAudioClassification, MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING, "audio classification"),
    "causal": (AutoModelForCausalLM, MODEL_FOR_CAUSAL_LM_MAPPING, "causal language"),
    "seq2seq": (AutoModelForSeq2SeqLM, MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING, "sequence-to-sequence language"),
}


class TaskModel:
    """One task's model: its own skeleton and head, and backbone tensors that are set by reference.

    Attributes:
        module: The transformers model, in evaluation mode.
        num_labels: The width of its logits.
        slots: Where each of its tensors lives, by the name that this task's checkpoint gives it on disk.
        has_adapter: Whether an adapter acts on its modules.
        device: Where it computes; whoever sets tensors puts them there.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        kind: Kind,
        head: Head,
        *,
        pad_token_id: int | None = None,
        adapter: Mapping[str, Shape] = MappingProxyType({}),
        trunk: str = "",
    ) -> None:
        """Builds the skeleton; it holds no weights yet.

        Args:
            config: The base's `config.json`.
            kind: What the task reads, and how it answers.
            head: What the head answers.
            pad_token_id: Set where the configuration has none, as decoders with a classification head need it.
            adapter: The shapes of an adapter's tensors, named after the base's weights on disk that they act on.
            trunk: The base's trunk, for the names in `adapter`.

        Raises:
            UnsupportedArchitecture: transformers has no class of this kind for the model type.
            CheckpointDamaged: The configuration describes no model.
        """
        self.device = CPU
        with BlameConfig(config):
            built = configuration(config, head.settings())
            _require_class(built, kind)
            if pad_token_id is not None and getattr(built, "pad_token_id", None) is None:
                built.pad_token_id = pad_token_id
            self.module = _empty(_CLASSES[kind][0], built)
            self.slots = slots(self.module)
        self._fusions = fusions(self.slots)
        self._trunk, self._prefixes = trunk_of(self.slots), prefixes_of(self.slots)
        self._backbone: set[str] = set()
        self._head_modules: set[nn.Module] = set()
        self._asks = head.wording is not None
        self.num_labels = head.num_labels
        self.has_adapter = bool(adapter)
        if adapter:
            own = {self.own_name(name, trunk): shape for name, shape in adapter.items()}
            self.slots |= attach(self.module, self.slots, own)
        for slot in self.slots.values():
            slot.clear()
        self.settle()

    def set_head(self, tensors: Mapping[str, Tensor]) -> None:
        """Sets the head's tensors by reference, named as the fine-tuned checkpoint names them on disk.

        Raises:
            ModelMismatch: A tensor has no place in the model, or another shape.
        """
        for name, tensor in tensors.items():
            self.put(name, tensor)
            self._head_modules.update(module for module, _ in self.slots[name].places)
        self.settle()

    def set_backbone(self, tensors: Mapping[str, Tensor], trunk: str) -> None:
        """Sets backbone tensors by reference, named as on the base's disk, where the base's trunk is `trunk`.

        Raises:
            ModelMismatch: A tensor has no place in the model, or another shape.
        """
        for name, tensor in tensors.items():
            own = self.own_name(name, trunk)
            self.put(own, tensor)
            self._backbone.add(own)
        self.settle()

    def own_name(self, name: str, trunk: str) -> str:
        """Returns what this task's checkpoint calls a backbone tensor that the base, with its trunk, calls `name`."""
        own = self._trunk + name.removeprefix(trunk)
        return own if own in self.slots else counterpart(name, self.slots, self._prefixes) or own

    def put(self, name: str, tensor: Tensor) -> None:
        """Sets one tensor by reference, named as this task's checkpoint names it on disk; `settle` when all are set.

        Raises:
            ModelMismatch: The tensor has no place in the model, or another shape.
        """
        slot = self.slots.get(name)
        if slot is None:
            raise ModelMismatch(
                f"The tensor '{name}' has no place in {type(self.module).__name__}. Name a checkpoint of that class: "
                "a head of another kind cannot be run."
            )
        if tuple(tensor.shape) != slot.shape:
            found, needed = list(tensor.shape), list(slot.shape)
            raise ModelMismatch(f"'{name}' has shape {found} where {type(self.module).__name__} needs {needed}.")
        slot.fill(tensor)

    def settle(self) -> None:
        """Makes anew what the model runs in another layout than it stores, where tensors have changed."""
        for fusion in self._fusions:
            fusion.settle()

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
        self.settle()

    def tensors(self) -> dict[str, Tensor]:
        """Returns every tensor of the model by its name on disk, by reference."""
        return {name: slot.tensor() for name, slot in self.slots.items()}

    def fold_adapter(self) -> None:
        """Multiplies the adapter, if any, into the weights it acts on, which must be this model's alone."""
        if self.has_adapter:
            fold(self.module)

    def backbone_module(self) -> nn.Module | None:
        """Returns the submodule that is the backbone; None where there is none, or the head has tensors inside it."""
        backbone = getattr(self.module, self.module.base_model_prefix or "", None)
        if not isinstance(backbone, nn.Module) or not self._head_modules.isdisjoint(backbone.modules()):
            return None
        return backbone

    def move_buffers(self, device: torch.device) -> None:
        """Moves what the skeleton computed itself to a device; tensors that were set stay where they are."""
        self.device = device
        move_buffers(self.module, self.slots, device)

    def moved(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Returns model inputs where the model computes."""
        return {name: value.to(self.device) for name, value in inputs.items()}

    @torch.inference_mode()
    def logits(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Returns the logits [batch, num_labels] for a batch of model inputs; a language model's score its options."""
        return self.answers(inputs)

    def answers(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Returns the same as `logits`, and lets gradients pass where the caller asked for them."""
        self.settle()
        inputs = self.moved(inputs)
        if self._asks:
            return option_scores(self.module, inputs)
        logits: Tensor = self.module(**in_precision(self.module, inputs)).logits
        return logits

    def parameter(self, name: str) -> tuple[nn.Module, nn.Parameter] | None:
        """Returns the module that holds a tensor as its parameter, and the parameter, by the tensor's name on disk.

        None where the tensor is a buffer, or the model runs it in another layout than it stores.
        """
        slot = self.slots[name]
        if isinstance(slot, PartSlot) or not slot.places:
            return None
        module, attribute = slot.places[0]
        held = module._parameters.get(attribute)
        return None if held is None else (module, held)


def used_names(config: Mapping[str, Any], kind: Kind, names: Collection[str], trunk: str) -> frozenset[str]:
    """Returns those of a base's backbone tensors that a task's model has: many leave out the base's pooler.

    Args:
        config: The base's `config.json`.
        kind: What the tasks read.
        names: The base's backbone tensors on disk.
        trunk: The base's trunk.

    Raises:
        UnsupportedArchitecture, CheckpointDamaged: As `TaskModel`.
    """
    model = TaskModel(config, kind, Head(2))
    return frozenset(name for name in names if model.own_name(name, trunk) in model.slots)


def require_kind(config: Mapping[str, Any], kind: Kind) -> None:
    """Checks that tasks of a kind can be served by models of this configuration; nothing is built.

    Code that comes with a checkpoint is never run; where transformers has a class of its own, a warning says so.

    Raises:
        UnsupportedArchitecture: transformers does not know the model type, or has no class of this kind for it.
        CheckpointDamaged: The configuration describes no model.
    """
    with BlameConfig(config):
        _require_class(configuration(config, {}), kind)
    if config.get("auto_map"):
        _log.warning(
            "The base's config.json names code of its own (auto_map), which is never run: transformers' own '%s' is.",
            config.get("model_type"),
        )


def _require_class(built: Any, kind: Kind) -> None:
    _, known, title = _CLASSES[kind]
    if type(built) in known:
        return
    others = [other for other in CLASSIFIERS if kind in CLASSIFIERS and type(built) in _CLASSES[other][1]]
    hint = f" It has one for {others[0]}: name the '{others[0]}' column of every task's data." if others else ""
    raise UnsupportedArchitecture(f"transformers has no {title} model for the model type '{built.model_type}'.{hint}")


def classifies_images(built: PreTrainedConfig) -> bool:
    """Returns whether transformers has an image classifier for a configuration."""
    return type(built) in _CLASSES["image"][1]


def skeleton_of(built: PreTrainedConfig) -> TransformersModel:
    """Returns the pre-trained model of a configuration on the meta device: a module tree, names and shapes."""
    with torch.device("meta"):
        return _empty(AutoModel, built)


def empty_base(built: PreTrainedConfig) -> TransformersModel:
    """Returns the pre-trained model of a configuration in evaluation mode, its weights tied but not initialised."""
    return _empty(AutoModel, built)


def _empty(loader: Any, built: Any) -> TransformersModel:
    """Returns a model of a configuration in evaluation mode, its weights tied but not initialised."""
    with _BUILDING, no_init_weights():
        model: TransformersModel = loader.from_config(built)
    model.tie_weights()
    model.eval()
    return model
