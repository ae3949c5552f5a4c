"""Labels: a column of a data set becomes class indices of a fine-tuned checkpoint, or numbers for a regression."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hf_merge.errors import DatasetError


def encode_labels(
    values: NDArray[Any],
    class_names: Sequence[str] | None,
    *,
    num_labels: int,
    label_names: Sequence[str] | None,
    place: str,
    worded: bool = False,
) -> NDArray[Any]:
    """Returns one label per row: int64 class indices, or float32 numbers where `num_labels` is 1.

    Args:
        values: [rows] integers, numbers or texts, at least one and none missing. Texts are looked up in `label_names`.
        class_names: What the data call the classes, or None. They must agree with `label_names` in order; capitals and
            underscores do not matter, and names that only count (`LABEL_0`, `0`) say nothing.
        num_labels: Outputs of the checkpoint's head.
        label_names: What the checkpoint calls the classes, or None.
        place: Task, split and column, for messages.
        worded: Whether the labels are the answers that the recipe names, for messages.

    Raises:
        DatasetError: A value is no label of this checkpoint; the message shows it, its row, and what is needed.
    """
    if num_labels == 1:
        return _numbers(values, place)
    if class_names is not None and label_names is not None:
        _check_order(class_names, label_names, place)
    if isinstance(values[0], str):
        return _looked_up(values, label_names, place, "the answers" if worded else "the checkpoint's labels")
    if values.dtype.kind not in "iu":
        raise DatasetError(
            f"{place}: the labels are {values.dtype} (row 0: {_shown(values[0])}), but classification needs integers "
            f"from 0 to {num_labels - 1} (num_labels {num_labels}). Store class indices."
        )
    outside = np.flatnonzero((values < 0) | (values >= num_labels))
    if outside.size:
        row = int(outside[0])
        remedy = "Use the data this checkpoint was fine-tuned for, or remove the row."
        if values[row] == -1:
            remedy = "A label of -1 usually marks a split without labels: name another under data.splits."
        source = f"the checkpoint's head has num_labels {num_labels}"
        if worded:
            source = f"data.answers names {num_labels}, {', '.join(label_names or ())}"
        raise DatasetError(
            f"{place}: label {values[row]} in row {row} is outside 0 to {num_labels - 1}: {source}. {remedy}"
        )
    return values.astype(np.int64)


def _numbers(values: NDArray[Any], place: str) -> NDArray[np.float32]:
    """Returns the labels of a regression."""
    if values.dtype.kind not in "iuf":
        row = next((row for row, value in enumerate(values) if not _is_number(value)), 0)
        raise DatasetError(
            f"{place}: label {_shown(values[row])} in row {row} is no number, but the checkpoint has one output "
            "(num_labels 1, a regression). Store numbers, or name the column that holds them as data.label."
        )
    numbers = values.astype(np.float32)
    if not np.isfinite(numbers).all():
        row = int(np.argmin(np.isfinite(numbers)))
        raise DatasetError(f"{place}: label {values[row]} in row {row} is not finite. Remove the row.")
    return numbers


def _looked_up(values: NDArray[Any], label_names: Sequence[str] | None, place: str, owner: str) -> NDArray[np.int64]:
    """Returns the indices of label texts in `label_names`."""
    if label_names is None:
        raise DatasetError(
            f"{place}: the labels are texts (row 0: {_shown(values[0])}), and the checkpoint's config.json names no "
            "labels to look them up in. Store class indices, or add id2label to the checkpoint's config.json."
        )
    index = {name: position for position, name in enumerate(label_names)}
    unknown = [row for row, value in enumerate(values) if value not in index]
    if unknown:
        # In a column of digits with one blank, the blank is what made it a column of texts.
        row = next((row for row in unknown if not _is_number(values[row])), unknown[0])
        raise DatasetError(
            f"{place}: label {_shown(values[row])} in row {row} (and {len(unknown)} of {len(values)} in all) is none "
            f"of {owner}: {', '.join(label_names)}. Store class indices, or these names."
        )
    return np.array([index[value] for value in values], dtype=np.int64)


def _check_order(class_names: Sequence[str], label_names: Sequence[str], place: str) -> None:
    """Refuses data whose class names are not the checkpoint's label names in the same order."""
    if _only_counts(class_names) or _only_counts(label_names):
        return
    if [_plain(name) for name in class_names] != [_plain(name) for name in label_names]:
        raise DatasetError(
            f"{place}: the data name the classes {', '.join(class_names)}; the checkpoint names them "
            f"{', '.join(label_names)}. Names and order must agree: store the labels as texts, or correct id2label in "
            "the checkpoint's config.json."
        )


def _only_counts(names: Sequence[str]) -> bool:
    """Returns whether the names are no more than their own index."""
    return all(name in (str(index), f"LABEL_{index}") for index, name in enumerate(names))


def _is_number(value: object) -> bool:
    """Returns whether a label, perhaps a text, is a finite number."""
    try:
        return bool(np.isfinite(float(str(value))))
    except ValueError:
        return False


def _shown(value: object) -> str:
    """Returns a label as messages show it: quoted, control characters escaped, at most 60 characters."""
    return repr(str(value)[:60])


def _plain(name: str) -> str:
    """Returns a label name without what differs by habit only."""
    return name.casefold().replace("_", " ").strip()
