"""Splits: where a task's data come from, and which of their splits, or slices of these, serves for what."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Part:
    """A split, or a slice of one.

    Attributes:
        name: As a recipe writes it: `train`, or `train[:80%]`.
        split: The split.
        rows: Its rows, in their order.
    """

    name: str
    split: str
    rows: range

    def shared(self, other: "Part") -> range:
        """Returns the rows of the split that are in both."""
        if self.split != other.split:
            return range(0)
        return range(max(self.rows.start, other.rows.start), min(self.rows.stop, other.rows.stop))


def splits_by_role(spec: TaskSpec, sizes: Mapping[str, int], roles: Collection[str] = ROLES) -> dict[str, Part]:
    """Returns the rows of each role: `test` always, `validation` and `train` where there are such splits.

    `data.splits` renames; a split of which it gives rows to one role is no longer there for the role of its own name.

    Args:
        spec: The task as the recipe names it.
        sizes: The splits that there are, and the number of their rows.
        roles: Those that are wanted, `test` among them.

    Raises:
        DatasetError: The test split or a renamed one is not there, a slice cannot be read, two roles share rows, or
            there is nothing but `test`.
    """
    renamed = {str(role): _part(spec, str(role), name, sizes) for role, name in spec.data.splits.items()}
    found = {}
    for role in roles:
        part = renamed[role] if role in renamed else _part(spec, role, role, sizes)
        elsewhere = [
            (other, given)
            for other, given in renamed.items()
            if part is not None and given is not None and other != role and part.shared(given)
        ]
        if part is not None and not elsewhere:
            found[role] = part
        elif role == "test" or role in renamed:
            raise _fault(spec, role, part, elsewhere, sizes)
    if len(found) == 1 < len(roles):
        raise DatasetError(
            f"Task '{spec.name}': split '{found['test'].name}' is there to test with, but neither a 'validation' nor "
            "a 'train' split to search with. Name one under data.data_files or data.splits, where a slice will do. "
            f"Known: {', '.join(sorted(sizes))}."
        )
    return found


def _part(spec: TaskSpec, role: str, name: str, sizes: Mapping[str, int]) -> Part | None:
    """Returns the rows that a name stands for; None where there is no such split.

    Raises:
        DatasetError: What follows the split's name is no slice.
    """
    split, bracket, _ = name.partition("[")
    if split not in sizes:
        return None
    if not bracket:
        return Part(name, split, range(sizes[split]))
    from datasets import ReadInstruction

    try:
        read = ReadInstruction.from_spec(name).to_absolute(dict(sizes))
    except (ValueError, AssertionError):
        read = []
    if len(read) != 1:
        raise DatasetError(
            f"Task '{spec.name}': data.splits.{role} is '{name}', which is no slice. Write it as datasets do: "
            f'"{split}[:80%]", "{split}[80%:]" or "{split}[100:200]".'
        )
    return Part(name, split, range(read[0].from_, max(read[0].from_, read[0].to)))


def _fault(
    spec: TaskSpec, role: str, part: Part | None, elsewhere: Sequence[tuple[str, Part]], sizes: Mapping[str, int]
) -> DatasetError:
    """Returns the complaint that a role has no rows of its own: there are none, or they serve another role too."""
    why = "it is not there"
    for other, given in elsewhere[:1]:
        why = f"data.splits gives it to '{other}'"
        if part is not None and part.name != given.name:
            both = part.shared(given)
            return DatasetError(
                f"Task '{spec.name}': '{part.name}' for '{role}' and '{given.name}' for '{other}' share rows "
                f"{both.start} to {both.stop - 1} of '{part.split}'. Give each role rows of its own under data.splits."
            )
    name = {str(key): value for key, value in spec.data.splits.items()}.get(role, role)
    return DatasetError(
        f"Task '{spec.name}': no split '{name}' for the role '{role}': {why}. Name another, as in "
        f'data.splits: {{{role}: SPLIT}}, or a part of one: {{{role}: "SPLIT[90%:]"}}.{nearest(name, sizes)}'
    )


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
