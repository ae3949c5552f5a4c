"""Names in checkpoints: old ones read as today's, buffers and tied copies left out."""

from collections.abc import Iterable

import pytest

from hf_merge.storing.headers import TensorSpec
from hf_merge.storing.tensor_names import present_name, weights_of


def specs(names: Iterable[str], **shapes: tuple[int, ...]) -> dict[str, TensorSpec]:
    return {name: TensorSpec(name, "F32", shapes.get(name.split(".")[0], (9, 4)), 0, 0) for name in names}


@pytest.mark.parametrize(
    ("name", "today"),
    [
        ("bert.embeddings.LayerNorm.gamma", "bert.embeddings.LayerNorm.weight"),
        ("bert.embeddings.LayerNorm.beta", "bert.embeddings.LayerNorm.bias"),
        ("bert.embeddings.LayerNorm.weight", "bert.embeddings.LayerNorm.weight"),
        ("blocks.0.ls1.gamma", "blocks.0.ls1.gamma"),
        ("encoder.pos_conv_embed.conv.weight_g", "encoder.pos_conv_embed.conv.parametrizations.weight.original0"),
        ("encoder.pos_conv_embed.conv.weight_v", "encoder.pos_conv_embed.conv.parametrizations.weight.original1"),
        ("experts.weight_gate.weight", "experts.weight_gate.weight"),
    ],
)
def test_old_names_of_norms_and_normalised_weights(name: str, today: str) -> None:
    assert present_name(name) == today


@pytest.mark.parametrize(
    "name",
    [
        "h.0.attn.bias",
        "transformer.h.0.attn.masked_bias",
        "bert.embeddings.position_ids",
        "position_ids",
        "model.layers.0.self_attn.rotary_emb.inv_freq",
    ],
)
def test_buffers_are_left_out(name: str) -> None:
    assert weights_of(specs([name, "h.0.attn.c_attn.bias"]), {}).keys() == {"h.0.attn.c_attn.bias"}


@pytest.mark.parametrize(
    ("names", "kept"),
    [
        (["transformer.wte.weight", "lm_head.weight"], ["transformer.wte.weight"]),
        (["shared.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight"], ["shared.weight"]),
        (["model.embed_tokens.weight", "lm_head.weight"], ["model.embed_tokens.weight"]),
        (["lm_head.weight"], ["lm_head.weight"]),
    ],
)
def test_tied_copies_are_left_out(names: list[str], kept: list[str]) -> None:
    assert list(weights_of(specs(names), {})) == kept
    assert list(weights_of(specs(names), {"tie_word_embeddings": False})) == names


def test_an_output_layer_of_another_shape_is_no_copy() -> None:
    names = ["wte.weight", "lm_head.weight"]
    assert list(weights_of(specs(names, lm_head=(7, 4)), {})) == names
