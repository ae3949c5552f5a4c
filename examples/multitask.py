"""Trains one backbone on all tasks of a recipe at once, each with a head of its own: what merging tries to come near.

    python examples/multitask.py recipe.yaml --out multitask
    hf-merge compare recipe.yaml --multitask multitask

Every step takes a batch of one task; the batches of all tasks are shuffled together, so each counts by its rows.
Of all epochs the one with the best mean over the tasks' validation rows is kept. The result is an ordinary checkpoint
folder per task, all with the same backbone. Tasks are texts in local Parquet files, with a split for training and one
for validation.
"""

import argparse
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from finetune import (
    FineTuning,
    Rows,
    TrainingTask,
    forward,
    loss,
    new_model,
    parameter_groups,
    predict,
    quality,
    rate,
    read_rows,
    save,
    shuffled_batches,
)
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from tqdm import tqdm
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from hf_merge import Recipe
from hf_merge.recipe import TaskSpec


@dataclass(frozen=True, eq=False)
class Learner:
    """One task while it is learnt: its head on the backbone that all share, and its rows."""

    task: TrainingTask
    model: PreTrainedModel
    train: Rows
    validation: Rows


def main() -> None:
    """Reads the command line and trains."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--out", type=Path, required=True, help="the folder for one checkpoint per task")
    parser.add_argument("--epochs", type=int, default=FineTuning.epochs)
    parser.add_argument("--learning-rate", type=float, default=FineTuning.learning_rate)
    parser.add_argument("--max-length", type=int, default=FineTuning.max_length)
    parser.add_argument("--seed", type=int, default=FineTuning.seed)
    given = parser.parse_args()
    settings = FineTuning(given.epochs, given.learning_rate, max_length=given.max_length, seed=given.seed)
    train_together(Recipe.load(given.recipe), given.out, settings)


def train_together(recipe: Recipe, out: Path, settings: FineTuning) -> list[Path]:
    """Trains one backbone on all tasks of a recipe and returns the checkpoint folders, one per task.

    Args:
        recipe: The base, the tasks and their data; of the tasks' fine-tunes only the labels' names are read.
        out: Where the folders go; it must not hold anything.
        settings: How to train; an epoch passes the rows of all tasks.

    Raises:
        FileExistsError: `out` holds something.
    """
    if out.exists() and any(out.iterdir()):
        raise FileExistsError(f"{out} is not empty: name another folder")
    base = Path(recipe.base.model)
    with torch.random.fork_rng():
        torch.manual_seed(settings.seed)
        tokenizer = AutoTokenizer.from_pretrained(base)
        learners = _learners(base, [training_task(task) for task in recipe.tasks], tokenizer, settings)
        _train(learners, tokenizer, settings)
    for learner in learners:
        save(learner.model, base, out / learner.task.name)
    return [out / learner.task.name for learner in learners]


def training_task(task: TaskSpec) -> TrainingTask:
    """Returns a recipe's task as `finetune` takes it.

    Raises:
        SystemExit: It is no task of texts in two local Parquet files.
    """
    files, data = task.data.data_files or {}, task.data
    if data.text is None or data.label is None or not {"train", "validation"} <= files.keys():
        raise SystemExit(f"Task '{task.name}': give texts, labels, and data_files with 'train' and 'validation'.")
    config = json.loads((Path(task.source) / "config.json").read_text(encoding="utf-8"))
    names = config.get("id2label", {})
    labels = None if config.get("problem_type") == "regression" else tuple(names[str(i)] for i in range(len(names)))
    return TrainingTask(
        task.name, Path(files["train"]), Path(files["validation"]), data.text, data.text_pair, data.label, labels
    )


def _learners(
    base: Path, tasks: Sequence[TrainingTask], tokenizer: PreTrainedTokenizerBase, settings: FineTuning
) -> list[Learner]:
    """Returns every task with a head of its own; the first one's backbone serves all."""
    learners: list[Learner] = []
    for task in tasks:
        model = new_model(base, task)
        if learners:
            setattr(model, model.base_model_prefix, learners[0].model.base_model)
        rows = [read_rows(file, task, tokenizer, settings.max_length) for file in (task.train, task.validation)]
        learners.append(Learner(task, model, *rows))
    return learners


def _train(learners: Sequence[Learner], tokenizer: PreTrainedTokenizerBase, settings: FineTuning) -> None:
    """Trains all learners in place and leaves them with the weights of the best epoch."""
    whole = nn.ModuleList([learner.model for learner in learners])  # what is shared counts once among its parameters
    steps = settings.epochs * sum(math.ceil(len(each.train.inputs) / settings.batch_size) for each in learners)
    groups = parameter_groups(whole, settings.weight_decay)
    optimizer = torch.optim.AdamW(groups, lr=settings.learning_rate, fused=True)
    schedule = LambdaLR(optimizer, partial(rate, int(settings.warmup * steps), steps))
    generator = torch.Generator().manual_seed(settings.seed)
    best, best_weights = -math.inf, whole.state_dict()
    with tqdm(total=steps, desc="all tasks", unit="step") as progress:
        for _ in range(settings.epochs):
            whole.train()
            for learner, batch in _shuffled(learners, settings.batch_size, generator):
                optimizer.zero_grad(set_to_none=True)  # so that the other tasks' heads do not move
                logits = forward(learner.model, tokenizer, learner.train, batch)
                torch.autograd.backward(loss(logits, learner.train.labels[batch].to(logits.device)))
                torch.nn.utils.clip_grad_norm_(whole.parameters(), 1.0)
                optimizer.step()
                schedule.step()
                progress.update()
            reached = _mean_quality(learners, tokenizer)
            progress.set_postfix(validation=f"{reached:.4f}")
            if reached > best:
                best, best_weights = reached, {name: tensor.clone() for name, tensor in whole.state_dict().items()}
    whole.load_state_dict(best_weights)


def _shuffled(
    learners: Sequence[Learner], batch_size: int, generator: torch.Generator
) -> Iterator[tuple[Learner, list[int]]]:
    """Yields the batches of all tasks in one random order, each with its task."""
    batches = [
        (learner, batch) for learner in learners for batch in shuffled_batches(learner.train, batch_size, generator)
    ]
    for number in torch.randperm(len(batches), generator=generator).tolist():
        yield batches[number]


def _mean_quality(learners: Sequence[Learner], tokenizer: PreTrainedTokenizerBase) -> float:
    """Returns the mean over the tasks of what `finetune` chooses an epoch by."""
    found = [quality(predict(each.model, tokenizer, each.validation), each.validation.labels) for each in learners]
    return sum(found) / len(found)


if __name__ == "__main__":
    main()
