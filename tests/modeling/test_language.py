from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

from hf_merge.errors import CheckpointDamaged, UnsupportedArchitecture
from hf_merge.modeling.assembly import Head, TaskModel
from hf_merge.modeling.features import FeatureExtractor
from hf_merge.modeling.language import SpecialTokens, language_kind, task_model
from hf_merge.modeling.options import IGNORED
from hf_merge.recipe.wording import Wording
from hf_merge.storing.families import Family, align
from hf_merge.storing.language import LanguageCheckpoint, complete_base
from tests.tiny_speakers import TAUGHT_SPEAKERS, SpeakingFamily, load_speaker, speaking_tokenizer


HEAD = Head.worded(Wording("{text}", (" a", " b"), None))


def opened_speakers(tiny: SpeakingFamily) -> Family:
    base = LanguageCheckpoint(str(tiny.base), tiny.base)
    tuned = {name: LanguageCheckpoint(str(task.folder), task.folder) for name, task in tiny.tasks.items()}
    complete_base(base, tuned)
    return align(base, tuned)


def speaker_model(tiny: SpeakingFamily, family: Family, tokens: SpecialTokens | None = None) -> TaskModel:
    kind: Any = tiny.kind
    tokens = tokens or SpecialTokens.of(speaking_tokenizer(tiny.layout))
    return task_model(family.base.config, kind, HEAD, tokens, family.shapes, family.base.trunk)


@pytest.mark.parametrize("layout", TAUGHT_SPEAKERS)
def test_a_fine_tune_put_together_is_the_fine_tune(
    layout: str, tiny_speakers: Callable[[str], SpeakingFamily]
) -> None:
    tiny = tiny_speakers(layout)
    ids = torch.tensor([[5, 9, 12, 7]])
    for task in tiny.tasks:
        reference: Any = load_speaker(tiny.kind, tiny.tasks[task].folder)
        with opened_speakers(tiny) as family:
            model = speaker_model(tiny, family)
            model.set_backbone({name: family.tasks[task].read(name) for name in family.shapes}, family.base.trunk)
        model.require_complete()
        assert type(model.module) is type(reference)
        more = {"decoder_input_ids": torch.tensor([[0, 8]])} if tiny.kind == "seq2seq" else {}
        with torch.inference_mode():
            assert torch.equal(model.module(input_ids=ids, **more).logits, reference(input_ids=ids, **more).logits)


@pytest.mark.parametrize("layout", TAUGHT_SPEAKERS)
def test_every_parameter_is_in_the_backbone_once(layout: str, tiny_speakers: Callable[[str], SpeakingFamily]) -> None:
    tiny = tiny_speakers(layout)
    reference = load_speaker(tiny.kind, tiny.tasks["animals"].folder)
    with opened_speakers(tiny) as family:
        assert family.head_parameters() == 0
        heads = [name for name in family.shapes if name.endswith(("lm_head.weight", "final_logits_bias"))]
        buffers = sum(value.numel() for name, value in reference.named_buffers() if name == "final_logits_bias")
        assert family.parameters == sum(value.numel() for value in reference.parameters()) + buffers
    assert heads == {"llama": ["lm_head.weight"], "t5": ["lm_head.weight"], "bart": ["final_logits_bias"]}.get(
        layout, []
    )


def test_an_untied_head_stays_so_when_the_model_is_saved(
    tiny_speakers: Callable[[str], SpeakingFamily], tmp_path: Path
) -> None:
    tiny = tiny_speakers("t5")
    with opened_speakers(tiny) as family:
        model = speaker_model(tiny, family)
        model.set_backbone({name: family.base.read(name) for name in family.shapes}, family.base.trunk)
    module: Any = model.module
    assert not torch.equal(module.lm_head.weight, module.shared.weight)
    assert module.encoder.embed_tokens.weight is module.shared.weight
    module.save_pretrained(tmp_path / "saved")
    again: Any = load_speaker("seq2seq", tmp_path / "saved")
    assert torch.equal(again.lm_head.weight, module.lm_head.weight)
    assert torch.equal(again.shared.weight, module.shared.weight)


def test_tokens_come_from_the_tokenizer_where_the_configuration_has_none(
    tiny_speakers: Callable[[str], SpeakingFamily],
) -> None:
    tiny = tiny_speakers("qwen2")
    with opened_speakers(tiny) as family:
        settings = speaker_model(tiny, family, SpecialTokens(3, 4)).module.generation_config
        assert (settings.pad_token_id, settings.eos_token_id, settings.bos_token_id) == (3, 4, 0)
    tiny = tiny_speakers("bart")
    with opened_speakers(tiny) as family:
        settings = speaker_model(tiny, family, SpecialTokens(30, 40)).module.generation_config
        assert (settings.pad_token_id, settings.eos_token_id, settings.decoder_start_token_id) == (1, 2, 2)
        assert settings.num_beams in (None, 1), "only tokens are taken from a configuration"


def test_an_encoder_decoder_without_a_first_token_is_refused(tiny_speakers: Callable[[str], SpeakingFamily]) -> None:
    with opened_speakers(tiny_speakers("t5")) as family:
        config = family.base.config | {"decoder_start_token_id": None}
        with pytest.raises(CheckpointDamaged, match=r"'t5' model names no decoder_start_token_id.*pad_token_id"):
            task_model(config, "seq2seq", HEAD, SpecialTokens(0, 1), family.shapes, "")


def test_model_types_that_do_not_speak_are_refused() -> None:
    with pytest.raises(UnsupportedArchitecture, match="no causal language model for the model type 'vit'"):
        task_model({"model_type": "vit"}, "causal", HEAD, SpecialTokens(), (), "")


def test_the_kind_is_read_off_the_configuration() -> None:
    assert language_kind({"is_encoder_decoder": True}) == "seq2seq"
    assert language_kind({"is_encoder_decoder": False}) == language_kind({}) == "causal"


# Other layouts, of which transformers names, ties and places the parts each in its own way

ROTARY: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
    "intermediate_size": 64, "max_position_embeddings": 64, "pad_token_id": 0,
}  # fmt: skip
SHORT: dict[str, Any] = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64}
BLOCKS: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_heads": 2}
BOTH: dict[str, Any] = {
    "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 2, "pad_token_id": 0,
    "decoder_attention_heads": 2, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "max_position_embeddings": 64,
    "decoder_start_token_id": 2,
}  # fmt: skip
BUCKETS: dict[str, Any] = {"d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 2}
OTHERS: dict[str, dict[str, Any]] = {
    "mistral": ROTARY, "qwen3": ROTARY | {"head_dim": 16}, "gemma3_text": ROTARY | {"head_dim": 16}, "phi": ROTARY,
    "olmo2": ROTARY, "gpt_neox": ROTARY, "cohere": ROTARY, "granite": ROTARY, "gptj": SHORT | {"rotary_dim": 8},
    "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 2}, "falcon": BLOCKS, "mpt": {"d_model": 32, "n_layers": 2},
    "opt": BLOCKS | {"ffn_dim": 64, "max_position_embeddings": 64, "word_embed_proj_dim": 32},
    "mamba": {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 4}, "mbart": BOTH, "pegasus": BOTH,
    "blenderbot": BOTH, "mt5": BUCKETS | {"decoder_start_token_id": 0},
    "switch_transformers": BUCKETS | {"decoder_start_token_id": 0},
}  # fmt: skip


@pytest.mark.parametrize("model_type", OTHERS)
def test_other_layouts_score_options_as_transformers_does(model_type: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = AutoConfig.for_model(model_type, vocab_size=50, **OTHERS[model_type])
    kind = language_kind(config.to_dict())
    loader: Any = AutoModelForSeq2SeqLM if kind == "seq2seq" else AutoModelForCausalLM
    made: Any = loader.from_config(config)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    made.save_pretrained(tmp_path)
    reference = loader.from_pretrained(tmp_path).eval()
    base, tuned = LanguageCheckpoint("base", tmp_path), LanguageCheckpoint("tuned", tmp_path)
    complete_base(base, {"one": tuned})
    with align(base, {"one": tuned}) as family:
        model = task_model(base.config, kind, HEAD, SpecialTokens(0, 2), family.shapes, base.trunk)
        model.set_backbone({name: family.tasks["one"].read(name) for name in family.shapes}, base.trunk)
        eyes = FeatureExtractor.from_base(base.config, list(family.shapes), base.trunk, 0, base)
    model.require_complete()
    assert eyes.pooled({"input_ids": torch.tensor([[3, 4, 5]])}).isfinite().all()
    prompts, options = ([3, 4, 5], [7, 8]), ([6, 7], [9])
    if kind == "seq2seq":
        inputs = {"input_ids": padded(prompts, 0), "labels": padded(options, IGNORED).expand(2, -1, -1)}
        inputs["attention_mask"] = padded([[1] * len(prompt) for prompt in prompts], 0)
    else:
        whole = [prompt + option for prompt in prompts for option in options]
        said = [[IGNORED] * len(prompt) + option for prompt in prompts for option in options]
        parts = {"input_ids": padded(whole, 0), "labels": padded(said, IGNORED)}
        parts["attention_mask"] = padded([[1] * len(ids) for ids in whole], 0)
        inputs = {name: value.view(2, 2, -1) for name, value in parts.items()}
    wanted = [[loss_of(reference, kind, prompt, option) for option in options] for prompt in prompts]
    torch.testing.assert_close(model.logits(inputs), -torch.tensor(wanted), rtol=1e-4, atol=1e-4)


def padded(rows: Sequence[list[int]], filler: int) -> Tensor:
    longest = max(map(len, rows))
    return torch.tensor([row + [filler] * (longest - len(row)) for row in rows])


@torch.inference_mode()
def loss_of(model: Any, kind: str, prompt: list[int], option: list[int]) -> float:
    read, labels = (prompt, option) if kind == "seq2seq" else (prompt + option, [IGNORED] * len(prompt) + option)
    return float(model(input_ids=torch.tensor([read]), labels=torch.tensor([labels])).loss)
