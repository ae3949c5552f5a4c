"""What a project of language models needs beside that of classifiers: its kind, and what its tasks are asked."""

from collections.abc import Mapping, Sequence

from hf_merge.errors import ModelMismatch, RecipeError
from hf_merge.modeling.assembly import TaskModel
from hf_merge.modeling.prompts import Prompter
from hf_merge.recipe import DataSpec, Recipe, TaskSpec
from hf_merge.searching.judging import Judge
from hf_merge.searching.running import TaskRun
from hf_merge.searching.tasks import Rows
from hf_merge.storing.checkpoints import Checkpoint
from hf_merge.storing.language import find_speaker


_READS = {"text": "reads text", "image": "reads images", "audio": "reads sounds", "language": "asks a language model"}
_Family = str  # what the rows of a task ask for: `text`, `image`, `audio` or `language`


def reads(data: DataSpec) -> _Family:
    """Returns what a task's data ask for: `image`, `audio` or `text` a classifier, `language` a language model."""
    if data.wording is not None:
        return "language"
    return next(column for column in ("image", "audio", "text") if getattr(data, column) is not None)


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


def asked_run(task: TaskSpec, model: TaskModel, rows: Rows, prompter: Prompter) -> TaskRun:
    """Returns a task of a language model ready to be evaluated.

    Args:
        task: The task as the recipe names it.
        model: Its model.
        rows: Its rows.
        prompter: Makes batches of them.

    Raises:
        RecipeError: An answer cannot be told from another, or leaves no room for a prompt.
        DatasetError: A prompt gives no tokens.
    """
    wording = task.data.wording
    if wording is None:
        raise RuntimeError(f"Task '{task.name}' asks nothing of a language model.")
    pairs: Sequence[str | None] = rows.pairs or (None,) * len(rows)
    prompts = [wording.prompt(text, pair) for text, pair in zip(rows.texts or (), pairs, strict=True)]
    if wording.answers is not None:
        batches = prompter.option_batches(prompts, wording.answers)
        return TaskRun(task.name, model, batches, rows.labels, task.metric)
    tokens = wording.max_new_tokens or 0
    judge = Judge(prompter.decode, rows.targets or (), tokens)
    return TaskRun(task.name, model, prompter.prompt_batches(prompts, tokens), rows.labels, task.metric, judge)
