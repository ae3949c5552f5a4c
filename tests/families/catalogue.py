"""Tiny random models of many families of transformers: their configurations, and what they read.

Every model is as small as its family allows and still of its kind: experts where it has experts, windows where it has
windows, stages where it has stages.
"""

from dataclasses import dataclass, field
from typing import Any

from transformers import AutoConfig, PreTrainedConfig


WORDS = 64
SIDE = 32
_BLOCKS = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
_TEXT = {"vocab_size": WORDS, "max_position_embeddings": 40, "pad_token_id": 0}
_PIXELS = {"image_size": SIDE, "patch_size": 8, "num_channels": 3}
_DECODER = {**_BLOCKS, **_TEXT, "num_key_value_heads": 1, "head_dim": 8}
_EXPERTS = {"num_experts": 3, "num_experts_per_tok": 2, "moe_intermediate_size": 12}
_STAGES = {"depths": [1, 2], "num_channels": 3}
_CONVNEXT = {"num_channels": 3, "depths": [1, 1, 2, 1], "hidden_sizes": [8, 8, 16, 16]}
_SEQ2SEQ = {
    "vocab_size": WORDS, "pad_token_id": 0, "eos_token_id": 3, "d_model": 16, "encoder_layers": 2, "decoder_layers": 2,
    "encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24,
    "max_position_embeddings": 40, "decoder_start_token_id": 2, "forced_eos_token_id": None,
}  # fmt: skip
_T5 = {
    "vocab_size": WORDS, "pad_token_id": 0, "eos_token_id": 3, "decoder_start_token_id": 0, "d_model": 16, "d_kv": 8,
    "d_ff": 24, "num_layers": 2, "num_heads": 2, "relative_attention_num_buckets": 8,
}  # fmt: skip
_SWIN = {"image_size": SIDE, "patch_size": 4, "embed_dim": 8, "depths": [1, 2], "num_heads": [1, 2], "window_size": 4}


@dataclass(frozen=True)
class FamilySpec:
    """One family: the settings of its tiny configuration, and whether it reads `text`, `image` or `audio`."""

    name: str
    kind: str
    settings: dict[str, Any] = field(hash=False)

    def config(self, **changes: Any) -> PreTrainedConfig:
        """Returns the configuration of the base."""
        return AutoConfig.for_model(self.name, architectures=[], **(self.settings | changes))


def _text(name: str, **settings: Any) -> FamilySpec:
    return FamilySpec(name, "text", {**_BLOCKS, **_TEXT, **settings})


def _decoder(name: str, **settings: Any) -> FamilySpec:
    return FamilySpec(name, "text", {**_DECODER, **settings})


def _image(name: str, **settings: Any) -> FamilySpec:
    return FamilySpec(name, "image", {**_BLOCKS, **_PIXELS, **settings})


def _two_towers(name: str, **settings: Any) -> FamilySpec:
    vision = {**_BLOCKS, **_PIXELS, "projection_dim": 8}
    text = {**_BLOCKS, **_TEXT, "projection_dim": 8}
    return FamilySpec(name, "image", {"vision_config": vision, "text_config": text, **settings})


def _wave(name: str, **settings: Any) -> FamilySpec:
    """Returns a family that reads the wave itself; one normalised over time has no mask."""
    convolutions = {
        "conv_dim": [8, 8], "conv_kernel": [10, 3], "conv_stride": [5, 2], "num_feat_extract_layers": 2,
        "num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2, "classifier_proj_size": 8,
    }  # fmt: skip
    return FamilySpec(name, "audio", {**_BLOCKS, **convolutions, **settings})


FAMILIES = {
    spec.name: spec
    for spec in (
        _text("albert", embedding_size=8),
        _text("bert"),
        _text("big_bird", attention_type="original_full"),
        _text("camembert", pad_token_id=1),
        _text("convbert", embedding_size=16, conv_kernel_size=3, head_ratio=2),
        _text("deberta", relative_attention=True, pos_att_type=["c2p", "p2c"]),
        _text("deberta-v2", relative_attention=True, pos_att_type=["c2p", "p2c"], position_buckets=4),
        FamilySpec("distilbert", "text", {**_TEXT, "dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 24}),
        _text("electra", embedding_size=8),
        _text("ernie"),
        FamilySpec(
            "funnel", "text",
            {"vocab_size": WORDS, "block_sizes": [1, 1], "d_model": 16, "n_head": 2, "d_head": 8, "d_inner": 24,
             "num_decoder_layers": 1, "max_position_embeddings": 40, "pad_token_id": 0},
        ),
        _text("layoutlm"),
        _text("mobilebert", embedding_size=8, intra_bottleneck_size=8, true_hidden_size=8),
        _text("modernbert", global_attn_every_n_layers=2, cls_token_id=1, sep_token_id=2),
        _text("mpnet", pad_token_id=1),
        _text("nystromformer", segment_means_seq_len=8, num_landmarks=8),
        _text("rembert", input_embedding_size=8, output_embedding_size=8),
        _text("roberta", pad_token_id=1),
        _text("roformer", embedding_size=16),
        _text("squeezebert", embedding_size=16),
        _text("xlm-roberta", pad_token_id=1),
        FamilySpec(
            "xlnet", "text",
            {"vocab_size": WORDS, "d_model": 16, "n_layer": 2, "n_head": 2, "d_inner": 24, "pad_token_id": 0},
        ),
        FamilySpec(
            "bloom", "text", {"vocab_size": WORDS, "hidden_size": 16, "n_layer": 2, "n_head": 2, "pad_token_id": 0}
        ),
        FamilySpec("falcon", "text", {**_BLOCKS, **_TEXT, "new_decoder_architecture": True, "num_kv_heads": 1}),
        _decoder("gemma"),
        _decoder("gemma2", query_pre_attn_scalar=8, sliding_window=8),
        _decoder("gemma3_text", query_pre_attn_scalar=8, sliding_window=8),
        FamilySpec(
            "gpt2", "text",
            {"vocab_size": WORDS, "n_positions": 40, "n_embd": 16, "n_layer": 2, "n_head": 2, "pad_token_id": 0},
        ),
        FamilySpec(
            "gpt_neo", "text",
            {"vocab_size": WORDS, "max_position_embeddings": 40, "hidden_size": 16, "num_layers": 2, "num_heads": 2,
             "attention_types": [[["global", "local"], 1]], "window_size": 4, "pad_token_id": 0},
        ),
        _text("gpt_neox"),
        _decoder("jetmoe", num_local_experts=3, num_experts_per_tok=2, kv_channels=8),
        _decoder("llama"),
        _decoder("mistral"),
        _decoder("mixtral", num_local_experts=3, num_experts_per_tok=2),
        _decoder("olmo"),
        _decoder("olmo2"),
        FamilySpec(
            "opt", "text",
            {"vocab_size": WORDS, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "ffn_dim": 24,
             "max_position_embeddings": 40, "word_embed_proj_dim": 16, "pad_token_id": 0},
        ),
        _decoder("phi"),
        _decoder("phi3"),
        _decoder("qwen2"),
        _decoder("qwen2_moe", shared_expert_intermediate_size=12, **_EXPERTS),
        _decoder("qwen3"),
        _decoder("qwen3_moe", **_EXPERTS),
        _decoder("stablelm"),
        _decoder("starcoder2"),
        FamilySpec("bart", "text", _SEQ2SEQ),
        FamilySpec("mbart", "text", _SEQ2SEQ),
        FamilySpec("t5", "text", _T5),
        FamilySpec("mt5", "text", {**_T5, "feed_forward_proj": "gated-gelu"}),
        _image("beit", use_relative_position_bias=True),
        FamilySpec("bit", "image", {**_STAGES, "hidden_sizes": [8, 16], "embedding_size": 8, "num_groups": 2}),
        _two_towers("clip", projection_dim=8),
        FamilySpec("convnext", "image", _CONVNEXT),
        FamilySpec("convnextv2", "image", _CONVNEXT),
        _image("data2vec-vision", use_relative_position_bias=True),
        _image("deit"),
        _image("dinov2", mlp_ratio=2),
        _image("dinov2_with_registers", mlp_ratio=2, num_register_tokens=2),
        _image("ijepa"),
        _image("vit"),
        _image("vit_msn"),
        FamilySpec(
            "resnet", "image", {**_STAGES, "hidden_sizes": [8, 16], "embedding_size": 8, "layer_type": "bottleneck"}
        ),
        FamilySpec("regnet", "image", {**_STAGES, "hidden_sizes": [8, 16], "embedding_size": 8, "groups_width": 4}),
        _two_towers("siglip"),
        FamilySpec("swin", "image", _SWIN),
        FamilySpec("swinv2", "image", _SWIN),
        FamilySpec("poolformer", "image", {"num_channels": 3, "depths": [1, 1, 1, 1], "hidden_sizes": [8, 8, 16, 16]}),
        FamilySpec(
            "segformer", "image",
            {"num_channels": 3, "num_encoder_blocks": 2, "depths": [1, 1], "sr_ratios": [2, 1],
             "hidden_sizes": [8, 16], "patch_sizes": [7, 3], "strides": [4, 2], "num_attention_heads": [1, 2],
             "mlp_ratios": [2, 2], "decoder_hidden_size": 8},
        ),
        FamilySpec(
            "mobilenet_v2", "image", {"num_channels": 3, "image_size": SIDE, "depth_multiplier": 0.25, "min_depth": 4}
        ),
        _wave("wav2vec2", feat_extract_norm="layer", do_stable_layer_norm=True),
        _wave("hubert", feat_extract_norm="group"),
        _wave("wavlm", feat_extract_norm="layer", use_weighted_layer_sum=True),
        _wave("data2vec-audio", num_conv_pos_embeddings=2, conv_pos_kernel_size=3),
        _wave("unispeech-sat", feat_extract_norm="group"),
        FamilySpec(
            "audio-spectrogram-transformer", "audio",
            {**_BLOCKS, "patch_size": 8, "max_length": 64, "num_mel_bins": 16, "frequency_stride": 8,
             "time_stride": 8},
        ),
        FamilySpec(
            "whisper", "audio",
            {"vocab_size": WORDS, "d_model": 16, "encoder_layers": 2, "decoder_layers": 2, "num_mel_bins": 8,
             "encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24,
             "max_source_positions": 50, "max_target_positions": 20, "classifier_proj_size": 8, "pad_token_id": 0,
             "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1},
        ),
    )
}  # fmt: skip
