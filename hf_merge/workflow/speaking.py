"""What a project of language models needs beside that of classifiers: what its tasks are asked."""

from collections.abc import Mapping, Sequence

from hf_merge.errors import ModelMismatch
from hf_merge.modeling.assembly import TaskModel
from hf_merge.modeling.prompts import Prompter
from hf_merge.recipe import TaskSpec
from hf_merge.searching.judging import Judge
from hf_merge.searching.rows import Rows
from hf_merge.searching.running import TaskRun
from hf_merge.storing.checkpoints import Checkpoint
from hf_merge.storing.language import find_speaker


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
