"""Settings of two checkpoints that must be equal for their weights to mean the same."""

from collections.abc import Iterator, Mapping
from typing import Any


# What must be equal for weights to mean the same: shapes (for better messages than a tensor's) and functions.
_STRUCTURE = frozenset(
    {
        "activation", "activation_function", "classifier_proj_size", "conv_stride", "d_ff", "d_kv", "d_model", "dim",
        "do_stable_layer_norm", "feat_extract_activation", "feat_extract_norm", "frequency_stride", "head_dim",
        "hidden_act", "hidden_dim", "hidden_size", "image_size", "intermediate_size", "layer_norm_eps",
        "layer_norm_epsilon", "max_position_embeddings", "mlp_ratio", "model_type", "n_embd", "n_head",
        "n_heads", "n_inner", "n_layer", "n_layers", "n_positions", "num_attention_heads", "num_channels",
        "num_heads", "num_hidden_layers", "num_key_value_heads", "num_layers", "patch_size",
        "position_embedding_type", "rms_norm_eps", "rope_theta", "time_stride", "type_vocab_size",
        "use_weighted_layer_sum", "vocab_size",
    }
)  # fmt: skip


def config_clashes(base: Mapping[str, Any], tuned: Mapping[str, Any], place: str) -> Iterator[str]:
    """Yields a line per setting that says what weights mean and is another in the fine-tune at `place`."""
    first, second = _structure(base), _structure(tuned)
    for key in sorted(first.keys() & second.keys()):
        if first[key] != second[key]:
            yield f"{place}: {key} is {second[key]!r:.80} where the base has {first[key]!r:.80}"


def _structure(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns the settings that must be equal, those of `vision_config` and its like among them, by dotted path."""
    found = {f"{prefix}{key}": value for key, value in config.items() if key in _STRUCTURE}
    for key, value in config.items():
        if key.endswith("_config") and isinstance(value, Mapping) and not prefix:
            found |= _structure(value, f"{key}.")
    return found
