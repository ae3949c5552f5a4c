"""Sources that were opened, aligned and pinned: what the tasks' heads answer, and of what kind the models are."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from hf_merge.errors import CheckpointDamaged, HubError, RecipeError, UntrustedContentError
from hf_merge.modeling.assembly import CLASSIFIERS, Head, Kind, require_kind, used_names
from hf_merge.modeling.language import language_kind
from hf_merge.modeling.layouts import names_in_memory
from hf_merge.recipe import DataSpec, Recipe, TaskSpec
from hf_merge.searching.splits import BUILDERS, check_source
from hf_merge.storing import hub
from hf_merge.storing.adapted import align_adapted
from hf_merge.storing.adapters import Adapter
from hf_merge.storing.checkpoints import Checkpoint
from hf_merge.storing.families import Family, FineTune, align
from hf_merge.storing.json_fields import Field
from hf_merge.storing.language import LanguageCheckpoint, complete_base
from hf_merge.workflow.speaking import refuse_speakers


def aligned(base: Checkpoint, tuned: Mapping[str, Checkpoint | Adapter], kind: Kind) -> Family:
    """Returns the base and what was trained on it, aligned by name.

    Raises:
        ModelMismatch: They cannot be merged; every clash is listed.
        CheckpointDamaged: The adapter of a classifier holds no head.
    """
    whole = {task: held for task, held in tuned.items() if isinstance(held, Checkpoint)}
    if len(whole) == len(tuned):
        return align(base, whole)
    adapters = {task: held for task, held in tuned.items() if isinstance(held, Adapter)}
    headless = next((task for task, held in adapters.items() if not held.whole()), None)
    if headless is not None and kind in CLASSIFIERS:
        raise CheckpointDamaged(
            f"Task '{headless}' ({tuned[headless].source}): the adapter holds no head, which a classifier needs. "
            "Train it with task_type SEQ_CLS, or name the head in modules_to_save."
        )
    names = list(base.backbone().values())
    used = used_names(base.config, kind, names, base.trunk) if kind in CLASSIFIERS else names
    return align_adapted(base, tuned, used, names_in_memory(base.config))


def head_of(task: TaskSpec, tuned: FineTune) -> Head:
    """Returns what a task's head answers, its labels named by the recipe where its checkpoint does not.

    Raises:
        RecipeError: Recipe and checkpoint name different labels, or another number of them, or the recipe names one
            that no member may hold.
        CheckpointDamaged: The checkpoint declares no head.
        UnsafeName: A label of the checkpoint holds what no text of a member may.
        LimitExceeded: A label of the checkpoint is too long, or there are too many.
    """
    if task.data.wording is not None:
        return Head.worded(task.data.wording)
    try:
        head = Head.of(tuned.config)
    except (CheckpointDamaged, UntrustedContentError) as error:
        raise type(error)(f"Task '{task.name}' ({task.source}): {error}") from error
    if task.labels is None or task.labels == head.labels:
        return head
    if head.labels is not None or len(task.labels) != head.num_labels:
        found = f"{head.num_labels} outputs" if head.labels is None else f"the labels {', '.join(head.labels)}"
        raise RecipeError(
            f"Task '{task.name}': the recipe names the labels {', '.join(task.labels)}, and {task.source} has "
            f"{found}. Leave `labels` out, or name one for each output, in their order."
        )
    try:
        held = [Field(label, "The recipe", f"tasks.{task.name}.labels") for label in task.labels]
        return replace(head, labels=tuple(label.text() for label in held))
    except UntrustedContentError as error:
        raise RecipeError(f"{error} Name the label otherwise.") from error


def pinned_recipe(
    recipe: Recipe, base: Checkpoint, tuned: Mapping[str, Checkpoint | Adapter], access: hub.Access
) -> Recipe:
    """Returns the recipe with every Hub source pinned to the commit that was pulled, every local path absolute."""
    tasks = tuple(
        task.model_copy(
            update={
                task.source_key: _address(tuned[task.name]),
                "revision": tuned[task.name].revision,
                "data": _located(task, access),
            }
        )
        for task in recipe.tasks
    )
    pinned = recipe.base.model_copy(update={"model": _address(base), "revision": base.revision})
    return recipe.model_copy(update={"base": pinned, "tasks": tasks})


def _address(checkpoint: Checkpoint | Adapter) -> str:
    return checkpoint.source if checkpoint.revision is not None else str(checkpoint.folder.absolute())


def _located(task: TaskSpec, access: hub.Access) -> DataSpec:
    """Returns where rows are, a data set on the Hub at one commit, local files by absolute path."""
    data = task.data
    check_source(task)
    if data.path not in BUILDERS and not Path(data.path).exists():
        return data.model_copy(update={"revision": _pinned_dataset(data, access)})
    # From where `datasets` sees the files.
    folder = Path.cwd() if data.path in BUILDERS else Path(data.path).absolute()
    files = {split: file if "://" in file else str(folder / file) for split, file in (data.data_files or {}).items()}
    path = data.path if data.path in BUILDERS else str(folder)
    return data.model_copy(update={"path": path, "data_files": files or None})


def _pinned_dataset(data: DataSpec, access: hub.Access) -> str | None:
    try:
        return hub.pin_dataset(data.path, data.revision, access)
    except HubError:
        if access.offline:
            return data.revision  # `datasets` keeps what it has read in a cache of its own
        raise


def settled_kind(reads: str, base: Checkpoint, tuned: Mapping[str, Checkpoint | Adapter]) -> Kind:
    """Returns the kind of a family's models, after checking that the checkpoints are of it.

    Raises:
        ModelMismatch: A checkpoint is of another kind.
        UnsupportedArchitecture: transformers has no such class for the model type.
    """
    if isinstance(base, LanguageCheckpoint):
        complete_base(base, {task: item for task, item in tuned.items() if isinstance(item, LanguageCheckpoint)})
        kind = language_kind(base.config)
    else:
        refuse_speakers({task: item for task, item in tuned.items() if isinstance(item, Checkpoint)})
        kind = next(kind for kind in CLASSIFIERS if kind == reads)
    require_kind(base.config, kind)
    return kind
