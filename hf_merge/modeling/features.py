"""What the router sees: mean-pooled hidden states of the pre-trained model.

Pooled are the real positions of a text, and the real frames of a sound; of an image all that the model has positions
for, patches with the class token and registers, or the places of a convolution's grid. Of an encoder and its decoder,
the encoder is asked.

The paper routes on features of the pre-trained model. Serving a whole second model for that would undo the storage
saved, so the features pass only as many blocks as asked for (none by default for text: the embedding layer), and the
weights they need travel with the router at int8 per row. Training and serving use the same decoded weights, so that a
router in service sees exactly what it was trained on.

Source: MERGE, arXiv 2602.06552, Eq. 9; docs/adr/0005-router-features.md.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

from hf_merge.errors import MalformedChainMap, ModelMismatch, some
from hf_merge.merging import codecs
from hf_merge.merging.codecs import CodecSpec
from hf_merge.merging.experts import find_fault, stored_names
from hf_merge.merging.group_reader import TensorSource
from hf_merge.merging.roles import role_of
from hf_merge.modeling.assembly import classifies_images, empty_base
from hf_merge.modeling.skeletons import BlameConfig, Slot, configuration, fusions, in_precision, move_buffers, slots
from hf_merge.storing.counterparts import counterpart, prefixes_of
from hf_merge.storing.tensor_names import is_pooler


ALL_LAYERS = -1

_SPEC = CodecSpec.resolve("int8", {"unit": "row", "policy": "always"})
_CODEC = codecs.get("int8")


class FeatureModel:
    """A model without a head up to some block: the router's eyes, with the pre-trained weights.

    Attributes:
        names: The backbone tensors it needs, named as on the base's disk.
    """

    def __init__(self, config: Mapping[str, Any], names: Sequence[str], trunk: str, layers: int | None) -> None:
        """Builds the skeleton; it holds no weights yet.

        Args:
            config: The base's `config.json`.
            names: The base's backbone tensors on disk.
            trunk: The base's trunk.
            layers: How many blocks to run, or None for all. A model that cannot run without blocks runs one, and one
                whose blocks stand in stages all of them.

        Raises:
            UnsupportedArchitecture: transformers does not know the model type.
            CheckpointDamaged: The configuration describes no model.
            ModelMismatch: The model needs a tensor that is not among `names`.
        """
        self._module, self._slots = _eyes(config, layers)
        if layers == 0 and not _runs(self._module):
            self._module, self._slots = _eyes(config, 1)
        self._places = _places(self._slots, names, trunk)
        self.names = tuple(self._places)
        used = set(map(id, self._places.values()))
        self._unused = {name: slot for name, slot in self._slots.items() if id(slot) not in used}
        lacking = [name for name in self._unused if not is_pooler(name) and role_of(name) != "head"]
        if lacking:
            raise ModelMismatch(f"{type(self._module).__name__} needs tensors that the base lacks: {some(lacking)}.")

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
        like = next(iter(tensors.values()), torch.empty(0))
        for slot in self._unused.values():  # what a pooler or head gives is thrown away
            slot.fill(like.new_zeros(slot.shape))
        for fusion in fusions(self._slots):
            fusion.settle()

    def move_buffers(self, device: torch.device) -> None:
        """Moves what the skeleton computed itself to a device; tensors that were set stay where they are."""
        move_buffers(self._module, self._slots, device)

    @torch.inference_mode()
    def hidden_states(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Returns the last hidden state for a batch of model inputs.

        That is [batch, positions, width], and of a convolutional network [batch, width, height, width of the grid].
        """
        states: Tensor = self._module(**in_precision(self._module, inputs)).last_hidden_state
        return states

    @torch.inference_mode()
    def pooled(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Returns the mean hidden state over each row's real positions, [batch, width] float32, for a batch."""
        inputs = padded_behind(inputs)
        states = self.hidden_states(inputs).float()  # few bits lose count of many positions
        if states.ndim == 4:
            return states.mean(dim=(2, 3))
        mask = inputs.get("attention_mask")
        if mask is None:
            return states.mean(dim=1)
        weights = self._mask_over(states, mask).to(states.dtype).unsqueeze(-1)
        return (states * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1)

    def _mask_over(self, states: Tensor, mask: Tensor) -> Tensor:
        """Returns a mask over the positions of hidden states; that of a sound's samples says which frames are real.

        Args:
            states: The hidden states, [batch, positions, width].
            mask: The inputs' mask, [batch, length].
        """
        if mask.shape[1] == states.shape[1]:
            return mask
        over: Tensor = cast(Any, self._module)._get_feature_vector_attention_mask(states.shape[1], mask)
        return over


class FeatureExtractor:
    """The pre-trained model's eyes: batches in, one vector per row out.

    Attributes:
        layers: How many pre-trained blocks the features pass; `ALL_LAYERS` for every one.
        tensors: The weights as stored, by stored name.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        names: Sequence[str],
        trunk: str,
        layers: int,
        tensors: Mapping[str, Tensor],
        *,
        device: torch.device | None = None,
    ) -> None:
        """Assembles the extractor from stored weights.

        Args:
            config: The base's `config.json`.
            names: The names of the base's tensors among those stored.
            trunk: The base's trunk.
            layers: How many blocks, or `ALL_LAYERS`.
            tensors: The stored weights.
            device: Where to run; the processor by default.

        Raises:
            ModelMismatch: A tensor that the blocks need is not there, or has another shape.
            MalformedChainMap: A stored tensor is unknown, or not what the codec writes.
        """
        self.layers, self.tensors = layers, dict(tensors)
        self._device = device or torch.device("cpu")
        self._model = FeatureModel(config, names, trunk, _depth(layers))
        _require_sound(self._model.names, tensors)
        self._model.set_tensors({name: _CODEC.decode(name, tensors).to(self._device) for name in self._model.names})
        self._model.move_buffers(self._device)

    @classmethod
    def from_base(
        cls,
        config: Mapping[str, Any],
        names: Sequence[str],
        trunk: str,
        layers: int,
        base: TensorSource,
        spare: Sequence[str] = (),
    ) -> "FeatureExtractor":
        """Returns an extractor with the base's own weights, encoded tensor by tensor.

        Args:
            config: The base's `config.json`.
            names: The base's backbone tensors on disk.
            trunk: The base's trunk.
            layers: How many blocks, or `ALL_LAYERS`.
            base: Reads the base's tensors.
            spare: What the base has beside them, and no fine-tune runs. It is looked at only where the model cannot
                run without: Funnel's base sees through a decoder that its classifiers lack.

        Raises:
            ModelMismatch: A tensor that the blocks need is among neither.
        """
        try:
            needed = FeatureModel(config, names, trunk, _depth(layers)).names
        except ModelMismatch:
            needed = FeatureModel(config, [*names, *spare], trunk, _depth(layers)).names
        stored: dict[str, Tensor] = {}
        for name in needed:
            stored |= _CODEC.encode(name, base.read(name), None, _SPEC.mapping)
        return cls(config, needed, trunk, layers, stored)

    @torch.inference_mode()
    def pooled(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Returns the mean hidden state over each row's real positions: [batch, width] float32, on the processor."""
        return self._model.pooled({name: value.to(self._device) for name, value in inputs.items()}).cpu()


def padded_behind(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns a batch with its padding on the right, where absolute positions count from the first real token.

    Args:
        inputs: The model's inputs; where there is a mask [batch, length], everything of its shape moves with it.
    """
    mask = inputs.get("attention_mask")
    if mask is None or mask.ndim != 2 or bool((mask[:, 1:] <= mask[:, :-1]).all()):
        return dict(inputs)
    order = mask.eq(0).to(torch.int8).argsort(dim=1, stable=True)
    return {name: value.gather(1, order) if value.shape == mask.shape else value for name, value in inputs.items()}


def base_names(stored: Sequence[str]) -> list[str]:
    """Returns the tensors' own names among stored names, which also hold the scales and zero points of some."""
    known = set(stored)
    companions = {name for own in known for name in stored_names(_SPEC.name, own)[1:]}
    return [name for name in stored if name not in companions]


def _eyes(config: Mapping[str, Any], layers: int | None) -> tuple[nn.Module, dict[str, Slot]]:
    """Returns the module that looks, with so many blocks, and where its tensors live, by name on disk."""
    with BlameConfig(config):
        built = configuration(config, {})
        inner = _looking(built)
        if layers is not None:
            _shorten(inner, layers)
        inner.architectures = []
        model = empty_base(inner)
        held = slots(model)
    if not inner.is_encoder_decoder:
        return model, held
    encoder: nn.Module = model.get_encoder()
    inside = set(encoder.modules())
    return encoder, {name: slot for name, slot in held.items() if any(module in inside for module, _ in slot.places)}


def _looking(built: Any) -> Any:
    """Returns the configuration of the part that reads what a family's tasks read.

    What a base with a vision tower reads is told by what transformers classifies with it, never both: images with
    CLIP, texts with Gemma 3.
    """
    if not hasattr(built, "vision_config"):
        return built
    return built.vision_config if classifies_images(built) else built.get_text_config()


def _shorten(built: PreTrainedConfig, layers: int) -> None:
    """Leaves so many blocks of a model, where its configuration counts them in one number."""
    if hasattr(built, "num_hidden_layers"):
        with suppress(NotImplementedError):  # what a configuration raises that knows the number but not how to set it
            built.num_hidden_layers = min(layers, built.num_hidden_layers)


@torch.inference_mode()
def _runs(module: nn.Module) -> bool:
    """Returns whether a text model without blocks runs: some read what their last block gave."""
    if getattr(module, "main_input_name", None) != "input_ids":
        return True
    shape = (1, 8)
    try:
        module(input_ids=torch.zeros(shape, dtype=torch.int64), attention_mask=torch.ones(shape, dtype=torch.int64))
    except UnboundLocalError:
        return False
    return True


def _places(held: Mapping[str, Slot], names: Sequence[str], trunk: str) -> dict[str, Slot]:
    """Returns the slots of the base's tensors; those without one are left out, and poolers.

    A skeleton without blocks shows no trunk of its own, so it is the prefix under which most of the names are found.
    """
    inside = {name: name.removeprefix(trunk) for name in names if not is_pooler(name)}
    prefixes = sorted({""} | {f"{name.split('.', 1)[0]}." for name in held})
    own = max(prefixes, key=lambda prefix: sum(prefix + short in held for short in inside.values()))
    found = {name: held[own + short] for name, short in inside.items() if own + short in held}
    if not found:
        others = {name: counterpart(short, held, prefixes_of(held)) for name, short in inside.items()}
        known = {name: other for name, other in others.items() if other is not None}
        found = {name: held[other] for name, other in _of_one_tower(known, inside).items()}
    return found


def _of_one_tower(known: Mapping[str, str], inside: Mapping[str, str]) -> Mapping[str, str]:
    """Returns what each tensor is called, of those alone below the most common prefix where two are called alike.

    A vision tower's blocks are called like those of the language model beside it.
    """
    if len(set(known.values())) == len(known):
        return known
    prefixes = {name: inside[name].removesuffix(other) for name, other in known.items()}
    (most, _), *_ = Counter(prefixes.values()).most_common(1)
    return {name: other for name, other in known.items() if prefixes[name] == most}


def _depth(layers: int) -> int | None:
    return None if layers == ALL_LAYERS else layers


def _require_sound(needed: Sequence[str], tensors: Mapping[str, Tensor]) -> None:
    known = {stored for name in needed for stored in stored_names(_SPEC.name, name)}
    unknown = sorted(tensors.keys() - known)
    if unknown:
        raise MalformedChainMap(f"The router's features hold '{unknown[0]}', which they have no use for.")
    for name in needed:
        fault = find_fault(_SPEC.name, name, tensors)
        if fault is not None:
            raise MalformedChainMap(f"The router's feature tensor '{name}' {fault}.")
