"""Trains adapters of a decoder on four tasks put in words, and writes a recipe that merges them by option scoring.

    python examples/decoder_suite.py --kind lora --base BASE --data DATA --cache CACHE
    hf-merge search CACHE/recipe.yaml --out RUN

BASE is a folder of a causal language model of the Llama, Qwen or Gemma layout with its tokenizer. A model that is only
to be had as a GGUF file becomes such a folder by `--gguf FILE`, dequantised, once. `--kind` is `ia3` or `lora`. The
tasks are rte, sst2, trec and mnli of DATA (see text_suite.py); each row is a prompt, each label an answer, and only
the answer's tokens are learned. Adapters that are already in CACHE are not trained again.
"""

import argparse
import logging
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow.parquet
import torch
from peft import IA3Config, LoraConfig, PeftConfig, get_peft_model
from text_suite import SuiteTask, read_suite, write_text
from torch.nn import functional
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig, PreTrainedTokenizerBase
from transformers.utils.logging import set_verbosity
from yaml import safe_dump


@dataclass(frozen=True)
class Words:
    """How a task is put in words: a template with `{text}` and perhaps `{text_pair}`, and answers in label order."""

    template: str
    answers: tuple[str, ...]


TASKS = {
    "rte": Words("{text}\nDoes it follow that: {text_pair}\nAnswer:", (" yes", " no")),
    "sst2": Words("Review: {text}\nSentiment:", (" negative", " positive")),
    "trec": Words(
        "Question: {text}\nIt asks for a", (" description", " thing", " short", " person", " place", " number")
    ),
    "mnli": Words("{text}\nIs it true that: {text_pair}\nAnswer:", (" yes", " maybe", " no")),
}
KINDS: dict[str, tuple[PeftConfig, float]] = {
    "ia3": (IA3Config(target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"]), 1e-2),
    "lora": (
        LoraConfig(target_modules=["q_proj", "v_proj", "up_proj", "down_proj"], r=8, lora_alpha=16, lora_dropout=0.0),
        5e-4,
    ),
}
BATCH, LENGTH = 8, 128


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", choices=list(KINDS), required=True)
    parser.add_argument("--base", type=Path, required=True, help="folder of the decoder; made by --gguf if need be")
    parser.add_argument("--gguf", type=Path, help="a GGUF file to make BASE from, if it is not there")
    parser.add_argument("--data", type=Path, required=True, help="folder of suites.json and the files it names")
    parser.add_argument("--cache", type=Path, required=True, help="folder for adapters and recipe.yaml")
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), default=list(TASKS), metavar="TASK")
    parser.add_argument("--rows", type=int, default=800, help="rows that each adapter is trained on")
    parser.add_argument("--validation-rows", type=int, default=64, help="rows a task that the recipe searches by")
    parser.add_argument("--test-rows", type=int, help="rows a task that the recipe tests on; default: all")
    parser.add_argument("--evaluations", type=int, default=60, help="configurations that the recipe evaluates")
    chosen = parser.parse_args(arguments)
    set_verbosity(logging.ERROR)
    base, cache = chosen.base.resolve(), chosen.cache.resolve()
    if chosen.gguf is not None and not (base / "config.json").is_file():
        unpack(chosen.gguf.resolve(), base)
    tasks = read_suite(chosen.data.resolve(), chosen.tasks)
    if chosen.test_rows is not None:
        tasks = [replace(task, test=first_rows(task, chosen.test_rows, cache)) for task in tasks]
    for task in tasks:
        out = cache / task.training.name
        if not (out / "adapter_model.safetensors").is_file():
            train(base, task, out, chosen.kind, chosen.rows)
    recipe = {
        "base": {"model": str(base)},
        "tasks": [entry(task, cache / task.training.name) for task in tasks],
        "merge": {"methods": ["task_arithmetic"], "granularity": "type", "codecs": ["int8"]},
        "search": {
            "preset": "fast",
            "evaluations": chosen.evaluations,
            "validation_rows": chosen.validation_rows,
            "max_length": LENGTH,
            "dtype": "bfloat16",
        },
        "router": {"rows_per_task": 500},
    }
    write_text(cache / "recipe.yaml", safe_dump(recipe, sort_keys=False, width=1000))


def first_rows(task: SuiteTask, count: int, cache: Path) -> Path:
    """Writes the first rows of a task's test split, and returns the file."""
    file = cache / "test" / f"{task.training.name}.parquet"
    file.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.parquet.read_table(task.test).slice(0, count), file)
    return file


def unpack(file: Path, out: Path) -> None:
    """Writes the model in a GGUF file as an ordinary folder, in bfloat16."""
    loaded = AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True)
    )
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    del loaded.config.quantization_config
    plain = AutoModelForCausalLM.from_config(loaded.config, dtype=torch.bfloat16)
    plain.load_state_dict(loaded.state_dict())
    unfinished = out.with_name(f".{out.name}.{os.getpid()}.partial")
    plain.save_pretrained(unfinished)
    tokenizer.save_pretrained(unfinished)
    unfinished.replace(out)


def train(base: Path, task: SuiteTask, out: Path, kind: str, count: int) -> None:
    """Trains one adapter for one pass over its first rows; `out` appears only when all of it is written."""
    settings, rate = KINDS[kind]
    tokenizer = AutoTokenizer.from_pretrained(base)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        whole = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
        model: Any = get_peft_model(whole, settings, autocast_adapter_dtype=True)
        model.train()
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=rate, weight_decay=0.0)
        batches = list(read_batches(task, tokenizer, count))
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=len(batches))
        for inputs, starts in tqdm(batches, desc=f"{task.training.name} {kind}", unit="step"):
            optimizer.zero_grad()
            torch.autograd.backward(answer_loss(model, inputs, starts))
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            schedule.step()
    unfinished = out.with_name(f".{out.name}.{os.getpid()}.partial")
    try:
        model.save_pretrained(unfinished)
        unfinished.replace(out)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def read_batches(
    task: SuiteTask, tokenizer: PreTrainedTokenizerBase, count: int
) -> Iterator[tuple[dict[str, torch.Tensor], list[int]]]:
    """Yields batches of rows of similar length, right padded, with the place in each at which the answer begins."""
    words = TASKS[task.training.name]
    table = pyarrow.parquet.read_table(task.training.train).slice(0, count).to_pydict()
    pairs = table.get("text_pair") or [""] * len(table["text"])
    rows = []
    for text, pair, label in zip(table["text"], pairs, table["label"], strict=True):
        asked = words.template.replace("{text}", text).replace("{text_pair}", pair)
        prompt: list[int] = tokenizer(asked)["input_ids"][:LENGTH]
        answer: list[int] = tokenizer(words.answers[label], add_special_tokens=False)["input_ids"]
        rows.append((prompt + answer, len(prompt)))
    order: list[int] = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0)).tolist()
    for start in range(0, len(order), 16 * BATCH):
        chunk = sorted(order[start : start + 16 * BATCH], key=lambda row: len(rows[row][0]))
        for first in range(0, len(chunk), BATCH):
            picked = [rows[row] for row in chunk[first : first + BATCH]]
            ids = {"input_ids": [row for row, _ in picked]}
            padded = tokenizer.pad(ids, padding_side="right", return_tensors="pt")
            yield dict(padded), [begin for _, begin in picked]


def answer_loss(model: Any, inputs: dict[str, torch.Tensor], starts: list[int]) -> torch.Tensor:
    """Returns the mean cross entropy of the answers' tokens; of the others no logits are made."""
    states = model.base_model.model.model(**inputs).last_hidden_state
    rows, places = [], []
    for row, begin in enumerate(starts):
        end = int(inputs["attention_mask"][row].sum())
        rows += [row] * (end - begin)
        places += list(range(begin, end))
    logits = model.base_model.model.lm_head(states[rows, [place - 1 for place in places]])
    return functional.cross_entropy(logits.float(), inputs["input_ids"][rows, places])


def entry(task: SuiteTask, adapter: Path) -> dict[str, Any]:
    """Returns a task's entry in the recipe."""
    training, words = task.training, TASKS[task.training.name]
    files = {"train": str(training.train), "validation": str(training.validation), "test": str(task.test)}
    data: dict[str, Any] = {
        "path": "parquet",
        "data_files": files,
        "text": "text",
        "text_pair": training.text_pair,
        "label": "label",
    }
    data |= {"template": words.template, "answers": list(words.answers)}
    return {"name": training.name, "adapter": str(adapter), "data": data, "metric": "accuracy"}


if __name__ == "__main__":
    main()
