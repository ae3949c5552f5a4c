"""Families of tiny adapters: random (IA)3 vectors and LoRA factors on a tiny base, with heads fitted to their rows.

Everything is written by peft itself. No adapter is trained: the noise is seeded, and the head is fitted to what base
and adapter give together, so that tasks are answered mostly right with their own adapter, less often with another's.
"""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet
import torch
from peft import IA3Config, LoraConfig, PeftConfig, PeftModel, get_peft_model
from transformers import AutoModelForImageClassification, AutoModelForSequenceClassification, PreTrainedModel

from tests import tiny_models
from tests.tiny_models import LABELS, ROWS, TinyFamily, TinyTask
from tests.tiny_speakers import SpeakingFamily, load_speaker


_HEADS = {"text": AutoModelForSequenceClassification, "image": AutoModelForImageClassification}
# What the (IA)3 paper scales, and LoRA acts on, by layout: keys, values, and the inner layer of the mlp.
TARGETS: Mapping[str, tuple[list[str], list[str]]] = {
    "bert": (["key", "value", "output.dense"], ["output.dense"]),
    "roberta": (["key", "value", "intermediate.dense"], []),
    "distilbert": (["k_lin", "v_lin", "ffn.lin2"], ["ffn.lin2"]),
    "gpt2": (["c_attn", "mlp.c_proj"], ["mlp.c_proj"]),
    "vit": (["k_proj", "v_proj", "fc2"], ["fc2"]),
}
HEADS = {"distilbert": ["pre_classifier", "classifier"], "gpt2": ["score"]}


def settings_of(layout: str, kind: str, **changes: Any) -> PeftConfig:
    """Returns peft's configuration of an adapter: `ia3` or `lora`."""
    targets, inputs = TARGETS[layout]
    common: dict[str, Any] = {
        "target_modules": targets,
        "modules_to_save": HEADS.get(layout, ["classifier"]),
        "fan_in_fan_out": layout == "gpt2",
    }
    if kind == "ia3":
        return IA3Config(**common | {"feedforward_modules": inputs} | changes)
    return LoraConfig(**common | {"r": 3, "lora_alpha": 6, "lora_dropout": 0.0} | changes)


def build_adapters(
    layout: str, kind: str, folder: Path, *, rows: Mapping[str, int] = ROWS, seed: int = 0, **changes: Any
) -> TinyFamily:
    """Returns a family of three tasks whose folders hold adapters instead of fine-tunes."""
    reads = "image" if layout in tiny_models.IMAGE_LAYOUTS else "text"
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        tiny_models.new_base(layout).save_pretrained(folder / "base")
        tiny_models.save_reader(layout, folder / "base")
        tasks = {}
        for name in ("animals", "colours", "weather"):
            data = tiny_models.write_data(reads, name, folder / f"{name}-data", rows, seed)
            save_adapter(layout, kind, folder / "base", folder / name, LABELS[name], data["train"], **changes)
            tasks[name] = TinyTask(name, folder / name, LABELS[name], "accuracy", data, adapter=True)
    return TinyFamily(layout, reads, folder / "base", tasks)


def save_adapter(
    layout: str, kind: str, base: Path, out: Path, labels: tuple[str, ...], train: Path, **changes: Any
) -> None:
    """Saves a random adapter of a base, with a head fitted to the train rows."""
    reads = "image" if layout in tiny_models.IMAGE_LAYOUTS else "text"
    padding = {"pad_token_id": 0} if layout == "gpt2" else {}
    whole: PreTrainedModel = _HEADS[reads].from_pretrained(base, num_labels=len(labels), **padding)
    with _peft_unwarned():
        model: Any = get_peft_model(whole, settings_of(layout, kind, **changes))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "ia3_l" in name:
                parameter.copy_(1 + 0.4 * torch.randn(parameter.shape))
            elif "lora_" in name:
                parameter.copy_(0.3 * torch.randn(parameter.shape))
            elif parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape))
    model.train(False)
    table = pyarrow.parquet.read_table(train).to_pydict()
    inputs = tiny_models.inputs_of(reads, base, table)
    tiny_models.fit_head(model, inputs, torch.tensor(table["label"]), regression=False)
    model.save_pretrained(out)


def load_adapter(family: TinyFamily, task: str) -> PreTrainedModel:
    """Returns a task's base with its adapter multiplied in, as peft itself does it."""
    tiny = family.tasks[task]
    padding = {"pad_token_id": 0} if family.layout == "gpt2" else {}
    whole = _HEADS[family.kind].from_pretrained(family.base, num_labels=tiny.num_labels, **padding)
    with _peft_unwarned():
        model: Any = PeftModel.from_pretrained(whole, tiny.folder)
    model.train(False)
    return model  # type: ignore[no-any-return]


def mixed(adapters: TinyFamily, whole: TinyFamily, task: str) -> TinyFamily:
    """Returns the family with one task's adapter exchanged for a whole fine-tune of the same base."""
    return replace(adapters, tasks={**adapters.tasks, task: whole.tasks[task]})


@contextmanager
def _peft_unwarned() -> Iterator[None]:
    """Keeps peft's use of attributes that newer transformers deprecate from failing a test."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
        yield


def speaking_adapters(speakers: SpeakingFamily, kind: str, folder: Path) -> SpeakingFamily:
    """Returns a family of language models whose tasks are random adapters of the base, saved into `folder`."""
    targets = {"llama": (["k_proj", "v_proj", "down_proj"], ["down_proj"]), "t5": (["k", "v", "wo"], ["wo"])}
    names, inputs = targets[speakers.layout]
    settings: Any = (
        IA3Config(target_modules=names, feedforward_modules=inputs)
        if kind == "ia3"
        else LoraConfig(target_modules=names, r=3, lora_alpha=6, lora_dropout=0.0)
    )
    tasks = {}
    with torch.random.fork_rng():
        for seed, (name, task) in enumerate(speakers.tasks.items()):
            torch.manual_seed(seed)
            with _peft_unwarned():
                model: Any = get_peft_model(load_speaker(speakers.kind, speakers.base), settings)
            with torch.no_grad():
                for path, parameter in model.named_parameters():
                    if parameter.requires_grad:
                        parameter.copy_(("ia3_l" in path) + 0.3 * torch.randn(parameter.shape))
            model.save_pretrained(folder / name)
            tasks[name] = replace(task, folder=folder / name, adapter=True)
    return replace(speakers, tasks=tasks)
