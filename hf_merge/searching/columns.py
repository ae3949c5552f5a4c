"""Columns of a data set: checked before anything is merged, and what they say a row should be answered."""

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hf_merge.errors import DatasetError, nearest
from hf_merge.recipe import DataSpec
from hf_merge.searching.labels import encode_labels


if TYPE_CHECKING:
    import datasets

_TEXT_TYPES = ("string", "large_string", "string_view")


def read_answers(
    spec: DataSpec, data: "datasets.Dataset", head: tuple[int, tuple[str, ...] | None], place: str
) -> tuple[NDArray[Any], tuple[str, ...] | None]:
    """Returns the labels [rows] of a split and, for a task that writes, its targets.

    Args:
        spec: Which columns there are.
        data: The split.
        head: How many labels the task's head has, and their names in order where it has any.
        place: Task and split, for messages.

    Raises:
        DatasetError: The column is not there, or holds what the task cannot use.
    """
    if spec.target is not None:
        refuse_missing(data, spec.target, place)
        refuse_other_than_text(data, (spec.target,), place)
        return np.ones(len(data), dtype=np.int64), tuple(data.data.column(spec.target).to_pylist())
    refuse_missing(data, spec.label, place)
    labels = encode_labels(
        data.data.column(spec.label).to_numpy(),
        # What the data call the classes says nothing of how the recipe words them.
        getattr(data.features[spec.label], "names", None) if spec.answers is None else None,
        num_labels=head[0],
        label_names=head[1],
        place=f"{place}, column '{spec.label}'",
        worded=spec.answers is not None,
    )
    return labels, None


def refuse_missing(data: "datasets.Dataset", column: str, place: str) -> None:
    """Refuses a column that is not there, or has no value in some row.

    Raises:
        DatasetError: As said; the message names the nearest column, or the first such row.
    """
    if column not in data.column_names:
        raise DatasetError(f"{place}: there is no column '{column}'.{nearest(column, data.column_names)}")
    values = data.data.column(column)
    if values.null_count:
        row = int(np.argmax(values.is_null().to_numpy()))
        raise DatasetError(
            f"{place}: {values.null_count} of {len(values)} rows have nothing in column '{column}', the first is row "
            f"{row}. Remove them."
        )


def refuse_other_than_text(data: "datasets.Dataset", columns: tuple[str, ...], place: str) -> None:
    """Refuses columns that do not hold strings.

    Raises:
        DatasetError: The message names the first such column.
    """
    for column in columns:
        kind = getattr(data.features[column], "dtype", "a nested type")
        if kind not in _TEXT_TYPES:
            raise DatasetError(f"{place}: column '{column}' holds {kind}, not texts. Name a column of strings.")
