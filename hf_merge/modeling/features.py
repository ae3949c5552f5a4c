"""What the router sees: mean-pooled hidden states of the pre-trained model.

The paper routes on features of the pre-trained model. Serving a whole second model for that would undo the storage
saved, so the features pass only as many blocks as asked for (none by default for text: the embedding layer), and the
weights they need travel with the router at int8 per row. Training and serving use the same decoded weights, so that a
router in service sees exactly what it was trained on.

Source: MERGE, arXiv 2602.06552, Eq. 9; docs/adr/0005-router-features.md.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from hf_merge.errors import MalformedChainMap
from hf_merge.merging import codecs
from hf_merge.merging.codecs import CodecSpec
from hf_merge.merging.experts import TensorSource, find_fault, stored_names
from hf_merge.modeling.assembly import FeatureModel


ALL_LAYERS = -1

_SPEC = CodecSpec.resolve("int8", {"unit": "row", "policy": "always"})
_CODEC = codecs.get("int8")


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
        cls, config: Mapping[str, Any], names: Sequence[str], trunk: str, layers: int, base: TensorSource
    ) -> "FeatureExtractor":
        """Returns an extractor with the base's own weights, encoded tensor by tensor.

        Args:
            config: The base's `config.json`.
            names: The base's backbone tensors on disk.
            trunk: The base's trunk.
            layers: How many blocks, or `ALL_LAYERS`.
            base: Reads the base's tensors.
        """
        needed = FeatureModel(config, names, trunk, _depth(layers)).names
        stored: dict[str, Tensor] = {}
        for name in needed:
            stored |= _CODEC.encode(name, base.read(name), None, _SPEC.mapping)
        return cls(config, needed, trunk, layers, stored)

    @torch.inference_mode()
    def pooled(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Returns the mean hidden state over each row's real positions: [batch, width] float32, on the processor."""
        moved = {name: value.to(self._device) for name, value in padded_behind(inputs).items()}
        states = self._model.hidden_states(moved)
        mask = moved.get("attention_mask")
        if mask is None:
            return states.mean(dim=1).cpu()
        weights = mask.to(states.dtype).unsqueeze(-1)
        return ((states * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1)).cpu()


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
    companions = {name for own in known for name in stored_names(own)[1:]}
    return [name for name in stored if name not in companions]


def _depth(layers: int) -> int | None:
    return None if layers == ALL_LAYERS else layers


def _require_sound(needed: Sequence[str], tensors: Mapping[str, Tensor]) -> None:
    known = {stored for name in needed for stored in stored_names(name)}
    unknown = sorted(tensors.keys() - known)
    if unknown:
        raise MalformedChainMap(f"The router's features hold '{unknown[0]}', which they have no use for.")
    for name in needed:
        fault = find_fault(name, tensors)
        if fault is not None:
            raise MalformedChainMap(f"The router's feature tensor '{name}' {fault}.")
