"""Families of tiny language models: decoders and encoder-decoders that were taught to answer, a few dozen steps each.

Two tasks choose among options and one writes. Layouts differ in what matters here: GPT-2 and BART have a base saved
without its head, Llama a head of its own, T5 one as well although its class ties it, the others tied heads.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Tokenizer,
)

from tests.tiny_models import LABELS, LAYERS, POSITIONS, ROWS, WIDTH, WORDS, TinyFamily, TinyTask, write_data


DECODERS = ("gpt2", "llama", "qwen2", "gemma2")
ENCODER_DECODERS = ("t5", "bart")
SPEAKERS = DECODERS + ENCODER_DECODERS
# For tests that teach or run a model of each: quick are a base without its head, heads of their own, tied ones with a
# tokenizer of bytes, and an encoder-decoder. Gemma 2 and BART repeat one of these on another layout.
TAUGHT_SPEAKERS = [
    pytest.param(layout, marks=pytest.mark.slow if layout in ("gemma2", "bart") else ()) for layout in SPEAKERS
]
COUSINS = ("mt5", "pegasus")  # built of the same parts as T5 and BART, so that one test of the whole way will do
TEMPLATES = {"animals": "{text} which animal", "colours": "colour of {text}", "weather": "{text} weather"}
WRITING = "weather"
NEW_TOKENS = 4
_CUES = ["animal", "colour", "which", "weather"]
_STEPS, _RATE, _SIZE = 40, 1e-2, 32
_LOADERS: Mapping[str, Any] = {"causal": AutoModelForCausalLM, "seq2seq": AutoModelForSeq2SeqLM}
_SPECIAL = {
    "gpt2": ["<|endoftext|>"], "llama": ["<unk>", "<s>", "</s>"], "qwen2": ["<|endoftext|>"],
    "gemma2": ["<pad>", "<eos>", "<bos>", "<unk>"], "t5": ["<pad>", "</s>", "<unk>"],
    "bart": ["<s>", "<pad>", "</s>", "<unk>"], "mt5": ["<pad>", "</s>", "<unk>"],
    "pegasus": ["<pad>", "</s>", "<unk>"],
}  # fmt: skip


@dataclass(frozen=True)
class SpeakingFamily(TinyFamily):
    """A base and its fine-tunes; `kind` is `causal` or `seq2seq`."""

    def columns(self, task: TinyTask) -> dict[str, Any]:
        """Returns what a recipe says of the columns of a task's data, and how it is put in words."""
        worded = {"text": "text", "template": TEMPLATES[task.name]}
        if task.labels is None:
            return {**worded, "target": "target", "max_new_tokens": NEW_TOKENS}
        return {**worded, "answers": list(answers_of(task.name))}


def build_speakers(layout: str, folder: Path, *, rows: Mapping[str, int] = ROWS, seed: int = 0) -> SpeakingFamily:
    """Returns a family of three tasks: `animals` has 2 options, `colours` 3, and `weather` is written."""
    kind = "seq2seq" if layout in ENCODER_DECODERS + COUSINS else "causal"
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        base = new_speaker(layout)
        saved: Any = base.base_model if layout in ("gpt2", "bart") else base
        saved.save_pretrained(folder / "base")
        speaking_tokenizer(layout).save_pretrained(folder / "base")
        start = {name: tensor.clone() for name, tensor in base.state_dict().items()}
        tasks = {}
        for name in ("animals", "colours", "weather"):
            files = write_data("text", name, folder / f"{name}-data", rows, seed)
            for file in files.values():
                _add_targets(name, file)
            base.load_state_dict(start)
            teach(layout, kind, base, name, files["train"])
            base.save_pretrained(folder / name)
            writes = name == WRITING
            labels = None if writes else LABELS[name]
            tasks[name] = TinyTask(name, folder / name, labels, "exact_match" if writes else "accuracy", files)
    return SpeakingFamily(layout, kind, folder / "base", tasks)


def answers_of(task: str) -> tuple[str, ...]:
    """Returns a task's options: the labels after a space, the second of two words."""
    return tuple(f" {label}" if index != 1 else f" {label} near" for index, label in enumerate(LABELS[task]))


def target_of(label: int) -> str:
    """Returns what the task that writes is to write for a label."""
    word = LABELS[WRITING][label]
    return word if label % 2 else f"{word} near"


def speaker_config(layout: str, **changes: Any) -> PreTrainedConfig:
    """Returns the configuration of a layout's base, with `changes`."""
    words = len(vocabulary(layout))
    rotary = {
        "hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": 2, "num_key_value_heads": 1,
        "intermediate_size": 2 * WIDTH, "max_position_embeddings": POSITIONS, "initializer_range": 0.1,
        "vocab_size": words, "head_dim": WIDTH // 2,
    }  # fmt: skip
    halves = {
        "vocab_size": words, "d_model": WIDTH, "encoder_layers": LAYERS, "decoder_layers": LAYERS,
        "encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 2 * WIDTH,
        "decoder_ffn_dim": 2 * WIDTH, "max_position_embeddings": POSITIONS, "init_std": 0.1,
    }  # fmt: skip
    t5 = {
        "vocab_size": words, "d_model": WIDTH, "d_kv": WIDTH // 2, "d_ff": 2 * WIDTH, "num_layers": LAYERS,
        "num_heads": 2, "decoder_start_token_id": 0, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False,
    }  # fmt: skip
    settings: dict[str, dict[str, Any]] = {
        "gpt2": {
            "vocab_size": words, "n_positions": POSITIONS, "n_embd": WIDTH, "n_layer": LAYERS, "n_head": 2,
            "initializer_range": 0.1, "bos_token_id": 0, "eos_token_id": 0,
        },
        "llama": {**rotary, "bos_token_id": 1, "eos_token_id": 2},
        "qwen2": {
            **{key: value for key, value in rotary.items() if key != "head_dim"}, "tie_word_embeddings": True,
            "bos_token_id": 0, "eos_token_id": None,
        },
        "gemma2": {**rotary, "sliding_window": 8, "query_pre_attn_scalar": 16, "pad_token_id": 0, "eos_token_id": 1},
        "t5": t5,
        "mt5": t5,
        "bart": {
            **halves, "bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2,
            "forced_eos_token_id": 2,
        },
        "pegasus": {
            **halves, "pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0, "forced_eos_token_id": 1,
            "scale_embedding": True, "init_std": 0.25,  # else its fixed positions drown the words
        },
    }  # fmt: skip
    return AutoConfig.for_model(layout, **(settings[layout] | changes))


def new_speaker(layout: str) -> PreTrainedModel:
    """Returns a random language model."""
    kind = "seq2seq" if layout in ENCODER_DECODERS + COUSINS else "causal"
    model: Any = _LOADERS[kind].from_config(speaker_config(layout))
    if layout in ("t5", "mt5"):
        head: Any = model.lm_head
        head.weight = nn.Parameter(torch.randn(head.weight.shape) * 0.1)
    made: PreTrainedModel = model.eval()
    return made


def load_speaker(kind: str, folder: Path) -> PreTrainedModel:
    """Returns a fine-tune as transformers itself loads it."""
    model: PreTrainedModel = _LOADERS[kind].from_pretrained(folder)
    model.train(False)
    for parameter in model.parameters():  # mapped files may give other last bits than memory does
        if parameter.data.is_contiguous():
            parameter.data = parameter.data.clone()
    return model


@cache
def vocabulary(layout: str) -> dict[str, int]:
    """Returns the tokens of a layout's tokenizer with their numbers."""
    if layout == "qwen2":
        return dict(speaking_tokenizer(layout).get_vocab())
    return {word: number for number, word in enumerate([*_SPECIAL[layout], *WORDS, *_CUES])}


def speaking_tokenizer(layout: str) -> PreTrainedTokenizerFast:
    """Returns a tokenizer of words that puts around a text what the layout's own does; some cannot pad, as in life.

    Qwen2's is one of bytes, in which a space belongs to the word behind it: transformers opens no other for it.
    """
    if layout == "qwen2":
        return _byte_tokenizer()
    words = vocabulary(layout)
    known = set(_SPECIAL[layout])
    unknown = "<unk>" if "<unk>" in known else _SPECIAL[layout][0]
    inner = Tokenizer(models.WordLevel(words, unk_token=unknown))
    inner.normalizer = normalizers.Lowercase()
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    around = {"llama": "<s> $A", "gemma2": "<bos> $A", "bart": "<s> $A </s>"}.get(layout)
    around = "$A </s>" if layout in ("t5", *COUSINS) else around
    if around is not None:
        special = [(word, words[word]) for word in around.split() if word != "$A"]
        inner.post_processor = processors.TemplateProcessing(
            single=around, pair=f"{around} $B", special_tokens=special
        )
    ends = next(word for word in ("</s>", "<eos>", "<|endoftext|>") if word in known)
    roles = {"eos_token": ends, "unk_token": unknown}
    begins = next((word for word in ("<s>", "<bos>") if word in known), None)
    roles |= {} if begins is None else {"bos_token": begins}
    roles |= {"pad_token": "<pad>"} if "<pad>" in known else {}
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, model_max_length=POSITIONS, model_input_names=["input_ids", "attention_mask"], **roles
    )


@cache
def _byte_tokenizer() -> Qwen2Tokenizer:
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet, show_progress=False
    )
    inner.train_from_iterator([f"{word} {word}" for word in (*WORDS, *_CUES)], trainer)
    learnt = json.loads(inner.to_str())["model"]
    merges: Any = [tuple(pair) for pair in learnt["merges"]]
    return Qwen2Tokenizer(
        vocab=learnt["vocab"],
        merges=merges,
        model_max_length=POSITIONS,
        model_input_names=["input_ids", "attention_mask"],
    )


def teach(layout: str, kind: str, model: PreTrainedModel, task: str, train: Path) -> None:
    """Trains a model to give a task's answers, and to end there where it writes."""
    tokenizer = speaking_tokenizer(layout)
    table = pyarrow.parquet.read_table(train).to_pydict()
    wanted = table["target"] if task == WRITING else [answers_of(task)[label] for label in table["label"]]
    pairs = [
        _pair(tokenizer, kind, TEMPLATES[task].replace("{text}", text), answer, ends=task == WRITING)
        for text, answer in zip(table["text"], wanted, strict=True)
    ]
    optimiser = torch.optim.AdamW(model.parameters(), lr=_RATE)
    generator = torch.Generator().manual_seed(0)
    for _ in range(_STEPS):
        chosen = torch.randint(len(pairs), (_SIZE,), generator=generator).tolist()
        loss = model(**_batch([pairs[index] for index in chosen], kind, tokenizer.pad_token_id or 0)).loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()


def _pair(
    tokenizer: PreTrainedTokenizerFast, kind: str, prompt: str, answer: str, *, ends: bool
) -> tuple[list[int], list[int]]:
    """Returns what a model reads and the labels, -100 where there are none."""
    if kind == "seq2seq":
        return tokenizer(prompt)["input_ids"], tokenizer(answer)["input_ids"]
    asked = tokenizer(prompt)["input_ids"]
    said = tokenizer(answer, add_special_tokens=False)["input_ids"] + ([tokenizer.eos_token_id] if ends else [])
    return asked + said, [-100] * len(asked) + said


def _batch(pairs: list[tuple[list[int], list[int]]], kind: str, padding: int) -> dict[str, torch.Tensor]:
    read, labels = ([pair[part] for pair in pairs] for part in (0, 1))
    length, width = max(map(len, read)), max(map(len, labels))
    return {
        "input_ids": torch.tensor([ids + [padding] * (length - len(ids)) for ids in read]),
        "attention_mask": torch.tensor([[1] * len(ids) + [0] * (length - len(ids)) for ids in read]),
        "labels": torch.tensor([ids + [-100] * (width - len(ids)) for ids in labels]),
    }


def _add_targets(task: str, file: Path) -> None:
    table = pyarrow.parquet.read_table(file)
    labels = table.column("label").to_pylist()
    targets = [target_of(label) for label in labels] if task == WRITING else [""] * len(labels)
    pyarrow.parquet.write_table(table.append_column("target", pyarrow.array(targets)), file)
