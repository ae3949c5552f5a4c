"""Splits: where a task's data come from, and which of their splits serves for what."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

from hf_merge.errors import DatasetError, nearest
from hf_merge.recipe import TaskSpec


BUILDERS = ("parquet", "csv", "json")
ROLES = ("test", "validation", "train")


def check_source(spec: TaskSpec) -> None:
    """Refuses a source that cannot be read, before `datasets` asks the Hub for it for half a minute.

    Raises:
        DatasetError: A file or folder is missing, or `data.path` and `data.data_files` do not fit each other.
    """
    path, files = spec.data.path, spec.data.data_files or {}
    place = f"Task '{spec.name}'"
    if path in BUILDERS:
        if not files:
            raise DatasetError(f"{place}: path '{path}' reads files; name them, as in data_files: {{test: FILE}}.")
        for split, file in files.items():
            if not _may_be_there(file):
                raise DatasetError(
                    f"{place}: the {split} file {file} does not exist (seen from {Path.cwd()}). "
                    f"Mend data_files.{split}."
                )
        return
    remedy = "Write path: parquet (or csv, json) and data_files: {test: FILE}, or a Hub id."
    if Path(path).is_file():
        raise DatasetError(f"{place}: path '{path}' is a file. {remedy}")
    if not Path(path).exists() and (path.startswith((".", "/", "~")) or path.count("/") > 1):
        raise DatasetError(f"{place}: there is no folder '{path}'. {remedy}")
    if "/" not in path and files:
        raise DatasetError(f"{place}: '{path}' does not read data_files.{nearest(path, BUILDERS)}")


def splits_by_role(spec: TaskSpec, available: Collection[str], roles: Collection[str] = ROLES) -> dict[str, str]:
    """Returns the split of each role: `test` always, `validation` and `train` where there are such splits.

    `data.splits` renames; a split that it gives to one role is no longer there for the role of its own name.

    Args:
        spec: The task as the recipe names it.
        available: The splits that there are.
        roles: Those that are wanted, `test` among them.

    Raises:
        DatasetError: The test split or a renamed one is not there, one has two roles, or there is nothing but `test`.
    """
    renamed = {str(role): split for role, split in spec.data.splits.items()}
    names = {role: renamed.get(role, role) for role in ROLES}
    found = {}
    for role in roles:
        name = names[role]
        elsewhere = [other for other, given in renamed.items() if given == name and other != role]
        if name in available and not elsewhere:
            found[role] = name
        elif role == "test" or role in renamed:
            why = f"data.splits gives it to '{elsewhere[0]}'" if elsewhere else "it is not there"
            raise DatasetError(
                f"Task '{spec.name}': no split '{name}' for the role '{role}': {why}. Name another, as in "
                f"data.splits: {{{role}: SPLIT}}.{nearest(name, available)}"
            )
    if len(found) == 1 < len(roles):
        raise DatasetError(
            f"Task '{spec.name}': split '{found['test']}' is there to test with, but neither a 'validation' nor a "
            "'train' split to search with. Name one under data.data_files or data.splits. "
            f"Known: {', '.join(sorted(available))}."
        )
    return found


def data_origin(spec: TaskSpec) -> dict[str, Any]:
    """Returns what tells a task's data from other data: what the recipe says, and every local file as it is now.

    Of a file its size and the time of its last change count, in bytes and nanoseconds, as of what `make` looks at.
    """
    folder, named = Path(spec.data.path), (spec.data.data_files or {}).values()
    files = [path for path in folder.rglob("*") if path.is_file()] if folder.is_dir() else []
    files += [path for name in map(Path, named) for path in name.parent.glob(name.name)]  # a name may be a pattern
    stamps = sorted((str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in files)
    return spec.data.model_dump(mode="json") | {"files": [list(stamp) for stamp in stamps]}


def _may_be_there(file: str) -> bool:
    """Returns whether a data file exists, or is one that only `datasets` can look for: an address or a pattern."""
    return "://" in file or any(sign in file for sign in "*?[") or Path(file).is_file()
