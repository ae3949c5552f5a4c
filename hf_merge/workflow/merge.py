"""`hf-merge merge`: one static merge, as an ordinary model folder that transformers loads.

Tensors stream from the checkpoints' files through the merge method into the file of the result; no model is in memory,
and nothing of transformers runs, but for methods that must look into the fine-tunes while they run.
"""

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from hf_merge.errors import InputError, RecipeError, nearest
from hf_merge.merging import methods
from hf_merge.merging.codecs import CodecSpec
from hf_merge.merging.experts import merged_tensors
from hf_merge.merging.group_reader import GatheredSource, GroupReader
from hf_merge.merging.methods import MethodSpec
from hf_merge.merging.settings import Setting
from hf_merge.recipe import Recipe, settings_of
from hf_merge.recipe.kinds import require_one_kind
from hf_merge.storing import hub
from hf_merge.storing.card_merged import merged_card
from hf_merge.storing.checkpoints import Checkpoint
from hf_merge.storing.families import Family, FineTuned, align
from hf_merge.storing.language import LanguageCheckpoint, complete_base
from hf_merge.storing.member_files import CARD_FILE
from hf_merge.storing.model_folder import ModelFolder, require_free
from hf_merge.storing.provenance import Origin, Source
from hf_merge.workflow.bars import waiting
from hf_merge.workflow.origin import read_source
from hf_merge.workflow.sources import Opening, components_of, require_cut


@dataclass(frozen=True)
class Merged:
    """A static merge that was written.

    Attributes:
        folder: Where it lies.
        tasks: The tasks merged.
        method: The merge method's name and settings.
        parameters: How many parameters were merged.
        kept: How many tensors were taken over from the base, or from the task whose head it has.
        head: The task whose head it has, or None where it has the base's.
    """

    folder: Path
    tasks: tuple[str, ...]
    method: Mapping[str, Setting]
    parameters: int
    kept: int
    head: str | None


def merge(
    recipe: Recipe,
    out: Path,
    *,
    method: str | None = None,
    settings: Mapping[str, object] | None = None,
    head: str | None = None,
    gathered: Path | None = None,
    progress: bool = True,
    access: hub.Access = hub.AS_USUAL,
) -> Merged:
    """Merges all tasks of a recipe into one model and writes it as an ordinary folder.

    What is no part of the backbone that all share (the heads) is the base's, or with `head` that of a task. The tasks'
    data are read only for a method that must know more than the weights (fisher, regmean), and never their labels.

    Args:
        recipe: What to merge.
        out: The folder to write; new or empty.
        method: The merge method; by default the recipe's.
        settings: Hyperparameters in place of the recipe's, or where `method` is another one than its, of the defaults.
        head: A task whose head and configuration the model is to have.
        gathered: A folder that keeps what such a method gathered, for the next merge; None keeps nothing.
        progress: Show progress on stderr.
        access: How to reach the Hub, where the sources are there.

    Raises:
        RecipeError: The method, a setting or the task of `head` is unknown or impossible.
        InputError: The checkpoints cannot be merged, or tasks are adapters.
        DatasetError: The method needs rows, and a task's data lack them.
        RunFolderError: `out` holds something.
        ResourceError: The disk refused.
    """
    asked = _Request(recipe, _chosen(recipe, method, settings or {}), head, progress, access)
    _check(asked)
    require_free(out)
    with ExitStack() as stack:
        if methods.get(asked.spec.name).needs is not None:
            gathered = gathered or Path(stack.enter_context(TemporaryDirectory(prefix="hf-merge-")))
            asked = replace(asked, gathered=_gather(asked, gathered))
        return _merge(asked, out)


@dataclass(frozen=True)
class _Request:
    """What `merge` was asked for, and what was gathered for it."""

    recipe: Recipe
    spec: MethodSpec
    head: str | None
    progress: bool
    access: hub.Access
    gathered: Mapping[str, GatheredSource] = field(default_factory=dict)


def _check(asked: _Request) -> None:
    """Checks what can be checked before anything is opened."""
    require_cut(asked.recipe.merge)
    tasks = [task.name for task in asked.recipe.tasks]
    if asked.head is not None and asked.head not in tasks:
        raise RecipeError(f"No task is called '{asked.head}'.{nearest(asked.head, tasks)}")
    adapter = next((task for task in asked.recipe.tasks if task.adapter is not None), None)
    if adapter is not None:
        raise InputError(
            f"Task '{adapter.name}' is an adapter ({adapter.adapter}); a static merge is written as a whole model. "
            "Fold it into its base first (peft's merge_and_unload, then save_pretrained) and name that folder as "
            "`model`; or search: hf-merge search keeps adapters as adapters."
        )


def _gather(asked: _Request, folder: Path) -> Mapping[str, GatheredSource]:
    """Returns what the method must know beside the weights."""
    # These load transformers, which a merge of weights alone does without.
    from hf_merge.workflow.gathering import gathered
    from hf_merge.workflow.project import open_project

    with open_project(asked.recipe, access=asked.access) as project:
        return gathered(project, asked.spec, folder, progress=asked.progress)


def _merge(asked: _Request, out: Path) -> Merged:
    """Opens the checkpoints and writes the folder."""
    recipe, head = asked.recipe, asked.head
    speaking = require_one_kind(recipe) == "language"
    with Opening(False, asked.access, LanguageCheckpoint if speaking else Checkpoint) as opening:
        base = opening.open("base", recipe.base.model, recipe.base.revision)
        tuned = {task.name: opening.open(f"task {task.name}", task.source, task.revision) for task in recipe.tasks}
        if isinstance(base, LanguageCheckpoint):
            complete_base(base, {task: item for task, item in tuned.items() if isinstance(item, LanguageCheckpoint)})
        family = align(base, tuned)
        folders = [checkpoint.folder for checkpoint in (base, *tuned.values())]
        like = base if head is None else tuned[head]
        with ModelFolder(out, like, folders) as folder:
            kept = _write(folder, like, family, asked)
            folder.add_file(CARD_FILE, _card(out.resolve().name, family, asked))
        return Merged(out, tuple(tuned), asked.spec.as_json(), family.parameters, kept, head)


def _write(folder: ModelFolder, like: Checkpoint, family: Family, asked: _Request) -> int:
    """Writes every tensor, merged or taken over, and returns how many were taken over."""
    tasks, cut = tuple(family.tasks), asked.recipe.merge
    own = family.tasks[asked.head] if asked.head is not None else None
    names = own.names if isinstance(own, FineTuned) else {name: name for name in family.shapes}
    full, spec = CodecSpec.resolve("full"), asked.spec if len(tasks) > 1 else None
    with waiting(asked.progress, f"merging by {asked.spec.name}", family.parameters, "parameter") as bar:
        for component in components_of(family, cut):
            reader = GroupReader(tasks, full, family.shapes, family.origin, family.tasks, asked.gathered)
            for name, values in merged_tensors(tasks, spec, component, reader):
                folder.write(names[name], values)
                bar.update(values.numel())
    others = set(like.specs) - {names[name] for name in family.shapes}
    for name in sorted(others):
        folder.copy(name)
    return len(others)


def _chosen(recipe: Recipe, method: str | None, settings: Mapping[str, object]) -> MethodSpec:
    """Returns the merge method that is asked for; the recipe's settings hold for the recipe's method alone."""
    name, given = settings_of(recipe.merge.methods[0])
    if method is not None and method != name:
        name, given = method, {}
    return MethodSpec.resolve(name, {**given, **settings})


def _card(title: str, family: Family, asked: _Request) -> bytes:
    opened = {name: tuned.source for name, tuned in family.tasks.items()}
    tasks: dict[str, Source] = {
        name: read_source(source.source, source.revision, asked.access) for name, source in opened.items()
    }
    origin = Origin(read_source(family.base.source, family.base.revision, asked.access), tasks, (), "")
    publication, granularity = methods.get(asked.spec.name).source, asked.recipe.merge.granularity
    return merged_card(title, origin, asked.spec.as_json(), publication, granularity, asked.head).encode()
