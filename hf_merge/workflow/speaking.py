"""What a project of language models needs beside that of classifiers: its kind, its prompts, tokenizers that agree."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_merge.errors import (
    CheckpointDamaged,
    ModelMismatch,
    RecipeError,
    UntrustedContentError,
)
from hf_merge.modeling.assembly import Kind, TaskModel
from hf_merge.modeling.inputs import load_tokenizer
from hf_merge.modeling.prompts import Prompter
from hf_merge.modeling.vocabularies import find_difference, has_tokenizer, same_files
from hf_merge.recipe import DataSpec, Recipe, TaskSpec
from hf_merge.searching.judging import Judge
from hf_merge.searching.running import TaskRun
from hf_merge.searching.tasks import Rows
from hf_merge.storing.checkpoints import Checkpoint
from hf_merge.storing.language import find_speaker


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)
_READS = {"text": "classifies text", "image": "classifies images", "language": "is asked of a language model"}
_Family = str  # what the rows of a task ask for: `text`, `image` or `language`


def reads(data: DataSpec) -> _Family:
    """Returns what a task's data ask for: `image` or `text` a classifier, `language` a language model."""
    if data.wording is not None:
        return "language"
    return "text" if data.image is None else "image"


def require_one_kind(recipe: Recipe) -> _Family:
    """Returns what all tasks of a recipe ask for.

    Raises:
        RecipeError: Two tasks ask for different kinds of models; the message names both.
    """
    first = recipe.tasks[0]
    wanted = reads(first.data)
    for task in recipe.tasks:
        if reads(task.data) != wanted:
            raise RecipeError(
                f"Task '{first.name}' {_READS[wanted]} and task '{task.name}' {_READS[reads(task.data)]}; one base "
                "serves one kind. Write a recipe for each (data.answers or data.target make a task one of a language "
                "model)."
            )
    return wanted


def refuse_speakers(tuned: Mapping[str, Checkpoint]) -> None:
    """Refuses language models where the recipe asks for classifiers.

    Raises:
        ModelMismatch: The message names the first.
    """
    task = find_speaker(tuned)
    if task is not None:
        raise ModelMismatch(
            f"Task '{task}' ({tuned[task].source}) was saved as {tuned[task].config['architectures'][0]}, a language "
            "model without a classification head. Say what it is to answer: data.answers (options in label order) or "
            "data.target (a column of texts), or name a fine-tune for classification."
        )


def require_same_tokenizer(
    reader: Path, tokenizer: "PreTrainedTokenizerBase", checkpoints: Sequence[Checkpoint]
) -> None:
    """Refuses fine-tunes that were trained with another tokenizer than the one that rows are read with.

    A checkpoint without a tokenizer passes, and so does one whose tokenizer cannot be opened, with a warning.

    Raises:
        ModelMismatch: A checkpoint's tokenizer gives other tokens; the message says where.
    """
    for checkpoint in checkpoints:
        folder = checkpoint.folder
        if folder == reader or not has_tokenizer(folder) or same_files(reader, folder):
            continue
        try:
            other = load_tokenizer(folder)
        except (CheckpointDamaged, UntrustedContentError) as error:
            logger.warning("The tokenizer of %s is not compared with the one in use: %s", checkpoint.source, error)
            continue
        difference = find_difference(tokenizer, other)
        if difference is not None:
            raise ModelMismatch(
                f"The tokenizers in {reader} (there) and {folder} (here) do not agree: {difference}. Fine-tunes "
                "are merged with one tokenizer for all; if this one was not trained with, remove it from its folder."
            )


def asked_run(
    task: TaskSpec,
    model: TaskModel,
    rows: Rows,
    tokenizer: "PreTrainedTokenizerBase",
    config: Mapping[str, Any],
    kind: Kind,
    batching: tuple[int, int | None],
) -> TaskRun:
    """Returns a task of a language model ready to be evaluated.

    Args:
        task: The task as the recipe names it.
        model: Its model.
        rows: Its rows.
        tokenizer: What they are read with.
        config: The base's `config.json`.
        kind: `causal` or `seq2seq`.
        batching: The most sequences per batch, and the most tokens per prompt.

    Raises:
        RecipeError: An answer cannot be told from another, or leaves no room for a prompt.
        DatasetError: A prompt gives no tokens.
    """
    wording = task.data.wording
    if wording is None:
        raise RuntimeError(f"Task '{task.name}' asks nothing of a language model.")
    prompter = Prompter(tokenizer, kind, config, batch_size=batching[0], max_length=batching[1])
    pairs: Sequence[str | None] = rows.pairs or (None,) * len(rows)
    prompts = [wording.prompt(text, pair) for text, pair in zip(rows.texts or (), pairs, strict=True)]
    if wording.answers is not None:
        batches = prompter.option_batches(prompts, wording.answers)
        return TaskRun(task.name, model, batches, rows.labels, task.metric)
    tokens = wording.max_new_tokens or 0
    judge = Judge(tokenizer, rows.targets or (), tokens)
    return TaskRun(task.name, model, prompter.prompt_batches(prompts, tokens), rows.labels, task.metric, judge)
