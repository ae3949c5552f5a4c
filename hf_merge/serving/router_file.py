"""`router.safetensors`: the router, the pre-trained weights it sees with, and how deep it looks (docs/format.md)."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from hf_merge.errors import MalformedChainMap, ModelMismatch
from hf_merge.modeling.features import ALL_LAYERS, FeatureExtractor, base_names
from hf_merge.serving.router import Router


_ROUTER, _FEATURES, _LAYERS = "router", "features", "settings/layers"


def router_tensors(router: Router, eyes: FeatureExtractor) -> dict[str, Tensor]:
    """Returns the tensors of a `router.safetensors`, by name."""
    tensors = {f"{_ROUTER}/{name}": tensor.contiguous() for name, tensor in router.tensors().items()}
    tensors |= {f"{_FEATURES}/{name}": tensor.contiguous() for name, tensor in eyes.tensors.items()}
    return tensors | {_LAYERS: torch.tensor(eyes.layers, dtype=torch.int32)}


def load_router(
    tensors: Mapping[str, Tensor], config: Mapping[str, Any], trunk: str, *, device: torch.device | None = None
) -> tuple[Router, FeatureExtractor]:
    """Returns the router and its eyes.

    Args:
        tensors: The tensors of a `router.safetensors`.
        config: The base's `config.json`.
        trunk: The base's trunk.
        device: Where to compute the features; the processor by default.

    Raises:
        MalformedChainMap: A tensor is missing, unknown, or not what a router has.
    """
    parts: dict[str, dict[str, Tensor]] = {_ROUTER: {}, _FEATURES: {}}
    for name, tensor in tensors.items():
        kind, _, rest = name.partition("/")
        if kind in parts:
            parts[kind][rest] = tensor
        elif name != _LAYERS:
            raise MalformedChainMap(f"router.safetensors holds the unknown tensor '{name}'.")
    stored = parts[_FEATURES]
    layers = _layers(tensors)
    try:
        eyes = FeatureExtractor(config, base_names(list(stored)), trunk, layers, stored, device=device)
    except ModelMismatch as error:
        raise MalformedChainMap(f"router.safetensors does not fit the member's config.json: {error}") from error
    return Router(parts[_ROUTER]), eyes


def _layers(tensors: Mapping[str, Tensor]) -> int:
    layers = tensors.get(_LAYERS)
    if layers is None or layers.shape != () or layers.dtype != torch.int32:
        raise MalformedChainMap(f"router.safetensors lacks '{_LAYERS}', the depth of its features, one int32.")
    if int(layers) < 0 and int(layers) != ALL_LAYERS:
        raise MalformedChainMap(f"router.safetensors: '{_LAYERS}' is {int(layers)}, which is no depth.")
    return int(layers)
