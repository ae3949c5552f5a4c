"""Names in checkpoints: which of them transformers has renamed since, and which stand for no weight of their own."""

import re
from collections.abc import Mapping
from typing import Any

from hf_merge.storing.headers import TensorSpec


_NORMALISED = {".weight_g": ".parametrizations.weight.original0", ".weight_v": ".parametrizations.weight.original1"}
_BUFFER = re.compile(r"(^|\.)(position_ids|token_type_ids|inv_freq|num_batches_tracked)$|\.attn\.(bias|masked_bias)$")
_TIED = re.compile(r"(^|\.)(lm_head|embed_tokens|embed_out|decoder)\.weight$")
_SOURCE = re.compile(r"(^|\.)(shared|wte|word_embeddings|embed_tokens)\.weight$")


def present_name(name: str) -> str:
    """Returns the name that transformers gives a tensor today.

    Old checkpoints have norms with gamma and beta, and weights that are normalised as `weight_g` and `weight_v`.
    """
    for old, new in _NORMALISED.items():
        if name.endswith(old):
            name = name.removesuffix(old) + new
    return name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")


def is_pooler(name: str) -> bool:
    """Returns whether a tensor is a pooler's, the one backbone part that task classes may leave out or add."""
    return "pooler" in name.split(".")


def weights_of(specs: Mapping[str, TensorSpec], config: Mapping[str, Any]) -> dict[str, TensorSpec]:
    """Returns the specs without buffers (which the model computes itself) and without copies of a tied embedding."""
    kept = {name: spec for name, spec in specs.items() if not _BUFFER.search(name)}
    if not config.get("tie_word_embeddings", True):
        return kept
    tied = tied_copies(kept)
    return {name: spec for name, spec in kept.items() if name not in tied}


def tied_copies(specs: Mapping[str, TensorSpec]) -> dict[str, str]:
    """Returns the tensors that are copies of the embedding if weights are tied, each with the embedding's name."""
    sources = sorted((name for name in specs if _SOURCE.search(name)), key=lambda name: ("shared" not in name, name))
    return {
        name: sources[0]
        for name in specs
        if sources and name != sources[0] and _TIED.search(name) and specs[name].shape == specs[sources[0]].shape
    }
