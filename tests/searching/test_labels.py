"""Labels: what is accepted, what is refused, and that a refusal names the value, its row, and what is needed."""

from typing import Any

import numpy as np
import pytest

from hf_merge.errors import DatasetError
from hf_merge.searching.labels import encode_labels


PLACE = "Task 'a', split 'test', column 'label'"


def encode(
    values: Any, num_labels: int, label_names: tuple[str, ...] | None = None, class_names: list[str] | None = None
) -> Any:
    return encode_labels(np.asarray(values), class_names, num_labels=num_labels, label_names=label_names, place=PLACE)


def test_class_indices_come_back_as_int64() -> None:
    labels = encode(np.array([0, 2, 1], dtype=np.int8), 3)
    assert labels.dtype == np.int64
    assert labels.tolist() == [0, 2, 1]


@pytest.mark.parametrize("values", [[0, 5], [0.5, 2.25], np.array([1.0], dtype=np.float16)])
def test_numbers_of_a_regression_come_back_as_float32(values: Any) -> None:
    labels = encode(values, 1)
    assert labels.dtype == np.float32
    assert labels.tolist() == list(values)


def test_texts_are_looked_up_in_the_names_of_the_checkpoint() -> None:
    values = np.array(["positive", "negative", "positive"], dtype=object)
    assert encode(values, 2, ("negative", "positive")).tolist() == [1, 0, 1]


@pytest.mark.parametrize("values", [np.array(["a", "c", "b"], dtype=object), np.array(["a", "c", "b"])])
def test_unknown_text_is_shown_with_its_row_and_the_known_ones(values: Any) -> None:
    with pytest.raises(
        DatasetError, match=r"column 'label': label 'c' in row 1 \(and 1 of 3 in all\).*labels: a, b\."
    ):
        encode(values, 2, ("a", "b"))


def test_the_blank_that_turned_digits_into_texts_is_shown_rather_than_a_digit() -> None:
    with pytest.raises(DatasetError, match="label '' in row 2"):
        encode(np.array(["0", "1", "", "1"], dtype=object), 2, ("no", "yes"))


def test_texts_without_names_to_look_them_up_are_refused() -> None:
    with pytest.raises(DatasetError, match=r"texts \(row 0: 'no'\).*add id2label"):
        encode(np.array(["no"], dtype=object), 2)


@pytest.mark.parametrize(("value", "hint"), [(3, "fine-tuned for"), (-2, "fine-tuned for"), (-1, "without labels")])
def test_index_outside_the_head_is_shown_with_its_row_and_the_range(value: int, hint: str) -> None:
    with pytest.raises(DatasetError, match=rf"label {value} in row 2 is outside 0 to 2.*num_labels 3.*{hint}"):
        encode([0, 1, value, 7], 3)


@pytest.mark.parametrize("values", [[0.0, 1.0], [True, False], np.array([[0], [1], {}], dtype=object)])
def test_labels_that_are_no_integers_are_refused_for_classes(values: Any) -> None:
    with pytest.raises(
        DatasetError, match=r"the labels are (float64|bool|object) \(row 0: '.*needs integers from 0 to 1"
    ):
        encode(values, 2)


def test_labels_that_are_no_numbers_are_refused_for_a_regression() -> None:
    with pytest.raises(DatasetError, match=r"label 'high' in row 1 is no number.*num_labels 1"):
        encode(np.array(["0.5", "high"], dtype=object), 1)
    with pytest.raises(DatasetError, match="label 'True' in row 0 is no number"):
        encode([True, False], 1)
    with pytest.raises(DatasetError, match="label inf in row 1 is not finite"):
        encode([0.5, np.inf, np.nan], 1)


def test_class_names_in_another_order_are_refused_with_both_lists() -> None:
    with pytest.raises(DatasetError, match=r"classes yes, no; the checkpoint names them no, yes\."):
        encode([0, 1], 2, ("no", "yes"), ["yes", "no"])
    with pytest.raises(DatasetError, match="classes no, yes, maybe; the checkpoint names them no, yes"):
        encode([0, 1], 2, ("no", "yes"), ["no", "yes", "maybe"])


@pytest.mark.parametrize(
    ("class_names", "label_names"),
    [
        (["no", "yes"], ("no", "yes")),
        (["Not_equal", "equal"], ("not equal", "EQUAL")),
        (["no", "yes"], ("LABEL_0", "LABEL_1")),
        (["0", "1"], ("no", "yes")),
        (["no", "yes"], None),
        (None, ("no", "yes")),
    ],
)
def test_names_that_agree_or_say_nothing_are_accepted(class_names: Any, label_names: Any) -> None:
    assert encode([1, 0], 2, label_names, class_names).tolist() == [1, 0]
