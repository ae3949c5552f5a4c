"""Fine-tunes one base model on several tasks, so that the other examples have something to merge.

A plain PyTorch loop, small on purpose: AdamW, linear warm-up and decay, bfloat16 autocast, batches of rows of similar
length. Of each task the epoch that did best on its validation rows is kept, in float32, as a transformers folder.
"""

import math
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet
import torch
from sklearn.metrics import matthews_corrcoef
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.lr_scheduler import LambdaLR
from tqdm import tqdm
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)


FINISHED_FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
BATCHES_PER_CHUNK = 16


@dataclass(frozen=True)
class FineTuning:
    """How to fine-tune.

    Attributes:
        epochs: Passes over the training rows, at least 1.
        learning_rate: Peak of the schedule, after the warm-up.
        batch_size: Rows of a step.
        max_length: Tokens of a row; what is longer is cut, the longer text of a pair first.
        seed: Fixes the new head, the order of the rows and dropout.
        weight_decay: AdamW's decay, for matrices only.
        warmup: Share of the steps, in [0, 1), in which the learning rate rises.
    """

    epochs: int = 4
    learning_rate: float = 2e-4
    batch_size: int = 32
    max_length: int = 64
    seed: int = 0
    weight_decay: float = 0.01
    warmup: float = 0.1


@dataclass(frozen=True)
class TrainingTask:
    """One task's rows, as two Parquet files, and the columns to use.

    Attributes:
        name: Names the folder of the fine-tuned model.
        train: Rows to learn from.
        validation: Rows to choose the best epoch by.
        text: Column of the (first) text.
        text_pair: Column of the second text; None for tasks of one text.
        label: Column of integer labels, or of numbers for regression.
        label_names: Names in the order of the labels; None for regression.
    """

    name: str
    train: Path
    validation: Path
    text: str = "text"
    text_pair: str | None = None
    label: str = "label"
    label_names: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Rows:
    """Tokenised rows: what the model takes, not yet padded, and the labels.

    Attributes:
        inputs: For each row its `input_ids`, `attention_mask` and whatever else the tokenizer yields.
        labels: `[rows]`, int64 or, for regression, float32.
    """

    inputs: list[dict[str, list[int]]]
    labels: Tensor


def fine_tune_all(
    base: Path, tasks: Sequence[TrainingTask], out: Path, settings: Mapping[str, FineTuning]
) -> list[Path]:
    """Fine-tunes a base on each task into `out/<task name>`; folders already finished are left as they are.

    Args:
        base: Folder of the pre-trained model and its tokenizer.
        tasks: What to learn.
        out: Folder of the results; made if need be.
        settings: For each task name how to fine-tune.

    Returns:
        The folders, in the order of the tasks.
    """
    folders = [out / task.name for task in tasks]
    for task, folder in zip(tasks, folders, strict=True):
        if not is_finished(folder):
            fine_tune(base, task, folder, settings[task.name])
    return folders


def is_finished(folder: Path) -> bool:
    """Whether a folder holds a whole fine-tuned model, whatever the settings it was made with."""
    return all((folder / name).is_file() for name in FINISHED_FILES)


def fine_tune(base: Path, task: TrainingTask, out: Path, settings: FineTuning) -> None:
    """Fine-tunes a base on one task; `out` appears only when all of it is written.

    Args:
        base: Folder of the pre-trained model and its tokenizer.
        task: What to learn.
        out: Folder to make; its parents are made if need be.
        settings: How to fine-tune.

    Raises:
        FileExistsError: `out` exists and holds files.
    """
    if out.exists() and any(out.iterdir()):
        raise FileExistsError(f"{out} is not empty: name another folder, or remove it to train {task.name} again")
    with torch.random.fork_rng():
        torch.manual_seed(settings.seed)
        tokenizer = AutoTokenizer.from_pretrained(base)
        train = read_rows(task.train, task, tokenizer, settings.max_length)
        validation = read_rows(task.validation, task, tokenizer, settings.max_length)
        model = new_model(base, task)
        train_model(model, tokenizer, train, validation, settings, task.name)
    save(model, base, out)


def new_model(base: Path, task: TrainingTask) -> PreTrainedModel:
    """Returns the base with a new head for the task, in float32, on the accelerator if there is one."""
    if task.label_names is None:
        labels: dict[str, Any] = {"num_labels": 1, "problem_type": "regression"}
    else:
        labels = {
            "id2label": dict(enumerate(task.label_names)),
            "label2id": {name: number for number, name in enumerate(task.label_names)},
            "problem_type": "single_label_classification",
        }
    config = AutoConfig.from_pretrained(base, **labels)
    model: PreTrainedModel = AutoModelForSequenceClassification.from_pretrained(
        base, config=config, dtype=torch.float32
    )
    model.to("cuda" if torch.cuda.is_available() else "cpu")  # type: ignore[arg-type]
    return model


def read_rows(file: Path, task: TrainingTask, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Rows:
    """Reads and tokenises the rows of one Parquet file."""
    columns = [task.text, task.label, *([task.text_pair] if task.text_pair else [])]
    table = pyarrow.parquet.read_table(file, columns=columns).to_pydict()
    pairs = table[task.text_pair] if task.text_pair else None
    encoded = tokenizer(table[task.text], pairs, truncation=True, max_length=max_length, padding=False)
    inputs = [{key: encoded[key][row] for key in encoded} for row in range(len(table[task.text]))]
    dtype = torch.float32 if task.label_names is None else torch.int64
    return Rows(inputs, torch.tensor(table[task.label], dtype=dtype))


def train_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    train: Rows,
    validation: Rows,
    settings: FineTuning,
    title: str,
) -> None:
    """Trains a model in place and leaves it with the weights of its best epoch, by `quality` on validation."""
    steps = settings.epochs * math.ceil(len(train.inputs) / settings.batch_size)
    optimizer = torch.optim.AdamW(
        parameter_groups(model, settings.weight_decay), lr=settings.learning_rate, fused=True
    )
    schedule = LambdaLR(optimizer, partial(rate, int(settings.warmup * steps), steps))
    generator = torch.Generator().manual_seed(settings.seed)
    best, best_weights = -math.inf, model.state_dict()
    with tqdm(total=steps, desc=title, unit="step") as progress:
        for _ in range(settings.epochs):
            model.train()
            for batch in shuffled_batches(train, settings.batch_size, generator):
                optimizer.zero_grad()
                logits = forward(model, tokenizer, train, batch)
                torch.autograd.backward(loss(logits, train.labels[batch].to(model.device)))
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                schedule.step()
                progress.update()
            reached = quality(predict(model, tokenizer, validation), validation.labels)
            progress.set_postfix(validation=f"{reached:.4f}")
            if reached > best:
                best, best_weights = reached, {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.load_state_dict(best_weights)


def rate(warmup_steps: int, steps: int, step: int) -> float:
    """Returns the share of the peak learning rate at a step: it rises evenly in the warm-up, then falls to 0."""
    if step < warmup_steps:
        return step / warmup_steps
    return (steps - step) / max(1, steps - warmup_steps)


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Splits the parameters for AdamW: only matrices decay, biases and normalisation do not."""
    parameters = list(model.parameters())
    return [
        {"params": [tensor for tensor in parameters if tensor.ndim > 1], "weight_decay": weight_decay},
        {"params": [tensor for tensor in parameters if tensor.ndim <= 1], "weight_decay": 0.0},
    ]


def shuffled_batches(rows: Rows, batch_size: int, generator: torch.Generator) -> Iterator[list[int]]:
    """Yields row numbers in batches of random order and similar length: rows are sorted within shuffled chunks."""
    order: list[int] = torch.randperm(len(rows.inputs), generator=generator).tolist()
    chunk = batch_size * BATCHES_PER_CHUNK
    batches: list[list[int]] = []
    for start in range(0, len(order), chunk):
        by_length = sorted(order[start : start + chunk], key=lambda row: len(rows.inputs[row]["input_ids"]))
        batches += [by_length[first : first + batch_size] for first in range(0, len(by_length), batch_size)]
    for number in torch.randperm(len(batches), generator=generator).tolist():
        yield batches[number]


def forward(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Rows, batch: Sequence[int], autocast: bool = True
) -> Tensor:
    """Runs the model on some of the rows; returns logits `[batch, labels] float32`."""
    inputs = tokenizer.pad([rows.inputs[row] for row in batch], return_tensors="pt").to(model.device)
    with torch.autocast(model.device.type, dtype=torch.bfloat16, enabled=autocast):
        logits: Tensor = model(**inputs).logits
    return logits.float()


def loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean squared error for float labels, else cross entropy."""
    if labels.is_floating_point():
        return functional.mse_loss(logits.squeeze(-1), labels)
    return functional.cross_entropy(logits, labels)


def predict(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Rows,
    batch_size: int = 64,
    autocast: bool = True,
) -> Tensor:
    """Returns the logits `[rows, labels] float32` of all rows, in their own order, on the CPU."""
    model.train(False)
    order = sorted(range(len(rows.inputs)), key=lambda row: len(rows.inputs[row]["input_ids"]))
    with torch.inference_mode():
        found = [
            forward(model, tokenizer, rows, order[start : start + batch_size], autocast).cpu()
            for start in range(0, len(order), batch_size)
        ]
    logits = torch.cat(found)
    logits[order] = logits.clone()
    return logits


def quality(logits: Tensor, labels: Tensor) -> float:
    """Returns what decides between epochs: the correlation of answers and labels, 0 where all answers are alike.

    For classes that is Matthews': accuracy would take to a model that always answers the commonest label.
    """
    if labels.is_floating_point():
        return float(torch.corrcoef(torch.stack([logits.squeeze(-1), labels]))[0, 1].nan_to_num())
    return float(matthews_corrcoef(labels, logits.argmax(dim=-1)))


def save(model: PreTrainedModel, base: Path, out: Path) -> None:
    """Writes model and tokenizer into a sibling of `out`, then renames: an interrupted run leaves no half folder."""
    out.parent.mkdir(parents=True, exist_ok=True)
    unfinished = out.with_name(f".{out.name}.{os.getpid()}.partial")
    try:
        model.save_pretrained(unfinished)
        # The tokenizer in use has been told to cut at max_length: a fresh one keeps the base's own limits.
        AutoTokenizer.from_pretrained(base).save_pretrained(unfinished)
        unfinished.replace(out)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
