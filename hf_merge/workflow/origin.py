"""Where a family comes from, as everyone may be told: sources, licences, data, the recipe without local paths."""

from pathlib import Path
from urllib.parse import urlsplit

from hf_merge.errors import HubError, UntrustedContentError
from hf_merge.recipe import DataSpec, Recipe
from hf_merge.searching.splits import BUILDERS
from hf_merge.storing import hub
from hf_merge.storing.card_head import read_card, recorded_licence
from hf_merge.storing.member_files import CARD_FILE
from hf_merge.storing.provenance import Origin, Source


_LOCAL_NOTE = "# Files and folders of the machine that ran the search stand here by their last names alone.\n"


def read_origin(recipe: Recipe, access: hub.Access) -> Origin:
    """Returns what the cards of a run say of its sources; of a source's files only its card is fetched.

    Args:
        recipe: The recipe of the run, its Hub sources pinned.
        access: How to reach the Hub.

    Raises:
        HubError: The Hub no longer shows a source.
    """
    base = read_source(recipe.base.model, recipe.base.revision, access)
    tasks = {task.name: read_source(task.source, task.revision, access) for task in recipe.tasks}
    datasets = {task.data.path: None for task in recipe.tasks if _is_on_the_hub(task.data)}
    return Origin(base, tasks, tuple(datasets), published_recipe(recipe))


def published_recipe(recipe: Recipe) -> str:
    """Returns the recipe as YAML in which local paths are cut to their last names.

    Where a machine keeps its files is nobody's business, and of no use elsewhere.
    """
    base = recipe.base.model_copy(update={"model": _told(recipe.base.model, recipe.base.revision)})
    tasks = tuple(
        task.model_copy(update={task.source_key: _told(task.source, task.revision), "data": _shown_data(task.data)})
        for task in recipe.tasks
    )
    told = recipe.model_copy(update={"base": base, "tasks": tasks})
    return (_LOCAL_NOTE if told != recipe else "") + told.dump()


def shown(source: str, revision: str | None) -> str:
    """Returns how a source is called in what is published: a Hub id as it is, a local folder by its name."""
    return source if revision is not None else Path(source).name


def _told(source: str, revision: str | None) -> str:
    """Returns how a recipe that is published calls a source: of a local folder what no one takes for a Hub id."""
    return source if revision is not None else f"./{shown(source, revision)}"


def read_source(name: str, revision: str | None, access: hub.Access) -> Source:
    """Returns what a card says of a checkpoint; of one on the Hub only its own card is fetched.

    Raises:
        HubError: The Hub no longer shows it.
    """
    if revision is None:
        return Source(shown(name, None), None, None, read_licence(Path(name)))
    return Source(name, name, revision, _licence_on_the_hub(name, revision, access))


def _licence_on_the_hub(name: str, revision: str, access: hub.Access) -> str | None:
    """Returns the licence that the card of a repo names; offline, a card that was never fetched says nothing."""
    try:
        return read_licence(hub.Repo(name, revision, access).pull((CARD_FILE,)))
    except HubError:
        if access.offline:
            return None
        raise


def read_licence(folder: Path) -> str | None:
    """Returns the licence that the card in a folder names, None where there is no card, or none that names one."""
    text = read_card(folder)
    try:
        return None if text is None else recorded_licence(text)
    except UntrustedContentError:
        return None


def _is_on_the_hub(data: DataSpec) -> bool:
    """Returns whether rows of a pinned recipe, whose local folders are absolute, come from a data set on the Hub."""
    return data.path not in BUILDERS and "://" not in data.path and not Path(data.path).is_absolute()


def _shown_data(data: DataSpec) -> DataSpec:
    on_the_hub = _is_on_the_hub(data)
    if on_the_hub and not any("://" in file for file in (data.data_files or {}).values()):
        return data
    files = {split: _shown_file(file) for split, file in (data.data_files or {}).items()}
    path = data.path if on_the_hub or data.path in BUILDERS else f"./{_shown_file(data.path).rpartition('/')[2]}"
    return data.model_copy(update={"path": path, "data_files": files or None})


def _shown_file(file: str) -> str:
    """Returns the last two names of a path; of an address the last alone, as it may hold a password or a signature."""
    if "://" in file:
        return urlsplit(file).path.rpartition("/")[2]
    return "/".join(Path(file).parts[-2:]).lstrip("/")
