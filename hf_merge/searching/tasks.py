"""Tasks: a recipe's data become rows to search, to train the router and to test, three sets that share no content.

Data are read with `datasets` (a Hub id, or local parquet, csv and json files); labels become class indices of the
fine-tuned checkpoint, or numbers. Whatever is wrong with the data is said here, before anything is merged.
"""

import logging
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from hf_merge.errors import DatasetError, HubError, RecipeError
from hf_merge.recipe import TaskSpec
from hf_merge.searching.columns import read_answers, refuse_missing, refuse_other_than_text
from hf_merge.searching.drawing import Draw, draw, report_doubles, search_share
from hf_merge.searching.media import Reading, reason_of, with_images, with_sounds
from hf_merge.searching.metrics import is_regression_metric
from hf_merge.searching.rows import Rows
from hf_merge.searching.splits import BUILDERS, ROLES, Part, check_source, splits_by_role
from hf_merge.storing import disk
from hf_merge.storing.redaction import redact


if TYPE_CHECKING:
    import datasets

_log = logging.getLogger(__name__)
_UNDEFINED_FOR_ONE_LABEL = ("matthews", "pearson_spearman")


@dataclass(frozen=True, eq=False)
class TaskData:
    """The rows of one task; no content is in two of the three sets.

    Attributes:
        name: The task's name.
        search: Selects configurations.
        router: Trains the router.
        test: Is only reported.
    """

    name: str
    search: Rows
    router: Rows
    test: Rows


def load_task(
    spec: TaskSpec,
    *,
    validation_rows: int,
    router_rows: int,
    seed: int,
    num_labels: int,
    label_names: tuple[str, ...] | None,
) -> TaskData:
    """Returns the rows of one task, the same ones for the same seed, each set in the order of its split.

    The test rows are the whole `test` split; the search rows are drawn from `validation`, the router's from `train`.
    Where one of these two is missing, both draw from the other: the search its `validation_rows`, the router from the
    rest; where the rest is less than a quarter of the split (and than `router_rows`), each gets half of the split. A
    split that `data.splits` gives to one role (`{test: validation}`, or a slice, `{test: "train[90%:]"}`) is not there
    for the role of its own name.

    Search rows that equal a test row are left out, and so are router rows that equal a search or a test row (the same
    text and pair, or the same pixels); how many is logged.

    Args:
        spec: The task as the recipe names it.
        validation_rows: At most so many search rows.
        router_rows: At most so many router rows.
        seed: Fixes which rows are drawn.
        num_labels: Outputs of the task's head; 1 is a regression, 0 a task that writes.
        label_names: The head's label names in order of their index, or None where it has none.

    Raises:
        DatasetError: The data lack a file, split, column or rows, or hold values that the task cannot use.
        HubError: The data set is on the Hub and cannot be had.
        RecipeError: The metric does not fit the number of labels.
    """
    sources = _opened(spec, ROLES, (num_labels, label_names))
    data = _divided(spec.name, sources, validation_rows, router_rows, seed)
    _warn_of_one_label(spec, data.search)
    return data


def load_test(spec: TaskSpec, *, num_labels: int, label_names: tuple[str, ...] | None) -> Rows:
    """Returns the test rows of one task, as `load_task` does; its data need have no other split.

    Args:
        spec: The task as the recipe names it.
        num_labels: As in `load_task`.
        label_names: As in `load_task`.

    Raises:
        DatasetError: As in `load_task`, of the test split alone.
        HubError: The data set is on the Hub and cannot be had.
        RecipeError: The metric does not fit the number of labels.
    """
    return _whole(_opened(spec, ("test",), (num_labels, label_names))["test"])[1]


def _opened(spec: TaskSpec, roles: Sequence[str], head: tuple[int, tuple[str, ...] | None]) -> dict[str, "_Source"]:
    """Returns the checked splits of the roles that there are."""
    if head[0] == 1 and not is_regression_metric(spec.metric):
        raise RecipeError(
            f"Task '{spec.name}': metric '{spec.metric}' compares classes, but the checkpoint {spec.source} has one "
            "output (num_labels 1, a regression). Choose pearson_spearman."
        )
    available = _load(spec)
    parts = splits_by_role(spec, {split: len(rows) for split, rows in available.items()}, roles)
    return {role: _Source.open(spec, part, available[part.split], head) for role, part in parts.items()}


_Content = tuple[Any, ...]  # of one row: (text,), (text, pair), (image,) or (sound,)


@dataclass(frozen=True, eq=False)
class _Source:
    """A split or slice whose columns are checked and whose labels are encoded; `place` names it in messages."""

    place: str
    data: "datasets.Dataset"
    columns: tuple[str, ...]
    reading: Reading | None  # of a column of images or sounds; None where there are texts
    labels: NDArray[Any]
    targets: tuple[str, ...] | None

    def __len__(self) -> int:
        return len(self.labels)

    @classmethod
    def open(
        cls, spec: TaskSpec, part: Part, split: "datasets.Dataset", head: tuple[int, tuple[str, ...] | None]
    ) -> Self:
        """Returns the rows after checking everything but pixels and samples."""
        place = f"Task '{spec.name}', split '{part.name}'"
        if not part.rows:
            raise DatasetError(f"{place}: it has no rows. Give at least one.")
        data = split.select(part.rows)
        named = (spec.data.text, spec.data.text_pair, spec.data.image, spec.data.audio)
        columns = tuple(column for column in named if column is not None)
        for column in columns:
            refuse_missing(data, column, place)
        reading = None
        if spec.data.image is not None:
            data, reading = with_images(data, columns[0], place)
        elif spec.data.audio is not None:
            data, reading = with_sounds(data, columns[0], place)
        else:
            refuse_other_than_text(data, columns, place)
        labels, targets = read_answers(spec.data, data, head, place)
        return cls(place, data.select_columns(list(columns)), columns, reading, labels, targets)

    def draw(self, order: NDArray[np.int64], limit: int, *others: Draw[_Content]) -> Draw[_Content]:
        """Returns the first `limit` rows in `order` that share no content with the others."""
        taken = frozenset[Hashable]().union(*(other.keys for other in others))
        return draw(self._read, order, limit, taken)

    def rows(self, drawn: Draw[_Content]) -> Rows:
        """Returns the drawn rows with their labels."""
        columns = tuple(zip(*drawn.items.values(), strict=True))
        labels = self.labels[list(drawn.items)]
        labels.setflags(write=False)
        if self.reading is not None:
            kinds: dict[str, Any] = {"images": None, self.reading.name: columns[0]}
            return Rows(None, None, labels=labels, **kinds)
        targets = None if self.targets is None else tuple(self.targets[row] for row in drawn.items)
        return Rows(columns[0], columns[1] if len(columns) > 1 else None, None, labels, targets)

    def _read(self, rows: NDArray[np.int64]) -> list[tuple[Hashable, _Content]]:
        if self.reading is not None:
            return [self._read_one(self.reading, row) for row in rows.tolist()]
        read = self.data[rows.tolist()]
        contents = zip(*(read[name] for name in self.columns), strict=True)
        return [(content, content) for content in contents]

    def _read_one(self, reading: Reading, row: int) -> tuple[Hashable, _Content]:
        key, content = reading.read(self.data, row, self.columns[0], self.place)
        return key, (content,)


def _divided(task: str, sources: dict[str, _Source], validation_rows: int, router_rows: int, seed: int) -> TaskData:
    """Returns the three sets of rows, drawn from the splits of the roles that there are."""
    test, test_rows = _whole(sources["test"])
    first = sources.get("validation") or sources["train"]
    second = sources.get("train") or first
    rng = np.random.default_rng(seed)
    limit = search_share(len(first), validation_rows, router_rows) if first is second else validation_rows
    search = first.draw(rng.permutation(len(first)), limit, test)
    order = search.unseen if first is second else rng.permutation(len(second))
    router = second.draw(order, router_rows, test, search)
    report_doubles(search, task, "search", "a test row")
    report_doubles(router, task, "router", "a search or test row")
    return TaskData(task, first.rows(search), second.rows(router), test_rows)


def _whole(source: _Source) -> tuple[Draw[_Content], Rows]:
    """Returns all rows of a split, in its order."""
    drawn = source.draw(np.arange(len(source)), len(source))
    return drawn, source.rows(drawn)


def _load(spec: TaskSpec) -> dict[str, "datasets.Dataset"]:
    """Returns the splits of a task's data by name; files one by one, lest one split's column types bind another's."""
    check_source(spec)
    if spec.data.data_files is None:
        return _fetch(spec, None)
    parts = [_fetch(spec, {split: file}) for split, file in spec.data.data_files.items()]
    return {split: data for part in parts for split, data in part.items()}


def _fetch(spec: TaskSpec, files: dict[str, str] | None) -> dict[str, "datasets.Dataset"]:
    """Returns what `datasets.load_dataset` finds; its errors become ours."""
    import datasets
    from datasets.exceptions import DatasetsError

    data = spec.data
    # An empty cell, NA or null is a text like any other; among the labels it is refused by name.
    options = {"keep_default_na": False} if data.path == "csv" else {}
    broken = (OSError, ValueError, TypeError, LookupError, RuntimeError, ImportError, DatasetsError)
    try:
        with _without_progress_bars(), _without_raised_errors():
            found = datasets.load_dataset(data.path, data.name, data_files=files, revision=data.revision, **options)
    except broken as error:
        disk.refuse_full(error, Path(datasets.config.HF_DATASETS_CACHE))
        reason = redact(reason_of(error))
        if isinstance(error, OSError) and data.path not in BUILDERS and not Path(data.path).exists():
            raise HubError(
                f"Task '{spec.name}': cannot get the data set '{data.path}' from the Hub: {reason}. Check "
                "its name, your right to read it, and the connection; local files go as path: parquet, data_files: "
                "{test: FILE}."
            ) from error
        what = ", ".join(files.values()) + f" as {data.path}" if files else f"the data set '{data.path}'"
        raise DatasetError(
            f"Task '{spec.name}': cannot read {redact(what)}: {reason}. Check that it is whole, of "
            "this format, and has rows."
        ) from error
    return dict(found)


@contextmanager
def _without_progress_bars() -> Iterator[None]:
    """Keeps datasets from drawing a bar for every file that it converts."""
    from datasets.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    if are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()


@contextmanager
def _without_raised_errors() -> Iterator[None]:
    """Keeps datasets from logging the errors that it raises as well, for they are told once, in our words."""
    handlers = list(logging.getLogger("datasets").handlers)
    for handler in handlers:
        handler.addFilter(_is_no_error)
    try:
        yield
    finally:
        for handler in handlers:
            handler.removeFilter(_is_no_error)


def _is_no_error(record: logging.LogRecord) -> bool:
    return record.levelno < logging.ERROR


def _warn_of_one_label(spec: TaskSpec, search: Rows) -> None:
    """Warns where the metric is the same for every configuration."""
    if spec.metric in _UNDEFINED_FOR_ONE_LABEL and len(np.unique(search.labels)) == 1:
        _log.warning(
            "Task '%s': all %d search rows have the label %s, for which '%s' is undefined and counts as 0. Raise "
            "validation_rows or mix the rows.",
            *(spec.name, len(search), search.labels[0], spec.metric),
        )
